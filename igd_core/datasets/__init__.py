"""Raw files to a catalogue, interactions, time-ordered splits and (history, target) rows."""
