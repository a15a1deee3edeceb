"""Choices made by validation: ranks within a budget, its allocation to modes, and tuned settings."""
