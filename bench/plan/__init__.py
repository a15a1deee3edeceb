"""Suites as users write them, and the plans made from them: trials with resolved ranks, counts and ids."""

from pathlib import Path

#: The folder of the packaged suites, which commands also take by their names.
PACKAGED = Path(__file__).parents[1] / "suites"
