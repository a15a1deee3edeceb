"""Suites as users write them: tasks, backbones, methods, budgets and seeds."""
