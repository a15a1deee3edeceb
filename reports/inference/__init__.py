"""Statistics of a few paired seeds on a few settings (a setting: one task on one backbone).

All inputs are arrays; nothing here knows stores or reports. Seeds are paired: column k is the same seed on
both sides. Settings are fixed, not a sample of all tasks, and have equal weights.
`docs/explanations/statistics.md` explains each statistic, and `tools/benchmarks/coverage.py` measures the
coverage of each interval.
"""
