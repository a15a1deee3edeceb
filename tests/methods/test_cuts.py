"""Tests cutting ranks in training: which ranks stay, what is left of the update, and AdamW's moments."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from tensorbench.methods import Geometry, Method, UserError, create
from tensorbench.methods.lowrank import LowRankAdapter
from tensorbench.methods.lowrank.cutting import Cuts, kept_ranks

from ..messages import naming
from .toy import ToyBackbone, scatter

GEOMETRY = Geometry(12, 3, 4, 48)
EXACT = {"rtol": 1e-10, "atol": 1e-10}

TUCKER = {"method": "tenslora", "variant": "att_qkv_depth", "ranks": (4, 3, 3, 3, 4)}
SEVERAL = {"method": "tenslora", "variant": "qkv", "ranks": (5, 4, 2), "targets": "qkvo"}
TRAIN = {"method": "metatt", "rank": 3}
HEADS = {"method": "metatt", "rank": 4, "modes": "5d", "targets": "qkvo"}
ALL = pytest.mark.parametrize(
    "options", [TUCKER, SEVERAL, TRAIN, HEADS], ids=["tucker", "tuckers", "train", "train-of-heads"]
)


def made(options: dict[str, Any], **cuts: Any) -> Method:
    return uncut({**options, "cuts": {"times": 1, "first": 0.5, "last": 0.5, **cuts}})


def uncut(options: dict[str, Any]) -> Method:
    return create(options["method"], **{key: value for key, value in options.items() if key != "method"})


def attached(method: Method) -> tuple[ToyBackbone, LowRankAdapter]:
    backbone = ToyBackbone(GEOMETRY)
    adapter = method.attach(backbone, torch.Generator().manual_seed(0))
    assert isinstance(adapter, LowRankAdapter)
    return backbone, adapter


def scattered(method: Method, sd: float = 1.0) -> tuple[ToyBackbone, LowRankAdapter]:
    """A backbone with an adapter whose parameters are all random."""
    backbone, adapter = attached(method)
    scatter(adapter.named_parameters(), seed=1, sd=sd)
    return backbone, adapter


def dense(adapter: LowRankAdapter) -> list[Tensor]:
    """Builds every tensor densely from the bare parameters, without the code under test."""
    parameters = [parameter.detach() for parameter in adapter.named_parameters().values()]
    if is_train(adapter):
        bonds = itertools.pairwise("abcdefg"[: len(parameters) + 1])
        terms = [f"{left}{mode}{right}" for (left, right), mode in zip(bonds, "uvwxyz", strict=False)]
        modes = "uvwxyz"[: len(parameters)]
        return [torch.einsum(f"{','.join(terms)}->{modes}", *parameters)]
    tensors = []
    while parameters:
        core, parameters = parameters[0], parameters[1:]
        factors, parameters = parameters[: core.dim()], parameters[core.dim() :]
        terms = [f"{mode}{bond}" for mode, bond in zip("abcde", "uvwxy"[: core.dim()], strict=False)]
        tensors.append(torch.einsum(f"{'uvwxy'[: core.dim()]},{','.join(terms)}", core, *factors))
    return tensors


def is_train(adapter: LowRankAdapter) -> bool:
    return "cores.0" in adapter.named_parameters()


def truncated(tensor: Tensor, ranks: list[int], *, train: bool) -> Tensor:
    """Projects a tensor on the leading singular vectors of its unfoldings.

    For a Tucker tensor, all modes use the unfoldings of the tensor itself. For a tensor train (`train`), the
    bonds are projected from the last to the first, and each uses an unfolding of the result so far.
    """
    expected = tensor
    for index, rank in reversed(list(enumerate(ranks))):

        def unfold(parameter: Tensor, index: int = index) -> Tensor:
            return parameter.flatten(0, index).flatten(1) if train else parameter.movedim(index, 0).flatten(1)

        leading = torch.linalg.svd(unfold(expected if train else tensor), full_matrices=False).U[:, :rank]
        projected = leading @ (leading.T @ unfold(expected))
        moved = tensor if train else tensor.movedim(index, 0)
        expected = projected.reshape(moved.shape)
        expected = expected if train else expected.movedim(0, index)
    return expected


def descended(backbone: ToyBackbone, adapter: LowRankAdapter) -> None:
    """Computes the gradients of an arbitrary loss."""
    draws = torch.Generator().manual_seed(2)
    x = torch.randn(5, 3, 12, generator=draws, dtype=torch.float64)
    backbone.module.zero_grad()
    F.cross_entropy(backbone.module(x), torch.tensor([0, 1, 2, 0, 1])).backward()


@ALL
def test_a_cut_leaves_the_dense_tensor_truncated(options: dict[str, Any]) -> None:
    method = made(options)
    backbone, adapter = scattered(method)
    before, started = dense(adapter), adapter.parameter_count
    assert started == method.peak_count(GEOMETRY) > method.count(GEOMETRY)
    optimizer = torch.optim.AdamW(adapter.parameter_groups())
    adapter.begin_training(10)
    adapter.after_step(4, optimizer)
    assert (adapter.parameter_count, adapter.settled) == (started, False)
    adapter.after_step(5, optimizer)
    left = adapter.final_ranks()
    assert adapter.settled
    assert adapter.parameter_count == method.count_left(GEOMETRY, left) <= method.count(GEOMETRY)
    ranks = [rank for (rank,) in left.values()]
    for tensor, cut in zip(before, dense(adapter), strict=True):
        torch.testing.assert_close(cut, truncated(tensor, ranks, train=is_train(adapter)), **EXACT)
        assert (cut - tensor).norm() > 1e-3 * tensor.norm()
    # The forward has the new shapes and follows the update.
    x = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = backbone.module(x)
    adapter.merge()
    torch.testing.assert_close(backbone.module(x), expected, **EXACT)


@ALL
def test_moments_turn_as_gradients_do(options: dict[str, Any]) -> None:
    """Cuts only singular values that are zero, so that the update stays the same.

    AdamW's first moment must then be the gradient with respect to the new parameters.
    """
    # Larger updates make the backbone chaotic: a last digit, rounded differently by another processor, would
    # change every gradient.
    backbone, adapter = scattered(made(options), sd=0.3)
    cutting = adapter.parametrisation.cutting
    assert cutting is not None
    singular, cut = cutting.tensor.spectrum()
    spectra = [values.tolist() for values in singular]
    ranks = kept_ranks(spectra, cutting.count, cutting.tensor.room, 10**9)
    descended(backbone, adapter)
    optimizer = torch.optim.AdamW(adapter.parameter_groups(), lr=0.0, betas=(0.5, 0.5), weight_decay=0.0)
    optimizer.step()
    named = adapter.named_parameters()
    means = {name: 2 * optimizer.state[value]["exp_avg"] for name, value in named.items()}
    torch.testing.assert_close(
        means, {name: parameter.grad for name, parameter in adapter.named_parameters().items()}, **EXACT
    )
    for change in cut(ranks):
        change.apply(optimizer)
    descended(backbone, adapter)
    for parameter in adapter.named_parameters().values():
        torch.testing.assert_close(
            2 * optimizer.state[parameter]["exp_avg"], parameter.grad, rtol=1e-8, atol=1e-8
        )
        assert optimizer.state[parameter]["exp_avg_sq"].shape == parameter.shape
        assert bool((optimizer.state[parameter]["exp_avg_sq"] >= 0).all())


def test_other_state_of_an_optimizer_is_dropped() -> None:
    backbone, adapter = attached(made(TUCKER))
    optimizer = torch.optim.SGD(adapter.parameter_groups(), lr=0.01, momentum=0.9)
    adapter.begin_training(10)
    for step in range(1, 8):
        descended(backbone, adapter)
        optimizer.step()
        adapter.after_step(step, optimizer)
    assert adapter.settled
    assert all(
        optimizer.state[parameter]["momentum_buffer"].shape == parameter.shape
        for parameter in adapter.named_parameters().values()
    )


@ALL
def test_a_loop_may_keep_the_loss_of_the_step_before_a_cut(options: dict[str, Any]) -> None:
    backbone, adapter = attached(made(options))
    optimizer = torch.optim.AdamW(adapter.parameter_groups(), lr=0.01)
    x = torch.randn(5, 3, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    losses = []
    adapter.begin_training(10)
    for step in range(1, 8):
        optimizer.zero_grad()
        losses.append(backbone.module(x).square().mean())
        losses[-1].backward()
        for parameter in adapter.named_parameters().values():
            assert parameter.grad is not None
            assert parameter.grad.shape == parameter.shape
        optimizer.step()
        adapter.after_step(step, optimizer)
    assert adapter.settled
    start = attached(made(options))[1].state()
    shorter = adapter.state()
    adapter.load(start)
    backbone.module(x).square().mean().backward()
    adapter.load(shorter)
    assert losses[-1] < losses[0]


@ALL
def test_a_fresh_adapter_takes_what_was_cut(options: dict[str, Any]) -> None:
    method = made(options, times=2, first=0.2)
    backbone, adapter = attached(method)
    optimizer = torch.optim.AdamW(adapter.parameter_groups(), lr=0.02)
    adapter.begin_training(10)
    counts = []
    for step in range(1, 11):
        descended(backbone, adapter)
        optimizer.step()
        adapter.after_step(step, optimizer)
        counts.append(adapter.parameter_count)
    assert method.peak_count(GEOMETRY) == counts[0] > counts[1] >= counts[4] == counts[9]
    state = adapter.state()
    _, other = attached(method)
    other.load(state)
    assert other.final_ranks() == adapter.final_ranks()
    for name, value in other.state().items():
        assert torch.equal(value, state[name])
    for site in adapter.bases:
        assert torch.equal(other.delta(site), adapter.delta(site))
    first = next(iter(state))
    with pytest.raises(UserError, match="does not fit"):
        other.load({**state, first: torch.zeros(1, 1)})
    assert other.final_ranks() == adapter.final_ranks()


@ALL
def test_a_refused_state_leaves_all_ranks_and_values(options: dict[str, Any]) -> None:
    _, adapter = scattered(made(options))
    _, small = scattered(uncut(options))
    before = adapter.state()
    with pytest.raises(UserError, match="another"):
        adapter.load({**small.state(), "another": torch.zeros(1)})
    with pytest.raises(UserError, match="does not fit"):
        adapter.load({name: value.long() for name, value in small.state().items()})
    adapter.merge()
    with pytest.raises(UserError, match="unmerge"):
        adapter.load(small.state())
    torch.testing.assert_close(adapter.state(), before, rtol=0, atol=0)
    adapter.unmerge()
    adapter.load(small.state())
    torch.testing.assert_close(adapter.state(), small.state(), rtol=0, atol=0)


def test_what_costs_least_for_each_parameter_goes_and_nothing_that_fits_is_left_out() -> None:
    def count(ranks: tuple[int, ...]) -> int:
        return 10 * ranks[0] + ranks[1]

    def room(ranks: tuple[int, ...]) -> tuple[int, ...]:
        return (9, 9)

    spectra = [[9.0, 2.0, 1.8], [8.0, 0.7, 0.6, 0.5]]
    # 1.8² / 10 lies between .5² and .6²; the parameters it frees let .5 return.
    assert kept_ranks(spectra, count, room, 33) == (3, 3)
    assert kept_ranks(spectra, count, room, 32) == (2, 4)
    assert kept_ranks(spectra, count, room, 3) == (1, 1)
    # Ranks above the limits set by the other ranks are dropped first.
    assert kept_ranks(spectra, count, lambda ranks: (9, ranks[0]), 99) == (3, 3)


def test_a_training_has_to_be_begun_before_its_steps() -> None:
    _, adapter = attached(made(TUCKER))
    optimizer = torch.optim.AdamW(adapter.parameter_groups())
    with pytest.raises(UserError, match=naming("after_step", "begin_training(steps)")):
        adapter.after_step(1, optimizer)
    # Without cuts, there is nothing to plan.
    attached(uncut(TUCKER))[1].after_step(1, optimizer)


def test_cuts_come_at_the_first_call_after_their_steps() -> None:
    method = made(TUCKER, start=3, times=2, first=0.2, last=0.6)

    def left(*steps: int) -> list[int]:
        _, adapter = scattered(method)
        optimizer = torch.optim.AdamW(adapter.parameter_groups())
        adapter.begin_training(10)
        counts = [adapter.parameter_count]
        for step in steps:
            adapter.after_step(step, optimizer)
            counts.append(adapter.parameter_count)
        return counts

    start, first, final = left(2, 6)
    assert start > first > final
    assert left(1, 3, 5, 7, 9) == [start, start, first, first, final, final]
    # Both cuts come in one, to the budget of the last.
    counts = left(8, 10)
    assert counts[0] == start
    assert first > method.count(GEOMETRY) >= counts[1] == counts[2]


def test_a_model_under_ddp_is_wrapped_again_after_a_cut() -> None:
    def trained(*, again: bool) -> None:
        backbone, adapter = attached(made(TUCKER))
        model = DistributedDataParallel(backbone.module)
        optimizer = torch.optim.AdamW(adapter.parameter_groups(), lr=0.01)
        x = torch.randn(5, 3, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        adapter.begin_training(10)
        for step in range(1, 11):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            adapter.after_step(step, optimizer)
            if again and step == 5:
                model = DistributedDataParallel(backbone.module)

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(RuntimeError):
            trained(again=False)
        trained(again=True)
    finally:
        distributed.destroy_process_group()


def test_cuts_have_to_fit_the_steps_and_the_ranks() -> None:
    cuts = Cuts(times=3, first=0.2, last=0.8)
    assert cuts.steps(10) == (2, 5, 8)
    assert cuts.budgets(80, 16) == (16 + 18, 16 + 2, 16)
    for method in (made(TUCKER, times=30, first=0.1), made(TRAIN, times=30, first=0.1)):
        with pytest.raises(UserError, match=r"steps .1, 1, 2, .* of 12"):
            method.check_steps(12)
    _, adapter = attached(made(TUCKER, last=0.99))
    with pytest.raises(UserError, match=r"steps .10. of 10"):
        adapter.begin_training(10)
    full = made({**TUCKER, "ranks": (12, 4, 3, 3, 4)})
    with pytest.raises(UserError, match="12, 4, 3, 3, 4"):
        full.check(GEOMETRY, GEOMETRY.projections)
