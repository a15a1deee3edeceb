"""A sample of trials, run again and compared with what is stored."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pandas as pd
import torch

from bench.execution.perform import perform, prepare_all
from bench.plan.trial import Trial
from bench.store.records import Record
from bench.store.source import Source
from bench.training.measure import provenance
from bench.training.trial import Resources
from bench.verify.findings import Examined, Rerun
from bench.wire.words import Artifact, Measure
from methods import UserError

#: How far two scores may be apart: on the same hardware with the same torch, and elsewhere, where sums are
#: taken in another order and a few examples of a test set go the other way.
SAME, ELSEWHERE = 1e-6, 0.02

#: Provenance that decides in which order a sum is taken.
HARDWARE = ("cpu", "gpu", "version_torch")


@dataclass(frozen=True)
class Candidate:
    """A finished trial that may be run again."""

    source: Source
    record: Record
    trial: Trial


def chosen(candidates: Iterable[Candidate], count: int, seed: int) -> list[Candidate]:
    """So many of them, or all; the same for the same seed, in whatever order they come."""
    in_order = sorted(candidates, key=lambda one: (one.source.name, one.trial.id))
    return random.Random(seed).sample(in_order, min(count, len(in_order)))


def rerun(
    some: Sequence[Candidate], tolerance: float, watching: Callable[[str], None]
) -> Iterator[tuple[Examined, Rerun | None]]:
    """Runs each again; gives what was found, and the two scores unless it cannot be run here."""
    resources: Resources | None = None
    for one in some:
        watching(f"running trial {one.trial.id} again: {one.record.name}")
        found = Examined(one.source.name, one.record)
        device = "cuda" if one.record.provenance.get("gpu") and torch.cuda.is_available() else "cpu"
        if resources is None or resources.device.type != device:
            resources = Resources(device)
        with _threads(one.record):
            try:
                prepare_all([one.trial], resources)
            except UserError as error:
                found.cannot("score of another run", str(error))
                yield found, None
                continue
            yield found, _run(found, one, resources, tolerance)


def _run(found: Examined, one: Candidate, resources: Resources, tolerance: float) -> Rerun | None:
    record, stored = one.record, one.record.score
    if stored is None:
        return None
    allowed, reason = _allowed(one, str(resources.device), tolerance)
    ending = perform(one.trial, resources, lambda progress: None, (KeyboardInterrupt,))
    score = ending.metrics.get(Measure.SCORE)
    if score is None:
        found.broken("score of another run", stored, ending.failure)
    else:
        found.near(f"score of another run, to {allowed:g}", stored, score, allowed)
        _compare_examples(found, one, ending.files[Artifact.PREDICTIONS])
    return Rerun(
        found.experiment, record.trial_id, record.run_id, record.name, stored, score, allowed, reason
    )


def _compare_examples(found: Examined, one: Candidate, again: bytes) -> None:
    """The stored predictions are of the examples that the task has, with their labels."""
    try:
        stored = one.source.read(one.record, Artifact.PREDICTIONS)
    except UserError:
        # It is told already.
        return
    if stored is not None:
        parts = [
            pd.read_parquet(io.BytesIO(content), columns=["example", "label"]) for content in (stored, again)
        ]
        if not parts[0].equals(parts[1]):
            found.broken("examples and labels", "as in the predictions", "others in the task's data")


def _allowed(one: Candidate, device: str, tolerance: float) -> tuple[float, str]:
    """How far the scores may be apart, and why so far."""
    then, now = one.record.provenance, provenance(device) | {"threads": str(torch.get_num_threads())}
    other = [name for name in (*HARDWARE, "threads") if then.get(name) != now.get(name)]
    if other:
        return tolerance, f"not the same {', '.join(other)} as then"
    if device.startswith("cuda") and not one.trial.recipe.deterministic:
        return tolerance, "the recipe is not deterministic on a GPU"
    return SAME, "the same hardware"


@contextmanager
def _threads(record: Record) -> Iterator[None]:
    """As many threads as the trial had, on which the order of its sums depends."""
    before, then = torch.get_num_threads(), record.provenance.get("threads", "")
    if then.isdecimal() and int(then) > 0:
        torch.set_num_threads(min(int(then), 1024))
    try:
        yield
    finally:
        torch.set_num_threads(before)
