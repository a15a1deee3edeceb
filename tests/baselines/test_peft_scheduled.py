"""Tests AdaLoRA and Lily, which need more from a loop or a backbone than peft's other types."""

from __future__ import annotations

from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, PeftModel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tensorbench.methods import Adapter, Geometry, Site, UserError, create
from tensorbench.methods.skeleton import SkeletonBackbone

from ..messages import naming

GEOMETRY = Geometry(24, 3, 4, 60, encoder=1)
ADALORA = {
    "type": "ADALORA",
    "rank": 2,
    "config": {"init_r": 4, "tinit": 2, "tfinal": 3, "deltaT": 2},
    "targets": "qkvo+mlp",
}
LILY = {"type": "LILY", "rank": 4, "config": {"stride_A": 3, "num_B": 2}}
STEPS = 10


def put(options: dict[str, Any], seed: int = 0) -> tuple[SkeletonBackbone, Adapter]:
    """A backbone that is the same in every call, and an adapter on it whose start is drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = SkeletonBackbone.random(GEOMETRY)
    return backbone, create("peft", **options).attach(backbone, torch.Generator().manual_seed(seed))


def examples() -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(1)
    return torch.randn(16, 24, generator=draws), torch.randint(3, (16,), generator=draws)


def train(
    backbone: SkeletonBackbone, adapter: Adapter, after: Collection[int] = range(1, STEPS + 1)
) -> list[int]:
    """Trains as `tensorbench.training.loop` does, but calls `after_step` only after these steps.

    Returns the number of triplets in use after every step.
    """
    x, labels = examples()
    optimizer = torch.optim.AdamW(adapter.parameter_groups(), lr=0.02)
    adapter.begin_training(STEPS)
    left = []
    for step in range(1, STEPS + 1):
        loss, extra = F.cross_entropy(backbone.module(x), labels), adapter.extra_loss()
        optimizer.zero_grad()
        (loss if extra is None else loss + extra).backward()
        optimizer.step()
        if step in after:
            adapter.after_step(step, optimizer)
        weights = [value for name, value in adapter.named_parameters().items() if "lora_E" in name]
        left.append(sum(int(weight.count_nonzero()) for weight in weights))
    return left


class _Labelled(nn.Module):
    """A model in the form that peft expects, which computes its own loss."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head, self.wrapped = module.encoder, module.head, [module]

    def forward(self, x: Tensor, labels: Tensor) -> SimpleNamespace:
        return SimpleNamespace(loss=F.cross_entropy(self.wrapped[0](x), labels))


def test_adalora_trains_as_by_peft_itself() -> None:
    backbone, adapter = put(ADALORA)
    start = adapter.state()
    left = train(backbone, adapter)
    plain, other = put(ADALORA)
    other.detach()
    config = AdaLoraConfig(
        init_r=4,
        target_r=2,
        tinit=2,
        tfinal=3,
        deltaT=2,
        total_step=STEPS,
        target_modules=[plain.path(site) for site in adapter.bases],
    )
    model = PeftModel(_Labelled(plain.module), config)
    trained = [p for name, p in model.named_parameters() if "lora_" in name and p.requires_grad]
    head = list(plain.head.parameters())
    for parameter in head:
        parameter.requires_grad_(True)
    with torch.no_grad():
        for parameter, value in zip(trained, start.values(), strict=True):
            parameter.copy_(value)
    optimizer = torch.optim.AdamW([*trained, *head], lr=0.02)
    x, labels = examples()
    for step in range(1, STEPS + 1):
        # The forward of peft's own AdaLoRA model adds the orthogonality term to the loss.
        model.base_model(x=x, labels=labels).loss.backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    for mine, peft in zip(adapter.named_parameters().values(), trained, strict=True):
        torch.testing.assert_close(mine, peft, rtol=1e-4, atol=1e-6)
    sites = len(adapter.bases)
    assert left[0] == 4 * sites
    assert left[-1] == 2 * sites


