"""Catalogue versions in this process: loaded, followed, tried, swapped, refused."""
