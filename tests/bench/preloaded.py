"""Prepares the fork server for all programs. `programs.py` makes the server import this module last."""

import gc

from bench.training.measure import libraries

libraries()
# Freezes imported objects so that each trial's garbage collection skips them.
gc.collect()
gc.freeze()
