"""What runs the model: one seam (`base`), one engine per file."""
