"""Statistics of a few paired seeds on a few settings (a setting: one task on one backbone).

All functions take arrays and know neither stores nor reports. Seeds are paired: column k has the same seed
for both methods. Settings are fixed, not a sample of all tasks, and have equal weights.
`docs/explanations/statistics.md` explains each statistic, and `tools/benchmarks/study_coverage.py`
measures how often the intervals hold.
"""
