"""The command line: the commands and what they print. Slow libraries are imported when a command runs."""
