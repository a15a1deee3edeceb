"""Runs suites and their choosers, and says beforehand what they cost and what they could find."""
