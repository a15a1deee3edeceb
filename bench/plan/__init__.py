"""Suites as users write them, and the plans made from them: trials with resolved ranks, counts and ids."""
