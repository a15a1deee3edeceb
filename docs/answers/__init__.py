"""Answers of the published packs, for the pages of docs/results."""
