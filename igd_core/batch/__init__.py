"""Recommendations for all rows of a dataset: plan its rows as chunks, answer each chunk once, say when all are."""
