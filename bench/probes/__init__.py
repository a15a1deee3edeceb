"""What is measured outside of a suite: speed and redundancy."""
