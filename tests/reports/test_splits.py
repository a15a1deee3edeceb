"""Tests that split sizes and their overlap with train appear wherever splits are shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tensorbench.records.measures import Measure, SplitSizes
from tensorbench.reports.reading import read
from tensorbench.reports.report import write_report
from tensorbench.reports.stored import load_trial
from tensorbench.store.store import Store

from ..bench.toy_runs import SHORT, run_inline
from ..bench.toy_suites import plan
from .made_up import printed


def test_sizes_are_in_plans_records_and_reports(tmp_path: Path, new_store: Callable[[Path], str]) -> None:
    store, made = Store.create(new_store(tmp_path), "toy"), plan(methods=["head_only"], training=SHORT)
    run_inline(store, made)
    (record,) = store.records()
    assert SplitSizes.of(record.metrics) == SplitSizes(60, 30, 40, 0, 0)
    store.client.log_metric(record.run_id, Measure.REPEATED_EXAMPLES, 3)
    sizes = str(SplitSizes(60, 30, 40, 3, 0))
    assert f"digits: {SplitSizes(60, 30, 40, 0, 0)}" in printed(made.overview())
    contents = load_trial(record.trial_id, store=store.uri)
    assert f"examples {sizes}" in " ".join(printed(contents.overview()).split())
    assert read(store.uri, ["toy"]).split_sizes() == {"digits": [sizes]}
    # A trial of an earlier version lacks a count.
    assert SplitSizes(60, 30, 40, 3).lacks_counts_of(SplitSizes(60, 30, 40, 3, 6))
    assert not SplitSizes(60, 30, 40, 2).lacks_counts_of(SplitSizes(60, 30, 40, 3, 6))
    assert not SplitSizes(60, 30, 40, 3, 6).lacks_counts_of(SplitSizes(60, 30, 40, 3))
    write_report("toy", out=tmp_path / "out", store=store.uri, formats=["html"], log=False)
    assert f"digits: {sizes}" in (tmp_path / "out" / "index.html").read_text()
