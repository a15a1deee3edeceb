"""The command line: commands and their output. Heavy imports happen inside the commands that need them."""
