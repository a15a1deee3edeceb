"""Prepares the server of forks once for all of them: it imports this last (`programs.py`)."""

import gc

from bench.training.measure import libraries

libraries()
# Each trial collects garbage, and what was imported is none.
gc.collect()
gc.freeze()
