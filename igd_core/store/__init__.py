"""Where artifacts, histories and answers are kept."""
