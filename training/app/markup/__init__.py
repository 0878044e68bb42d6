"""Pieces of HTML that the page is made of beside Gradio's components. All text that people wrote is escaped."""
