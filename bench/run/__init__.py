"""Runs suites and searches, and forecasts their cost and the smallest differences that they can detect."""
