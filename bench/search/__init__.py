"""Which ranks: a search within a budget, and the ablation of how a budget is shared among the modes."""
