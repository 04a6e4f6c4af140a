"""The embedded engine: transformers runs the model in this process."""
