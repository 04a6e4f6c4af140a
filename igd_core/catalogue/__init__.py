"""The catalogue: items and attributes, the token paths that spell them, their prefix tree and its gains, prompts."""
