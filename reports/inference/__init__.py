"""Statistics of a few paired seeds on a few settings (a setting: one task on one backbone).

Arrays alone: nothing here knows of stores or reports. Seeds are paired: column k is the same seed on both
sides. Settings are taken as they are, not as a sample of all tasks, and each weighs the same.
`docs/explanations/statistics.md` explains each figure, and `tools/benchmarks/coverage.py` measures how often
each interval holds what it should.
"""
