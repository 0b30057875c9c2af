"""Recorded experience, before any learning."""
