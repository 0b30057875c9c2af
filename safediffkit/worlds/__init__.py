"""Places to act in."""
