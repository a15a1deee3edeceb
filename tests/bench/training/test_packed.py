"""Trials that train together come out as they do alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

import pytest
import torch

import bench.training.packed
import bench.training.trial
from bench.execution.perform import Event, perform_all
from bench.plan.trial import Trial
from bench.training.loop import Pruned
from bench.training.packed import _Member, kin, why_alone
from bench.training.seeding import Streams
from bench.training.shared import Share, SharedEncoder, View, _Rows
from bench.training.trial import Resources
from bench.wire.trial import Ending, Progress
from bench.wire.words import Measure, Tag

from ..toy_suites import DIGITS, MOVIES, TEXT, VISION, plan

STEPS = 4
#: A step of it leaves nothing finite.
DIVERGES = {"method": "lora", "rank": 2, "training": {"lr": 1e20, "head_lr": 1e20}}


def trials(
    base: dict[str, Any], methods: Sequence[Any], seeds: Sequence[int] = (0,), **training: Any
) -> list[Trial]:
    recipe = {"batch_size": 16, "steps": STEPS, "lr": 1e-2, **training}
    return list(plan(base, methods=list(methods), seeds=list(seeds), training=recipe).trials)


class Heard:
    """What trials told, and how they ended."""

    def __init__(self) -> None:
        self.told: dict[str, list[Progress]] = {}
        self.endings: dict[str, Ending] = {}

    def __call__(self, event: Event) -> None:
        if event.progress:
            self.told.setdefault(event.trial.id, []).append(event.progress)
        if event.ending:
            self.endings[event.trial.id] = event.ending

    def curve(self, trial: Trial) -> list[float]:
        """Its losses, those of validation too, and what is scored of it."""
        told = self.told.get(trial.id, [])
        losses = [loss for progress in told for _, loss in progress.losses]
        validated = [progress.validation_loss for progress in told if progress.validation_loss is not None]
        metrics = self.endings[trial.id].metrics
        scored = [
            metrics[key] for key in (Measure.SCORE_LOSS, Measure.SCORE, Measure.SELECTED_EPOCH) if metrics
        ]
        return [*losses, *validated, *scored]


def together(made: Sequence[Trial], resources: Resources | None = None) -> Heard:
    heard = Heard()
    perform_all(made, resources or Resources("cpu"), "", heard)
    return heard


def expect_alike(made: Sequence[Trial], packed: Heard) -> None:
    """That each trial of a pack came out as it does alone, and that they are not all alike."""
    resources = Resources("cpu")
    curves = []
    for trial in made:
        alone = together([trial], resources)
        ending, expected = packed.endings[trial.id], alone.endings[trial.id]
        assert (ending.status, ending.message) == (expected.status, expected.message)
        assert packed.curve(trial) == pytest.approx(alone.curve(trial), rel=1e-4, abs=1e-5)
        curves.append(tuple(packed.curve(trial)))
    assert len(set(curves)) == len(curves)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many trials each forward was of."""
    real, counts = SharedEncoder.read, list[int]()

    def counted(shared: SharedEncoder, reader: Any, shares: Any, *, learns: bool) -> Any:
        counts.append(len(shares))
        return real(shared, reader, shares, learns=learns)

    monkeypatch.setattr(SharedEncoder, "read", counted)
    return counts


def test_seeds_rates_scales_ranks_and_methods_may_differ_where_all_batches_are_of_one_width(
    read: list[int],
) -> None:
    rows: list[Any] = [
        {"method": "lora", "rank": 2, "dropout": 0.3},
        {"method": "tenslora", "variant": "qkv_depth", "dropout": 0.2, "training": {"lr": 2e-2}},
        {"method": "peft", "type": "LOHA", "rank": 2},
        {"method": "peft", "type": "LILY", "rank": 2},
        {"method": "peft", "type": "ADALORA", "rank": 2},
    ]
    how: dict[str, Any] = {"clip": 0.5, "augmentation": ["flip"]}
    made = trials(VISION, rows, **how) + trials(VISION, [rows[0], "head_only", DIVERGES], seeds=[1], **how)
    assert len({kin(trial) for trial in made}) == 1
    expect_alike(made, together(made))
    # Of four steps, of validation and of both batches of the test, at which one is not there any more.
    assert read == [8] * STEPS + [7] * 3


def test_each_trial_has_its_own_of_what_the_backbone_drops() -> None:
    rows = [
        {"method": "lora", "rank": 2},
        {"method": "lotr", "dropout": 0.3},
        {"method": "lora", "scale": 3.0},
    ]
    even = {**TEXT, "tasks": [{**MOVIES, "padding": "max_tokens"}]}
    made = trials(even, rows, seeds=(0, 1), steps=2)
    assert len({kin(trial) for trial in made}) == 1
    expect_alike(made, together(made))
    # Otherwise batches of other seeds are of other widths, and are not read together.
    assert len({kin(trial) for trial in trials(TEXT, rows, seeds=(0, 1))}) == 2


