"""The command line: commands and their output. Commands import slow libraries only when they run."""
