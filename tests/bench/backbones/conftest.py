"""Fixtures for tests of several kinds of backbones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file


@pytest.fixture
def timm_file(tmp_path: Path) -> tuple[Any, Path]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = timm.create_model("test_vit").eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    file = tmp_path / "weights.safetensors"
    save_file({key: tensor.clone() for key, tensor in model.state_dict().items()}, file)
    return model, file
