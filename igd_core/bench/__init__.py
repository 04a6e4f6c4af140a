"""Benchmarks: each part measured beside what it replaces, in the same run."""
