"""Judges of actions and states."""
