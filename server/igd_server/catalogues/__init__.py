"""Catalogue versions in this process: opened, followed, tried, swapped, refused."""
