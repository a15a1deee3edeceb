"""What every fork would find out anew, found once: the server of forks imports this last (`forked.py`)."""

import gc

from bench.training.measure import libraries

libraries()
# Each trial collects garbage, and what was imported is none.
gc.collect()
gc.freeze()
