"""How long tests wait for what must come."""

PATIENCE_S = 60.0
"""Seconds; passed only where the thing never comes. Two cores may be shared with many other tests."""
