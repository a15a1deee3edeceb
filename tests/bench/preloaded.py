"""Prepares the process that `programs.py` forks: caches installed versions, and freezes imported objects.

It has to be imported last, so that the objects of all other imports are frozen too.
"""

import gc

from tensorbench.training.measure import libraries

libraries()
# Freezes imported objects so that each trial's garbage collection skips them.
gc.collect()
gc.freeze()
