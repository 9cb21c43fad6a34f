"""Graphs of a device's work."""

CAPTURES = {"cuda": None}
