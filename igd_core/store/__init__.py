"""Where artefacts, histories and answers are kept."""
