"""Suites that are written: ranks, rates and epochs chosen on validation, and allocations of a budget."""

from __future__ import annotations
