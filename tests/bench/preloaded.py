"""The last import of the process from which `programs.py` forks programs."""

import gc

from bench.training.measure import libraries

libraries()
# Freezes imported objects so that each trial's garbage collection skips them.
gc.collect()
gc.freeze()
