"""Times LoRA by peft in a plain training loop beside the same training by the harness."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch.nn import functional

from tensorbench.backbones import load
from tensorbench.methods import create
from tensorbench.tasks import PreparedData
from tensorbench.training.loop import train
from tensorbench.training.trial import computing

from . import tables, toys
from .runner import Row

RANK = 4


def loops(device: str, backbone: str, batch: int, steps: int, longest: int, *, bf16: bool) -> Iterator[Row]:
    """Yields the milliseconds of a step in a plain loop and in the harness's, of LoRA on the same batches."""
    times = []
    for plain in (True, False):
        loaded = load(backbone)
        loaded.module.to(device)
        loaded.reset(toys.CLASSES, torch.Generator().manual_seed(0))
        data = toys.data(loaded, batch * steps, longest, device)
        if plain:
            times.append(_plain(loaded.module, data, batch, steps, device, bf16=bf16))
            continue
        method = create("lora", rank=RANK)
        adapter = method.attach(loaded, torch.Generator().manual_seed(0))
        recipe = toys.recipe(steps, batch, bf16=bf16)
        with computing(loaded.module.encoder, recipe):
            done = train(loaded, adapter, data, recipe, 0, toys.Losses())
        assert done.step_ms is not None
        times.append(done.step_ms)
    yield {
        "table": tables.LOOPS,
        "backbone": backbone,
        "precision": "bf16" if bf16 else "fp32",
        "batch": batch,
        "plain ms": times[0],
        "harness ms": times[1],
        "of plain": times[1] / times[0],
    }


def _plain(
    module: torch.nn.Module, data: PreparedData, batch: int, steps: int, device: str, *, bf16: bool
) -> float:
    """Trains LoRA by peft as a user's own loop would, and returns the median milliseconds of a step."""
    heads = {id(parameter) for parameter in module.head.parameters()}  # type: ignore[union-attr]
    targets = ["query", "key", "value", "q_proj", "k_proj", "v_proj", "qkv"]
    inject_adapter_in_model(LoraConfig(r=RANK, target_modules=targets), module.encoder)  # type: ignore[arg-type]
    module.to(device).train()
    for parameter in module.parameters():
        if id(parameter) in heads:
            parameter.requires_grad_(True)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-3, fused=True)
    times = []
    for step in range(steps):
        rows = torch.arange(step * batch, (step + 1) * batch, device=device) % len(data.train)
        began = _now(device)
        optimizer.zero_grad()
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=bf16):
            logits = module(**data.train.batch(rows.cpu()))
        functional.cross_entropy(logits.float(), data.train.labels[rows]).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        times.append(_now(device) - began)
    return statistics.median(times[steps // 4 :])


def _now(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize(torch.device(device))
    return time.perf_counter() * 1e3
