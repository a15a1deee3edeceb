"""Trials that train together against the same one by one: the time of all, and how far the curves differ.

    python -m tests.benchmarks.packed --backbone minilm-l6 --task movie-sentiment

Trials of LoRA and of TensLoRA at several rates share a seed, as those of equal tuning do. Both ways train and
evaluate them in one process, by turns, on a backbone and data that are loaded already. Each round is printed
as it ends.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any, NamedTuple

from bench.execution.perform import Event, perform_all
from bench.plan.make import make_plan
from bench.plan.trial import Trial
from bench.suite.suite import Suite
from bench.training.measure import device_name
from bench.training.trial import Resources
from methods.validation import validate

#: Of so many trials half are LoRA's, half TensLoRA's.
RATES = [2e-4, 5e-4, 1e-3, 2e-3]


def trials_of(asked: argparse.Namespace) -> list[Trial]:
    """As many trials as are asked for, which differ in method, rank and rate."""
    rates = RATES[: max(1, asked.pack // 2)]
    methods = [
        {"method": name, "each": {"training": {"lr": rates}}, **more}
        for name, more in (("lora", {"rank": 4}), ("tenslora", {"variant": "att_qkv", "ranks": [4, 4, 4, 4]}))
    ]
    sizes = {"train_size": asked.batch * 8, "validation_size": asked.batch, "test_size": asked.batch}
    suite: dict[str, Any] = {
        "name": "packed",
        "backbones": [{"name": asked.backbone} | ({"image_size": asked.pixels} if asked.pixels else {})],
        "tasks": [{"task": asked.task, **sizes}],
        "methods": methods,
        "seeds": [0],
        "training": {"batch_size": asked.batch, "steps": asked.steps},
    }
    return list(make_plan(validate(Suite, suite, "benchmark"), asked.device).trials)[: asked.pack]


class Took(NamedTuple):
    """Seconds on the clock, and of all processors: the first grow where others use the machine too."""

    clock: float
    cpu: float


def run(trials: list[Trial], resources: Resources, pack: int) -> tuple[Took, dict[str, list[float]]]:
    """What all of them took, so many at once, and each one's losses."""
    losses: dict[str, list[float]] = {trial.id: [] for trial in trials}

    def hear(event: Event) -> None:
        if event.progress:
            losses[event.trial.id] += [loss for _, loss in event.progress.losses]

    clock, cpu = time.perf_counter(), time.process_time()
    for first in range(0, len(trials), pack):
        perform_all(trials[first : first + pack], resources, "", hear)
    return Took(time.perf_counter() - clock, time.process_time() - cpu), losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--backbone", default="minilm-l6")
    parser.add_argument("--task", default="movie-sentiment")
    parser.add_argument("--pixels", type=int)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--pack", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()

    trials, resources = trials_of(asked), Resources(asked.device)
    resources.data(trials[0], resources.backbone(trials[0]).info.input)
    print(f"{asked.backbone}, {asked.task}, {device_name(asked.device)}")
    print(f"{len(trials)} trials of {asked.steps} steps, batch {asked.batch}", flush=True)
    # The first of a kind takes longer; what is measured of trials once is then there for those to come.
    warm = [trial.model_copy(update={"seed": 1}) for trial in trials]
    run(warm, resources, 1)
    run(warm[:2], resources, 2)
    times: list[tuple[Took, Took]] = []
    for number in range(1, asked.rounds + 1):
        (alone, expected), (together, losses) = (run(trials, resources, pack) for pack in (1, len(trials)))
        times.append((alone, together))
        print(f"round {number}: one by one {alone.clock:.1f} s, together {together.clock:.1f} s", flush=True)
    print(f"median of {asked.rounds} rounds:")
    for what in Took._fields:
        pairs = [(getattr(alone, what), getattr(together, what)) for alone, together in times]
        one_by_one, at_once = map(statistics.median, zip(*pairs, strict=True))
        ratios = sorted(after / before for before, after in pairs)
        print(f"{what}: one by one {one_by_one:.1f} s, together {at_once:.1f} s, ", end="")
        print(f"ratio {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})")
    apart = max(abs(a - b) for id_ in expected for a, b in zip(expected[id_], losses[id_], strict=True))
    print(f"largest difference of a loss: {apart:.1e}")


if __name__ == "__main__":
    main()
