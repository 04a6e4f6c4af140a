"""IGD-Tuning: the loss, the rows it is taken over, and runs that survive being killed (arXiv 2506.13229)."""
