"""The command line: the commands and what they print.

The commands call the functions of `tensorbench`, whose modules are imported when a command runs.
"""
