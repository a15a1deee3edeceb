"""Tools beside suites: the speed of methods, and exports."""
