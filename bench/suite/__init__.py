"""What a user wrote: a suite of tasks, backbones, methods, budgets and seeds."""
