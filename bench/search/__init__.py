"""Choices made on validation: ranks within a budget, its allocation to modes, rates, scale and epochs."""

from __future__ import annotations
