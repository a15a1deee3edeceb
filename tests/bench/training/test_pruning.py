"""Tests AdaLoRA, which prunes during training: budgets, and the stored counts before and after."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from tensorbench.checks.verify import verify
from tensorbench.cli.tables import print_tables
from tensorbench.methods import UserError
from tensorbench.plan.rows import Plan
from tensorbench.records.measures import Measure
from tensorbench.records.stored_plan import row_texts
from tensorbench.records.words import Artifact, Tag
from tensorbench.reports.stored import load_trial
from tensorbench.reports.summary import summarise
from tensorbench.store.store import Store
from tensorbench.store.trained import stored_trial
from tensorbench.training.loop import evaluate
from tensorbench.training.trial import Resources

from ...messages import naming
from ...predicted import frame_of
from ..toy_runs import run_inline
from ..toy_suites import VISION, plan

ADALORA = {"method": "peft", "type": "ADALORA", "config": {"tinit": 1, "tfinal": 2}}
LILY = {"method": "peft", "type": "LILY"}
TUCKER = {"method": "tenslora", "variant": "qkv_depth"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], str]) -> tuple[Store, Plan]:
    store = Store.create(new_store(tmp_path_factory.mktemp("pruned")), "toy")
    planned = plan(VISION, methods=[ADALORA, LILY, TUCKER])
    run_inline(store, planned)
    return store, planned


def test_trials_end_within_their_budget_and_store_both_counts_and_their_ranks(
    made: tuple[Store, Plan],
) -> None:
    store, planned = made
    records = {record.trial_id: record for record in store.records()}
    for row in planned.rows:
        record = records[str(row.trials[0])]
        left = json.loads(record.tag(Tag.FINAL_RANKS, "{}"))
        if row.title != "AdaLoRA":
            assert (row.peak, record.measure(Measure.PEAK_PARAMETERS), left) == (None, None, {})
            continue
        assert row.peak is not None
        stored = record.metrics[Measure.ADAPTER_PARAMETERS]
        assert 0.8 * row.parameters < stored <= row.parameters < row.peak
        assert record.measure(Measure.PEAK_PARAMETERS) == row.peak
        assert list(left) == ["query", "key", "value"]


def test_the_selected_state_answers_as_in_training(made: tuple[Store, Plan]) -> None:
    """Compares outputs bit by bit, even if they depend on the batch or if ranks were pruned."""
    store, planned = made
    resources = Resources("cpu")
    for trial in planned.trials:
        with stored_trial(store.uri, trial.id) as loaded:
            data = resources.data(trial, loaded.backbone.info.input)
            rescored = evaluate(loaded.backbone, loaded.adapter, data.test, trial.recipe, data.objective)
            stored = frame_of(loaded.store.read(loaded.record, Artifact.PREDICTIONS) or b"")
            logits = torch.tensor(stored.filter(like="logit").to_numpy())
            assert torch.equal(rescored.logits, logits), loaded.method.label
            ranks = loaded.record.tag(Tag.FINAL_RANKS)
            assert json.loads(ranks or "{}") == loaded.adapter.final_ranks()


def test_verify_recounts_the_peak_and_the_final_ranks(made: tuple[Store, Plan]) -> None:
    store, _ = made
    assert verify(store=store.uri).ok
    record = next(candidate for candidate in store.records() if candidate.tag(Tag.FINAL_RANKS))
    final_ranks, peak = record.tag(Tag.FINAL_RANKS), record.metrics[Measure.PEAK_PARAMETERS]
    broken: list[tuple[str, float, str]] = [
        (final_ranks, peak + 1, "parameters/adapter_peak by the ranks"),
        (final_ranks.replace('"key":[', '"key":[1'), peak, "parameters/adapter by the final ranks"),
        (final_ranks.replace("key", "head"), peak, "tag final_ranks"),
        ("[]", peak, "tag final_ranks"),
    ]
    for ranks, count, named in broken:
        store.client.set_tag(record.run_id, Tag.FINAL_RANKS, ranks)
        store.client.log_metric(record.run_id, Measure.PEAK_PARAMETERS, count)
        assert [fault.what for fault in verify(store=store.uri).faults] == [named]
    store.client.set_tag(record.run_id, Tag.FINAL_RANKS, final_ranks)
    store.client.log_metric(record.run_id, Measure.PEAK_PARAMETERS, peak)


def test_a_trial_is_shown_with_its_final_ranks(made: tuple[Store, Plan]) -> None:
    store, planned = made
    shown = []
    for trial in planned.trials:
        printed = io.StringIO()
        print_tables(
            load_trial(trial.id, store=store.uri).overview(), console=Console(file=printed, width=120)
        )
        shown.append(" ".join(printed.getvalue().split()))
    adalora, lily, tucker = shown
    assert re.search(r"final ranks, query (\d+ )+\d+, layer by layer final ranks, key", adalora)
    assert "final ranks" not in lily
    assert "final ranks" not in tucker


def test_the_table_of_results_shows_no_ranks_that_training_pruned(made: tuple[Store, Plan]) -> None:
    store, planned = made
    shown = [line["ranks"] for line in summarise(store, planned.stored()).overview("toy").lines]
    assert [ranks == "pruned" for ranks in shown] == [row.title == "AdaLoRA" for row in planned.rows]


@pytest.mark.parametrize("kind", [int, float], ids=["planned", "from a frame"])
def test_a_table_shows_both_counts(kind: type) -> None:
    (row,) = plan(VISION, methods=[ADALORA]).rows
    texts = row_texts(row.model_copy(update={"peak": kind(row.peak or 0)}), "")
    assert texts["params"] == f"{row.parameters:,} (peak {row.peak:,})"


@pytest.mark.parametrize("training", [{"epochs": 1}, {"steps": 4}], ids=["epochs of a known length", "steps"])
def test_a_plan_refuses_a_training_that_is_too_short(training: dict[str, Any]) -> None:
    method = {**ADALORA, "config": {"tinit": 2, "tfinal": 2}}
    with pytest.raises(UserError, match=rf"methods\.0: .*{naming(5, 'steps', 4)}"):
        plan(VISION, methods=[method], training={"batch_size": 16, **training})
