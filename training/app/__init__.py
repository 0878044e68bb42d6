"""The app: learn, steer and compare concepts in a browser. `page/` is what people see; it holds no logic of its own."""
