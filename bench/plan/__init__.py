"""What would run: the trials of a suite, with resolved ranks, counts and ids. Starts nothing."""
