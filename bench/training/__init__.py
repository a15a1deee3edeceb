"""One trial: a clean backbone, a fresh adapter, training, one evaluation."""
