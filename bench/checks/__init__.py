"""Checks that methods, tasks and backbones keep their contracts, and that stored results are correct."""
