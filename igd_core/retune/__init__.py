"""From what people chose to the next model: a round of commands, and a rule that publishes or keeps."""
