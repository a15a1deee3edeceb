"""Measurements outside of suites: the speed of methods, and the redundancy of trained adapters."""
