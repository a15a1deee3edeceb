"""Checks whether methods, tasks and backbones behave, and whether stored results are what they claim."""
