"""Measurements of our parts, each beside what it replaces, in the same run."""
