"""The vLLM engine: vLLM runs the model, the trie constraint runs inside it."""
