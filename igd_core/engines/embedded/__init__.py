"""The embedded engine: transformers runs the model in the server's process."""
