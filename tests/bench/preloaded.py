"""Prepares the fork server once for all programs, which import this module last (`programs.py`)."""

import gc

from bench.training.measure import libraries

libraries()
# Freezes imported objects so that each trial's garbage collection skips them.
gc.collect()
gc.freeze()
