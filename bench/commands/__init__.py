"""The commands, by what they are about. Heavy imports happen inside the commands that need them."""
