"""What validation chooses: ranks within a budget, how the budget is shared among modes, tuned settings."""
