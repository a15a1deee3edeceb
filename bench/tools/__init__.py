"""Tools beside suites: the speed of methods, the redundancy of trained adapters, and exports."""
