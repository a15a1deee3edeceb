"""This process and its surroundings: interrupts, where it writes, who else lives."""
