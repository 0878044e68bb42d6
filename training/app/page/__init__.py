"""What people see: one file per tab, made of Gradio components and calls."""
