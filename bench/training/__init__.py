"""Runs trials: each puts a fresh adapter on a clean backbone, trains it and evaluates it once."""
