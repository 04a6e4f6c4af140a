"""Item scorers: how likely each item comes next, by what people chose together; they read no title."""
