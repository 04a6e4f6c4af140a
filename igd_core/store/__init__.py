"""Where artifacts, histories and answers are stored: in memory, in files or in Redis."""
