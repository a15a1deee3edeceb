"""An experiment: trains several trials of one backbone and task in one process, step by step together.

    python -m tools.benchmarks.fused [--backbone random-minilm-l6] [--trials 1 2 4 8]

The batches of all trials pass the frozen layers as one batch. Each adapted layer multiplies the part of each
trial by the factors of that trial, padded to one rank, in two batched products. Every trial has its own head,
loss, clipping and optimizer. So a trial's training differs from the same trial alone only by the rounding of
sums, as long as the backbone has no dropout (see tests/tools/test_fused.py). Prints the time of a step and
trial, and its ratio to trials one by one. As HFTA (arXiv 2102.02344) and mLoRA (arXiv 2312.02515) do.

Nothing of the harness uses it: on a CPU it gains nothing (docs/explanations/performance.md), and a trial
would need a field of its own in its id, since a backbone's dropout would draw other numbers.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tensorbench.backbones.answers import put_head
from tensorbench.methods import Adapter, Site, from_identity
from tensorbench.plan.trial import Trial
from tensorbench.training import loop
from tensorbench.training.seeding import generator
from tensorbench.training.trial import Resources

from ..gpu.toys import own_cache
from ..gpu.trials import trials as made_trials


class _Member:
    """A trial with its adapter, head and optimizer. The adapter is not on the backbone."""

    def __init__(self, trial: Trial, resources: Resources) -> None:
        backbone = resources.backbone(trial)
        self.trial, self.data = trial, resources.data(trial, backbone.info.input)
        classes = self.data.classes
        put_head(
            backbone, trial.task.input(backbone.info.input), classes, generator(trial.seed, "head_start")
        )
        self.adapter: Adapter = from_identity(trial.method).attach(
            backbone, generator(trial.seed, "adapter_start")
        )
        groups = self.adapter.parameter_groups()
        self.head = copy.deepcopy(backbone.head)
        layers = dict(self.adapter._adapted)
        self.adapter.detach()
        # peft's adapters read their factors from the layers, which are no longer on the backbone.
        self.adapter._adapted = layers
        for group in groups:
            if group["name"] == "head":
                group["params"] = list(self.head.parameters())
        for parameter in self.head.parameters():
            parameter.requires_grad_(True)
        self.trained = [parameter for group in groups for parameter in group["params"]]
        self.steps = trial.recipe.step_count(len(self.data.train))
        self.optimizer, self.scheduler = loop._optimizer(groups, trial.recipe, self.steps)
        self._order = generator(trial.seed, "data_order")
        self._batches = iter(())
        self.losses: list[float] = []

    def batch(self) -> tuple[dict[str, Tensor], Tensor]:
        indices = next(self._batches, None)
        if indices is None:
            self._batches = loop.batches(self.data.train, self.trial.recipe.batch_size, self._order)
            indices = next(self._batches)
        return self.data.train.batch(indices), self.data.train.targets(indices)

    def step(self) -> None:
        if self.trial.recipe.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.trained, self.trial.recipe.clip)
        self.optimizer.step()
        self.scheduler.step()


class _Heads(nn.Module):
    """Applies each trial's head to the trial's part of the features."""

    def __init__(self, heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, features: Tensor) -> Tensor:
        parts = features.chunk(len(self.heads))
        return torch.cat([head(part) for head, part in zip(self.heads, parts, strict=True)])


def train(trials: Sequence[Trial], resources: Resources) -> list[_Member]:
    """Trains trials of one backbone, task, batch size and number of steps together, without validation.

    The methods must be low-rank, without dropout.
    """
    members = [_Member(trial, resources) for trial in trials]
    backbone, recipe = resources.backbone(trials[0]), trials[0].recipe
    module = backbone.module
    own_head, module.head = module.head, _Heads([member.head for member in members])
    required = {parameter: parameter.requires_grad for parameter in module.encoder.parameters()}
    for parameter in required:
        parameter.requires_grad_(False)
    pairs: dict[Site, tuple[Tensor, Tensor]] = {}
    sites = sorted({site for member in members for site in member.adapter.bases})
    hooks = [
        module.get_submodule(backbone.path(site)).register_forward_hook(partial(_add, pairs, site))
        for site in sites
    ]
    try:
        module.train()
        for _ in range(members[0].steps):
            batches = [member.batch() for member in members]
            pairs |= _stacked(members, sites)
            with loop.autocast(recipe, resources.device):
                logits = module(**_joined([inputs for inputs, _ in batches])).float()
            losses = [
                member.data.objective.loss(part[: len(targets)], targets)
                for member, part, (_, targets) in zip(
                    members, logits.chunk(len(members)), batches, strict=True
                )
            ]
            for member in members:
                member.optimizer.zero_grad(set_to_none=True)
            torch.stack(losses).sum().backward()
            for member, loss in zip(members, losses, strict=True):
                member.step()
                member.losses.append(float(loss.detach()))
    finally:
        for hook in hooks:
            hook.remove()
        module.head = own_head
        for parameter, needed in required.items():
            parameter.requires_grad_(needed)
        module.eval()
    return members


def _stacked(members: Sequence[_Member], sites: Sequence[Site]) -> dict[Site, tuple[Tensor, Tensor]]:
    """The factors of all trials at each site, padded with zeros: (trials, in, rank), (trials, rank, out)."""
    factors = [member.adapter.factors() for member in members]
    stacked = {}
    for site in sites:
        own = [pairs.get(site) for pairs in factors]
        down, up = next(pair for pair in own if pair is not None)
        rank = max(len(pair[0]) for pair in own if pair is not None)
        downs, ups = [], []
        for pair in own:
            left, right = pair or (down.new_zeros(0, down.shape[1]), up.new_zeros(up.shape[0], 0))
            downs.append(nn.functional.pad(left, (0, 0, 0, rank - len(left))).T)
            ups.append(nn.functional.pad(right, (0, rank - len(left))).T)
        stacked[site] = torch.stack(downs), torch.stack(ups)
    return stacked


def _add(
    pairs: dict[Site, tuple[Tensor, Tensor]],
    site: Site,
    module: nn.Module,
    inputs: tuple[Any, ...],
    output: Tensor,
) -> Tensor:
    downs, ups = pairs[site]
    features = inputs[0].reshape(len(downs), -1, inputs[0].shape[-1])
    inner = torch.bmm(features, downs.to(features.dtype))
    base = output.reshape(len(downs), -1, output.shape[-1])
    return torch.baddbmm(base, inner, ups.to(base.dtype)).view_as(output)


def _joined(batches: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """One batch of as many examples of each trial, in order of trials.

    Texts are padded to the longest one; their masks leave the padding out. A shorter batch, the last one of
    an epoch, repeats its first example, which has no part in a loss.
    """
    joined = {}
    size = max(len(next(iter(batch.values()))) for batch in batches)
    for name in batches[0]:
        values = [
            torch.cat([v, v[:1].repeat(size - len(v), *[1] * (v.dim() - 1))])
            for v in (batch[name] for batch in batches)
        ]
        if values[0].dim() == 2:
            width = max(value.shape[1] for value in values)
            values = [nn.functional.pad(value, (0, width - value.shape[1])) for value in values]
        joined[name] = torch.cat(values)
    return joined


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--backbone", default="random-minilm-l6")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--trials", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with own_cache() as folder:
        made = made_trials(
            options.device,
            options.backbone,
            folder,
            range(max(options.trials)),
            steps=options.steps,
            batch_size=options.batch,
        )
        resources = Resources(options.device)
        train(made[:1], resources)
        times: dict[int, list[float]] = {count: [] for count in options.trials}
        for _ in range(options.rounds):
            for count in options.trials:
                began = time.process_time() if options.device == "cpu" else time.perf_counter()
                train(made[:count], resources)
                ended = time.process_time() if options.device == "cpu" else time.perf_counter()
                times[count].append(1e3 * (ended - began) / (count * options.steps))
    alone = statistics.median(times[options.trials[0]])
    print(
        f"{options.backbone}, batch {options.batch}, {torch.get_num_threads()} threads; ms a step and trial"
    )
    for count, each in times.items():
        print(f"{count:3d} trials: {statistics.median(each):8.1f}  {statistics.median(each) / alone:.2f}")


if __name__ == "__main__":
    main()
