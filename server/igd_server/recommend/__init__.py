"""A recommendation: from the resolved request to the cache, admission, the model and the answer."""
