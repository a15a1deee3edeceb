"""Measurements outside of a suite: speed and redundancy."""
