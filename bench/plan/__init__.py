"""Plans: the trials of a suite with resolved ranks, counts and ids. Nothing here starts a trial."""
