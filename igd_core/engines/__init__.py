"""What runs the model. `igd_core.search.engine` is the interface; here are the embedded, vLLM and fake engines."""
