"""Statistics of a few paired seeds on a few settings, each of which is one task on one backbone.

All functions take arrays and are independent of stores and reports. Seeds are paired: a difference between
methods is taken within each seed. Settings are fixed, not a sample of all tasks, and have equal weights.
`docs/explanations/statistics.md` explains each statistic, and `tools/benchmarks/study_coverage.py`
measures how often the intervals hold.
"""
