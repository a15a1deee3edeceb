"""Tests that inference times and counts of cut prompts are measured, stored and shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tensorbench
import tensorbench.training.trial
from tensorbench.records.measures import Measure
from tensorbench.training.inference import Forward, timed_sizes
from tensorbench.training.trial import Resources, run_trial

from ...messages import naming
from ..toy_runs import run
from ..toy_suites import TEXT, plan

ANSWERS = {"prompt": "{text} :", "words": [" no", " yes"]}
DECODER = {
    **TEXT,
    "backbones": ["tiny-random-llama"],
    "tasks": [{**TEXT["tasks"][0], "verbalizer": ANSWERS}],
    "training": {"batch_size": 16, "steps": 1, "lr": 1e-2},
    "forgetting": "none",
}


def test_a_worker_measures_a_method_once_and_its_result_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[float] = []

    def counted(self: Forward) -> float:
        timed.append(real(self))
        return timed[-1]

    real = Forward.ms
    monkeypatch.setattr(Forward, "ms", counted)
    made = plan(TEXT, methods=["lora", {"method": "loretta_adp", "rank": 2}], seeds=[0, 1])
    resources = Resources("cpu")
    clean = resources.backbone(made.trials[0]).fingerprint()
    trials = sorted(made.trials, key=lambda trial: (trial.method["method"], trial.seed))
    outcomes = [run_trial(trial, resources, lambda _: None) for trial in trials]
    names = (Measure.ADAPTED_MS, Measure.MERGED_MS, Measure.BARE_MS, Measure.TIMED_EXAMPLES)
    lora, repeated, adapter, _ = ([outcome.measures[name] for name in names] for outcome in outcomes)
    # With the adapter, merged, and bare; methods that do not change weights are not merged.
    assert len(timed) == 3 + 2
    assert lora == repeated == [*timed[:3], 8]
    assert adapter == [timed[3], None, timed[4], 8]
    assert resources.backbone(made.trials[0]).fingerprint() == clean


def test_a_gpu_is_also_timed_with_a_batch_that_fills_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert timed_sizes(torch.device("cpu")) == (8,)
    assert timed_sizes(torch.device("cuda:1")) == (8, 256)
    monkeypatch.setattr(tensorbench.training.trial, "timed_sizes", lambda device: (8, 20))
    (trial,) = plan(TEXT).trials
    measures = run_trial(trial, Resources("cpu"), lambda _: None).measures
    assert (measures[Measure.TIMED_EXAMPLES], measures[Measure.FILLED_EXAMPLES]) == (8, 20)
    assert None not in [measures[f"inference/filled/{name}_ms"] for name in ("bare", "adapted", "merged")]


def test_failed_measurements_do_not_fail_the_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Forward) -> float:
        raise MemoryError("no room for merged weights")

    monkeypatch.setattr(Forward, "ms", full)
    (trial,) = plan(TEXT).trials
    with pytest.warns(UserWarning, match=naming("forward", "no room")):
        outcome = run_trial(trial, Resources("cpu"), lambda _: None)
    assert Measure.BARE_MS not in outcome.measures


def test_inference_costs_are_stored_shown_and_reported(
    tmp_path: Path, new_store: Callable[[Path], str], call: Callable[..., Any]
) -> None:
    methods = [{"method": "trac", "rank": 2}, {"method": "loretta_adp", "rank": 2}]
    ran = run(tmp_path, new_store, call, DECODER, methods=methods)
    results = tensorbench.load_results("toy", store=ran.uri)
    trac, adapter = (trial for _, trial in results.trials.sort_values("family", ascending=False).iterrows())
    shown = [call("show", trial["trial_id"], "--store", ran.uri).out for trial in (trac, adapter)]
    times = f"{trac['adapted_ms'] / trac['bare_ms']:.2f} times the bare backbone's {trac['bare_ms']:.1f} ms"
    assert f"{times} for 8 examples; merged {trac['merged_ms'] / trac['bare_ms']:.2f} times" in shown[0]
    assert "be merged" in shown[1]
    loaded = 4 * trac["parameters"] + trac["frozen_bytes"]
    assert f"{trac['adapter_bytes']:,} bytes on disk, {loaded:,} in memory" in shown[0]
    cut = trac["cut_prompts"]
    assert 0 < cut < trac["prompts"] == 64 + 30 + 45
    assert f"{cut} of 139" in shown[0]
    cells = results.cells.set_index("family")
    assert cells["adapted_forward"]["trac"] == pytest.approx(trac["adapted_ms"] / trac["bare_ms"])
    ended = call("report", "toy", "--store", ran.uri, "--out", tmp_path / "report")
    assert ended.code == 0, ended.err
    page = (tmp_path / "report" / "index.html").read_text()
    for value in (f"{cells['adapted_forward']['trac']:.2f}", f"{trac['adapter_bytes']:,}"):
        assert f">{value}<" in page
    assert f"tiny-random-llama: {cut} of 139 prompts" in page
