"""IGD-Tuning: the weighted loss, training rows, and runs that can be resumed (arXiv 2506.13229)."""
