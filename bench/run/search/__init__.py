"""Writes suites with ranks, rates and epochs chosen on validation, or with allocations of a budget."""

from __future__ import annotations
