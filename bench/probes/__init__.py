"""Measurements outside of suites: speed and redundancy."""
