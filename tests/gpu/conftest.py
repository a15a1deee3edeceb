"""Tests of a card run by themselves where there is one, and say that they are skipped where there is none."""

from __future__ import annotations

import pytest


@pytest.fixture
def card() -> str:
    """The device. Skips where there is no card."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine; python -m tests.gpu --device cpu runs a reduced form")
    return "cuda"
