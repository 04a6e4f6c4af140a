"""Raw files to a catalogue, interactions, splits by time and (history, target) rows."""
