"""Output at the terminal."""
