"""Checks of an adapter's stored state, and of the start that a seed gives it."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import numpy
import torch
from safetensors.torch import load_file, save_file

from tensorbench.checks.conformance.subject import Subject, expect, expect_equal, outputs, same_bits, scatter
from tensorbench.methods.errors import UserError


def state(subject: Subject) -> None:
    """Checks that an adapter that was saved and loaded on a copy of the backbone gives the same outputs.

    Also checks that a state with a wrong name or shape is refused and changes nothing.
    """
    backbone, adapter = subject.randomised()
    saved, trained = adapter.state(), adapter.named_parameters()
    sizes = {name: tensor.numel() for name, tensor in saved.items()}
    expect(
        sum(sizes.get(name, 0) for name in trained) == subject.method.peak_count(subject.geometry),
        "state() does not hold each parameter once",
    )
    frozen = sum(size for name, size in sizes.items() if name in adapter.frozen())
    strange = sorted(set(saved) - {*trained, *adapter.kept()})
    expect(not strange, f"state() holds what is neither trained nor kept: {strange[:4]}")
    formula = subject.method.kept_count(subject.geometry)
    expect(frozen == formula, f"state() holds {frozen:,} frozen numbers, kept_count says {formula:,}")
    kept = {name: tensor.clone() for name, tensor in saved.items()}
    with tempfile.TemporaryDirectory() as folder:
        save_file(saved, Path(folder) / "adapter.safetensors")
        loaded = load_file(Path(folder) / "adapter.safetensors")
    other = subject.backbone()
    fresh = subject.attach(other, seed=8)
    fresh.load(loaded)
    expect_equal(fresh.state(), saved, "loaded state")
    expect_equal(fresh.frozen(), adapter.frozen(), "frozen parts after loading")
    expected = outputs(backbone, subject.batch())
    expect(same_bits(outputs(other, subject.batch()), expected), "outputs differ after loading")
    wrong = {"another name": {**loaded, "no.such.parameter": torch.zeros(1)}}
    if loaded:
        first = next(iter(loaded))
        changed = {name: tensor + 1 for name, tensor in loaded.items()}
        wrong["a missing name"] = {name: tensor for name, tensor in changed.items() if name != first}
        wrong["a wrong shape"] = {**changed, first: torch.zeros(*loaded[first].shape, 2)}
    for what, refused in wrong.items():
        try:
            fresh.load(refused)
        except UserError:
            expect_equal(fresh.state(), saved, f"state after refusing {what}")
        else:
            raise AssertionError(f"a state with {what} is not refused")
    scatter(adapter, seed=6)
    expect_equal(saved, kept, "a state after its parameters have changed")


def seeds(subject: Subject) -> str | None:
    """Checks that the start of an adapter depends on the seed of its generator, and on nothing else random.

    Also checks that attaching does not change the global random states of torch, random and numpy. Two seeds
    must give different starts, unless the method gives a reason in `fixed_start`, or starts from constants or
    the backbone's weights.
    """
    starts = []
    for seed, ambient in ((3, 0), (3, 1), (4, 1)):
        backbone = subject.backbone()
        torch.default_generator.manual_seed(ambient)
        random.seed(ambient)
        numpy.random.seed(ambient)
        before = _random_states()
        adapter = subject.attach(backbone, seed)
        moved = [name for name, value in _random_states().items() if value != before[name]]
        expect(not moved, f"attach moves the global random state of {', '.join(moved)}")
        starts.append(adapter.state())
    expect_equal(starts[1], starts[0], "the same seed")
    if not subject.adapts:
        return None
    names = adapter.named_parameters()
    if any(not same_bits(starts[2][name], starts[0][name]) for name in names):
        expect(not subject.method.fixed_start, f"seeds give other starts, yet: {subject.method.fixed_start}")
        return None
    weights = subject.backbone().module.state_dict().values()
    drawn = [
        name
        for name in names
        if not (starts[0][name] == starts[0][name].flatten()[0]).all()
        and not any(torch.equal(starts[0][name], weight) for weight in weights)
    ]
    if drawn and subject.method.fixed_start:
        return f"one start for all seeds: {subject.method.fixed_start}"
    expect(not drawn, f"another seed gives the same start: {drawn[:4]} (see Method.fixed_start)")
    return "starts from constants"


def _random_states() -> dict[str, str]:
    return {
        "torch": repr(torch.get_rng_state().tolist()),
        "random": repr(random.getstate()),
        "numpy": repr(numpy.random.get_state(legacy=False)["state"]),
    }