@pytest.mark.parametrize(
    "rows",
    [
        [{"method": "lora", "rank": 2}, {"method": "lora", "rank": 5, "scale": 2.0}],
        [
            {"method": "tenslora", "variant": "qkv_depth", "ranks": ranks}
            for ranks in ([2, 3, 2, 2], [4, 2, 3, 2])
        ],
        [{"method": "lora_xs", "rank": 2}, {"method": "lora_xs", "rank": 3}],
        [{"method": "lorta", "rank": 2}, {"method": "lorta", "rank": 3, "scale": 0.5}],
    ],
    ids=["peft", "shared", "matrix", "diagonal"],
)
def test_low_rank_updates_are_batched_products(rows: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("rows went through layers one by one")

    made = trials(VISION, rows, steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(_Rows, "_one_by_one", never)
        heard = together(made)
    assert {ending.tags[Tag.PACKED] for ending in heard.endings.values()} == {"2"}
    expect_alike(made, heard)


def test_what_trains_the_backbone_itself_runs_alone_and_harms_no_other(read: list[int]) -> None:
    made = trials(VISION, ["lora", "full", {"method": "lora", "scale": 2.0}], steps=2)
    resources = Resources("cpu")
    backbone = resources.backbone(made[0])
    with pytest.warns(UserWarning, match="runs alone: its method trains the backbone's own weights") as told:
        heard = together(made, resources)
    assert len(told) == 1
    assert {ending.tags.get(Tag.PACKED) for ending in heard.endings.values()} == {"3", ""}
    assert resources.backbone(made[0]) is backbone
    assert read[:2] == [2, 2]
    expect_alike(made, heard)


@pytest.mark.parametrize(
    ("where", "name", "time", "alone", "error"),
    [
        (SharedEncoder, "read", 8, 2, torch.OutOfMemoryError),
        (bench.training.trial, "evaluate", 1, 1, torch.OutOfMemoryError),
        (bench.training.trial, "evaluate", 1, 1, ValueError),
        (bench.training.packed, "SharedEncoder", 1, 2, torch.OutOfMemoryError),
    ],
)
def test_what_fails_only_beside_others_costs_no_trial(
    where: Any, name: str, time: int, alone: int, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In what trials share, in the second epoch; in what is one's own; before they begin."""
    made = trials(VISION, ["lora", "lotr"], epochs=2, steps=None)
    real, calls = getattr(where, name), [0]

    def short(*given: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == time:
            raise error("none left")
        return real(*given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(where, name, short)
        with pytest.warns(UserWarning, match="runs alone: .*none left") as told:
            heard = together(made)
    assert len(told) == alone
    # What was told of the first epoch is not told again.
    expect_alike(made, heard)


def test_a_trial_that_reads_otherwise_than_alone_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it would over a backbone that mixes the examples of a batch."""
    made = trials(VISION, ["lora", "lotr"], steps=1)
    real = SharedEncoder.read
    with monkeypatch.context() as patch:
        patch.setattr(SharedEncoder, "read", lambda *given, **options: real(*given, **options).flip(0))
        with pytest.warns(UserWarning, match="reads otherwise than alone") as told:
            heard = together(made)
    assert len(told) == 2
    expect_alike(made, heard)


def test_one_is_pruned_and_the_others_go_on() -> None:
    first, second = trials(VISION, ["lora", "lotr"])
    heard = Heard()

    def listen(event: Event) -> None:
        heard(event)
        if event.trial is first and event.progress:
            raise Pruned

    perform_all([first, second], Resources("cpu"), "", listen)
    assert {id_: ending.status for id_, ending in heard.endings.items()} == {
        first.id: "pruned",
        second.id: "finished",
    }
    expect_alike([second], heard)


@pytest.mark.parametrize("when", ["started", "progress", "finished"])
def test_an_interrupt_ends_all_of_them_and_leaves_a_clean_backbone(when: str) -> None:
    made, resources = trials(VISION, ["lora", "lotr"], steps=1), Resources("cpu")
    backbone, before = resources.backbone(made[0]), threading.active_count()
    state = torch.get_rng_state()

    def interrupted(event: Event) -> None:
        if event.kind == when and event.trial is made[1]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        perform_all(made, resources, "", interrupted, (KeyboardInterrupt,))
    assert resources.backbone(made[0]) is backbone
    assert not any(thread.name.startswith("trial ") for thread in threading.enumerate())
    assert threading.active_count() == before
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("time", [1, 2, 5])
def test_an_interrupt_before_a_trial_has_its_answer_ends_all_of_them(
    time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, raised = trials(VISION, ["lora", "lotr"], steps=1), list[BaseException]()
    real, calls = bench.training.packed._Member.answer, [0]

    def interrupted(member: Any, answer: object) -> None:
        calls[0] += 1
        if calls[0] == time:
            raise KeyboardInterrupt
        real(member, answer)

    def run() -> None:
        try:
            perform_all(made, Resources("cpu"), "", Heard(), (KeyboardInterrupt,))
        except BaseException as error:
            raised.append(error)

    monkeypatch.setattr(bench.training.packed._Member, "answer", interrupted)
    # What hangs is to fail, so that it runs in a thread of its own.
    caller = threading.Thread(target=run, daemon=True)
    caller.start()
    caller.join(60)
    assert [type(error) for error in raised] == [KeyboardInterrupt]
    assert not any(thread.name.startswith("trial ") for thread in threading.enumerate())


def test_a_site_whose_own_layer_was_changed_computes_with_it() -> None:
    (trial,) = trials(VISION, ["head_only"])
    resources = Resources("cpu")
    backbone = resources.backbone(trial)
    batch = resources.data(trial, backbone.info.input).train.batch(torch.arange(2))
    changes: list[Callable[[Any], Any]] = [
        lambda layer: layer.register_forward_hook(lambda _, given, output: 2 * output),
        lambda layer: layer.register_forward_pre_hook(lambda _, given: (2 * given[0],)),
        lambda layer: setattr(layer, "forward", torch.zeros_like),
        lambda layer: setattr(layer, "bias", torch.nn.Parameter(torch.ones(layer.out_features))),
        lambda layer: setattr(layer, "weight", torch.nn.Parameter(2 * layer.weight)),
    ]
    for change in changes:
        shared, view = SharedEncoder(backbone), View(backbone)
        layers = shared.layers(view)
        plain = view.module.pool(view.module.encoder, **batch)
        change(layers[shared.sites[0]])
        expected = view.module.pool(view.module.encoder, **batch)
        share = Share(batch, layers, Streams(torch.device("cpu")), draws=False)
        found = shared.read(view.module.pool, [share], learns=False)
        assert torch.allclose(found, expected, atol=1e-6)
        assert not torch.allclose(found, plain, atol=1e-4)


def test_a_trial_that_changes_the_backbone_harms_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    made = trials(VISION, ["lora", "lotr"], steps=2)
    resources = Resources("cpu")
    backbone, real, calls = resources.backbone(made[0]), bench.training.trial.evaluate, [0]

    def spoils(*given: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == 1:
            next(backbone.module.encoder.parameters()).data.add_(1.0)
        return real(*given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(bench.training.trial, "evaluate", spoils)
        with (
            pytest.warns(UserWarning, match="runs alone: a trial of its pack changed the backbone") as told,
            pytest.warns(UserWarning, match="loaded anew"),
        ):
            heard = together(made, resources)
    assert len([one for one in told if "runs alone" in str(one.message)]) == 2
    expect_alike(made, heard)


def test_costs_that_are_not_a_trials_own_are_left_out() -> None:
    made = trials(VISION, ["lora", "lotr"], steps=8)
    for ending in together(made).endings.values():
        assert not {Measure.STEP_MS, Measure.PEAK_MIB} & set(ending.metrics)
        assert ending.metrics[Measure.SECONDS] > 0
    assert Measure.STEP_MS in together(made[:1]).endings[made[0].id].metrics


def test_a_trial_takes_the_device_in_its_own_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    (trial,), taken = trials(VISION, ["lora"]), []

    def take(device: torch.device) -> None:
        taken.append((device, threading.current_thread()))

    said: SimpleQueue[Any] = SimpleQueue()
    member = _Member(trial, Resources("cpu"), lambda trial, place, tell: place.backbone(trial), said)
    monkeypatch.setattr(bench.training.packed, "take_device", take)
    member.answer(None)
    member.thread.start()
    assert said.get().result is member.view
    assert taken == [(torch.device("cpu"), member.thread)]


def test_what_cannot_run_with_others_is_known_before() -> None:
    plain, compiled = (trials(VISION, ["lora"], compile=on)[0] for on in (False, True))
    assert (why_alone(plain), why_alone(compiled)) == ("", "its recipe has compile: true")
    other = trials({**VISION, "tasks": [{**DIGITS, "train_size": 50}]}, ["lora"])[0]
    halved = trials(VISION, ["lora"], batch_size=8)[0]
    per_seed = trials({**VISION, "tasks": [{**DIGITS, "split": "per_seed"}]}, ["lora"], seeds=(0, 1))
    assert len({kin(trial) for trial in (plain, other, halved, *per_seed)}) == 5
