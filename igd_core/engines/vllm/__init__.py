"""The vLLM engine: vLLM runs the model, and the trie constrains it inside vLLM's worker."""
