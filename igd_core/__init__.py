"""Recommendation by constrained decoding, rebalanced by the information gain of each token (arXiv 2506.13229)."""
