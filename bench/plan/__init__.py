"""Suites as users write them, and plans: trials with resolved ranks, counts and ids."""
