"""The GPU of the tests that need one."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def card() -> str:
    """torch's name of the GPU. Skips the test without a GPU."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    return "cuda"