def test_adalora_counts_what_is_left_and_stores_nothing_else() -> None:
    method = create("peft", **ADALORA)
    per_rank = 4 * (4 * (24 + 24 + 1) + 2 * (24 + 60 + 1))
    assert (method.count(GEOMETRY), method.peak_count(GEOMETRY)) == (2 * per_rank, 4 * per_rank)
    backbone, adapter = put(ADALORA)
    assert adapter.parameter_count == method.peak_count(GEOMETRY)
    assert not adapter.settled
    train(backbone, adapter)
    assert adapter.settled
    state, x = adapter.state(), examples()[0]
    ranks = {name: len(value) for name, value in state.items() if "lora_E" in name}
    assert sum(ranks.values()) == 2 * 24
    assert len(set(ranks.values())) > 1, "pruning was even, and shows nothing"
    assert adapter.parameter_count == sum(value.numel() for value in state.values()) < 3 * per_rank
    backbone.module.eval()
    expected, head = backbone.module(x), backbone.head.state_dict()
    fresh, other = put(ADALORA, seed=9)
    fresh.head.load_state_dict(head)
    other.load(state)
    torch.testing.assert_close(fresh.module.eval()(x), expected)
    assert other.parameter_count == adapter.parameter_count
    for name, value in other.state().items():
        assert torch.equal(value, state[name])
    for site, (down, up) in other.factors().items():
        torch.testing.assert_close(up @ down, adapter.delta(site))
        assert len(down) == max(1, ranks[f"model.encoder.{site}.lora_E.default"])
    broken = {**state, "model.encoder.0.query.lora_E.default": torch.zeros(1, 1)}
    with pytest.raises(UserError, match=r"0\.query"):
        other.load(broken)


def test_a_budget_cannot_end_above_the_start() -> None:
    method = create("peft", type="ADALORA", config={"init_r": 3}).fit(GEOMETRY, 5_000)
    with pytest.raises(UserError, match=naming("config.init_r", 3)):
        method.check(GEOMETRY, GEOMETRY.projections)


def test_a_schedule_needs_its_steps() -> None:
    method = create("peft", **ADALORA)
    method.check_steps(6)
    with pytest.raises(UserError, match=r"6 .*\(got 5\)"):
        method.check_steps(5)
    _, adapter = put(ADALORA)
    with pytest.raises(UserError, match="at least 6"):
        adapter.begin_training(5)


def test_adalora_has_to_be_begun_before_its_steps() -> None:
    _, adapter = put(ADALORA)
    optimizer = torch.optim.AdamW(adapter.parameter_groups())
    with pytest.raises(UserError, match=naming("after_step", "begin_training(steps)")):
        adapter.after_step(1, optimizer)


def test_adalora_prunes_for_the_last_time_at_the_first_call_after_that_step() -> None:
    backbone, adapter = put(ADALORA)
    # Step 7 is that of the last pruning.
    left = train(backbone, adapter, after=(1, 2, 4, 5, 8, 9, 10))
    assert left[6] > left[7] == left[-1] == 2 * len(adapter.bases)
    assert adapter.settled
    with pytest.raises(UserError, match=naming("step", 7, "every step", 8)):
        train(*put(ADALORA), after=(8,))


def test_lily_shares_by_projection_and_answers_by_batch() -> None:
    backbone, adapter = put(LILY)
    parts = {site: backbone.module.get_submodule(backbone.path(site)) for site in adapter.bases}

    def weight(layer: int, projection: str, part: str) -> Tensor:
        return getattr(parts[Site(layer, projection)], part)["default"].weight

    assert weight(0, "key", "lily_A") is weight(2, "key", "lily_A")
    assert weight(2, "key", "lily_A") is not weight(3, "key", "lily_A")
    assert weight(0, "key", "lily_B") is weight(3, "key", "lily_B")
    assert weight(0, "key", "lily_A") is not weight(0, "value", "lily_A")
    assert weight(0, "key", "lily_router") is not weight(1, "key", "lily_router")
    sizes = sum(2 * 4 * 24 + 2 * 4 * out + 4 * 4 * 2 for out in (24, 24, 24))
    assert adapter.parameter_count == create("peft", **LILY).count(GEOMETRY) == sizes
    train(backbone, adapter)
    x = examples()[0]
    assert not torch.allclose(backbone.module(x)[:1], backbone.module(x[:1]), atol=1e-6)
    with pytest.raises(UserError, match=naming("LILY", "merged")):
        adapter.merge()
    with pytest.raises(UserError, match="router averages"):
        adapter.delta(Site(0, "key"))


def test_counts_are_those_of_a_base_model() -> None:
    base = Geometry(768, 12, 12, 3072)
    lora = create("lora", rank=4).count(base)
    adalora = create("peft", type="ADALORA").fit(base, lora)
    lily = create("peft", type="LILY", config={"stride_A": 4, "num_B": 3}).fit(base, lora)
    assert (adalora.size, adalora.count(base), adalora.peak_count(base)) == ((4,), 221_328, 331_992)
    assert (lily.size, lily.count(base)) == ((16,), 222_912)


def test_the_orthogonality_of_adalora_makes_nothing_on_the_host() -> None:
    class Hosted(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = function(*args, **(kwargs or {}))
            if isinstance(made, Tensor) and made.device.type == "cpu":
                hosted.append(str(function))
            return made

    backbone, adapter = put(ADALORA)
    backbone.module.to("meta")
    hosted: list[str] = []
    with Hosted():
        extra = adapter.extra_loss()
    assert extra is not None
    assert extra.device.type == "meta"
    assert hosted == []
