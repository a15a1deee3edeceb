"""Compares the training speed of padding every sentence to 512 tokens with that of the harness's own batches.

    python -m tools.benchmarks.text_throughput

TensLoRA's code pads to 512 tokens. Both sides train the same adapter on a model of RoBERTa-base's shape with
random weights (no download), in one process and in turns. Both have the same batches of sentences, with
lengths like CoLA's. First their losses are compared on a few batches, with dropout off.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace

import torch
from torch.nn import functional as F

from tensorbench.backbones import load
from tensorbench.methods import create
from tensorbench.tasks import TextSplit
from tensorbench.training.loop import batches
from tensorbench.training.measure import device_name

#: The length to which TensLoRA's code pads every sentence.
PADDED = 512

CLASSES, VOCABULARY, PAD = 2, 50265, 1


def sentences(number: int, seed: int = 0) -> TextSplit:
    """Sentences of random tokens with CoLA's skewed lengths: from 4 to 47 tokens, about 11 on average."""
    drawn = torch.Generator().manual_seed(seed)
    lengths = torch.empty(number).log_normal_(2.3, 0.42, generator=drawn).round().long().clamp_(4, 47)
    tokens = torch.randint(4, VOCABULARY, (int(lengths.sum()),), generator=drawn, dtype=torch.int32)
    labels = torch.randint(CLASSES, (number,), generator=drawn)
    return TextSplit(tokens, lengths.cumsum(0) - lengths, lengths, labels, torch.arange(number), PAD)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()

    backbone = load("random-roberta-base")
    backbone.module.to(options.device)
    backbone.reset(CLASSES, torch.Generator().manual_seed(0))
    method = create("tenslora", variant="qkv_depth").isorank(4)
    adapter = method.attach(backbone, torch.Generator().manual_seed(0))
    ours = sentences(options.batch * 16).to(options.device)
    splits = {"padded to 512": replace(ours, width=PADDED), "ours": ours}
    # The first batches of one pass, including the shortest and longest sentences of the pool.
    chosen = list(batches(ours, options.batch, torch.Generator().manual_seed(0)))

    def loss(split: TextSplit, indices: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(backbone.module(**split.batch(indices)), split.targets(indices))

    backbone.module.eval()
    with torch.inference_mode():
        gaps = [
            float((loss(splits["ours"], indices) - loss(splits["padded to 512"], indices)).abs())
            for indices in chosen[: options.rounds]
        ]
    backbone.module.train()
    optimizer = torch.optim.AdamW(adapter.parameter_groups(), lr=5e-4, fused=True)

    def seconds(split: TextSplit, index_batches: list[torch.Tensor]) -> float:
        started = time.perf_counter()
        for indices in index_batches:
            optimizer.zero_grad(set_to_none=True)
            loss(split, indices).backward()
            optimizer.step()
        if options.device.startswith("cuda"):
            torch.cuda.synchronize()
        return (time.perf_counter() - started) / (len(index_batches) * options.batch)

    # Padded batches cost the same, so one per round suffices; ours are timed over the whole pass.
    seconds(splits["ours"], chosen)
    seconds(splits["padded to 512"], chosen[:1])
    costs = [
        (seconds(splits["padded to 512"], [chosen[turn]]), seconds(splits["ours"], chosen))
        for turn in range(options.rounds)
    ]
    print(f"RoBERTa-base shape, {method.label}, batch {options.batch}, {device_name(options.device)}")
    print(f"{float(ours.lengths.float().mean()):.1f} tokens a sentence on average")
    for name, column in zip(splits, zip(*costs, strict=True), strict=True):
        print(f"{name:>14}: {1 / statistics.median(column):9.2f} examples a second")
    ratio = statistics.median(padded / own for padded, own in costs)
    print(f"{'ratio':>14}: {ratio:9.1f} (median of {options.rounds} rounds)")
    print(f"largest difference of the losses on the same batches: {max(gaps):.1e}")


if __name__ == "__main__":
    main()
