"""What is stored and what is drawn: an adapter's state, and its start by a seed."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import numpy
import torch
from safetensors.torch import load_file, save_file

from bench.conformance.subject import Subject, expect, expect_equal, outputs, same_bits, scatter
from methods.errors import UserError


def state(subject: Subject) -> None:
    """A saved adapter gives the same outputs on another backbone; one that does not fit changes nothing."""
    backbone, adapter = subject.randomised()
    saved = adapter.state()
    expect(
        sum(tensor.numel() for tensor in saved.values()) == subject.method.count(subject.geometry),
        "state() does not hold each parameter once",
    )
    kept = {name: tensor.clone() for name, tensor in saved.items()}
    with tempfile.TemporaryDirectory() as folder:
        save_file(saved, Path(folder) / "adapter.safetensors")
        loaded = load_file(Path(folder) / "adapter.safetensors")
    other = subject.backbone()
    fresh = subject.attach(other, seed=8)
    fresh.load(loaded)
    expect_equal(fresh.state(), saved, "loaded state")
    wanted = outputs(backbone, subject.batch())
    expect(same_bits(outputs(other, subject.batch()), wanted), "outputs differ after loading")
    wrong = {"another name": {**loaded, "no.such.parameter": torch.zeros(1)}}
    if loaded:
        first = next(iter(loaded))
        changed = {name: tensor + 1 for name, tensor in loaded.items()}
        wrong["a missing name"] = {name: tensor for name, tensor in changed.items() if name != first}
        wrong["a wrong shape"] = {**changed, first: torch.zeros(*loaded[first].shape, 2)}
    for what, given in wrong.items():
        try:
            fresh.load(given)
        except UserError:
            expect_equal(fresh.state(), saved, f"state after refusing {what}")
        else:
            raise AssertionError(f"a state with {what} is not refused")
    scatter(adapter, seed=6)
    expect_equal(saved, kept, "a state after its parameters have changed")


def seeds(subject: Subject) -> str | None:
    """The generator alone decides the start; the global random state is neither read nor moved."""
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
    if all(same_bits(starts[2][name], tensor) for name, tensor in starts[0].items()):
        weights = subject.backbone().module.state_dict().values()
        drawn = [
            name
            for name, tensor in starts[0].items()
            if not (tensor == tensor.flatten()[0]).all() and not any(torch.equal(tensor, w) for w in weights)
        ]
        expect(not drawn, f"another seed gives the same start: {drawn[:4]}")
        return "starts from constants"
    return None


def _random_states() -> dict[str, str]:
    return {
        "torch": repr(torch.get_rng_state().tolist()),
        "random": repr(random.getstate()),
        "numpy": repr(numpy.random.get_state(legacy=False)["state"]),
    }
