"""Tests studies of a small suite that are stopped, resumed, run in two parts, packed, merged and read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorbench
from tensorbench.execution.perform import Event, Report
from tensorbench.methods import UserError
from tensorbench.plan.pairs import Part
from tensorbench.plan.rows import Plan
from tensorbench.plan.suite import load_suite
from tensorbench.records.record import latest
from tensorbench.reports.analysis import Analysis, analyse
from tensorbench.reports.contents import contents
from tensorbench.run.suites import Audience, run_suite
from tensorbench.store.store import Store

from ..fixtures import Call, NewStore
from ..messages import naming
from .toy_suites import UNSEEDED, write

STUDY: dict[str, Any] = {
    **UNSEEDED,
    "methods": ["lora", "head_only"],
    "training": {"batch_size": 16, "steps": 1},
    "tuning": {"studies": 3, "points": 4, "lr": {"decades": 1}},
}


class StoppedAfter(Audience):
    """Interrupts a run after this many trials, as Ctrl-C does."""

    def __init__(self, trials: int) -> None:
        self._left = trials

    @contextmanager
    def watch(self, plan: Plan, count: int, slots: int) -> Iterator[Report]:
        def hear(event: Event) -> None:
            self._left -= event.ending is not None
            if not self._left:
                raise KeyboardInterrupt

        yield hear


@dataclass
class Halves:
    """A suite whose studies ran in two halves, each in its own store."""

    suite: Path
    #: The addresses of the two stores.
    first: str
    second: str
    #: The terminal output of the first half after it was stopped and resumed.
    shown: str
    #: A pack of each store, and a pack of both together.
    packs: list[Path]
    whole: Path
    #: The number of studies and the number of complete studies when the first half was stopped.
    stopped: tuple[int | None, int | None]


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory, new_store: NewStore, call: Call) -> Halves:
    folders = [tmp_path_factory.mktemp(name) for name in ("first", "second")]
    suite = write(folders[0], STUDY)
    first, second = map(new_store, folders)
    with pytest.raises(KeyboardInterrupt):
        run_suite(suite, store=first, part=Part(studies=[0, 1]), audience=StoppedAfter(11))
    (held,) = contents(first)
    ended = call("run", suite, "--store", first, "--studies", "0-1")
    assert ended.code == 0, ended.err
    assert run_suite(suite, store=second, part=Part(studies=[2])).complete
    packs = [folder / "toy.tensorbench.zip" for folder in folders]
    for uri, pack in zip((first, second), packs, strict=True):
        tensorbench.pack("toy", out=pack, store=uri)
    both = new_store(tmp_path_factory.mktemp("both"))
    tensorbench.unpack(*packs, store=both)
    whole = tensorbench.pack("toy", out=folders[1] / "whole.tensorbench.zip", store=both).path
    return Halves(suite, first, second, ended.out, packs, whole, (held.studies, held.studies_complete))


def test_a_stopped_study_is_incomplete_and_goes_on_where_it_was(halves: Halves, call: Call) -> None:
    assert halves.stopped == (3, 1)
    assert re.search(naming(16, "2 of 3 studies", 4, "5 to run"), halves.shown)
    assert "2/3" in halves.shown
    (held,) = contents(halves.first)
    assert (held.complete, held.studies_complete) == (16, 2)
    assert "2 of 3" in call("list", "--store", halves.first).out


def test_a_study_without_some_of_its_points_keeps_no_trial(halves: Halves) -> None:
    done = run_suite(halves.suite, store=halves.first, part=Part(seeds=[10_000, 10_001]))
    for cell in done.summary.results.all_cells:
        assert cell.studies is not None
        assert len(cell.trials) == 2
        assert not cell.kept


def test_a_trial_is_shown_with_its_place(halves: Halves, call: Call) -> None:
    record = Store.existing(halves.first, "toy").records()[0]
    out = call("show", record.trial_id, "--store", halves.first, "--json").out
    place = json.loads(out)["study"]
    seed = 10_000 + 1_000 * place["study"] + place["point"]
    assert record.tags["seed"] == str(seed)
    shown = call("show", record.trial_id, "--store", halves.first).out
    assert f"{place['study']}, point {place['point']}" in shown


def test_studies_of_a_part_and_of_another_machine_are_one(
    halves: Halves, tmp_path: Path, new_store: NewStore
) -> None:
    results = tensorbench.load_results(halves.whole)
    assert len(results.seeds) == 24
    assert results.seeds["score"].notna().all()
    uri = new_store(tmp_path)
    for pack in halves.packs:
        tensorbench.unpack(pack, store=uri)
    (held,) = contents(uri)
    assert (held.complete, held.missing, held.studies_complete) == (24, 0, 3)
    done = run_suite(halves.suite, store=uri)
    assert done.complete
    assert len(Store.existing(uri, "toy").records()) == 24
    # A part is told beside the head, as the whole is.
    of_part = run_suite(halves.suite, store=uri, part=Part(methods=["lora"])).summary.results
    assert {cell.method for cell in of_part.all_cells} == {"LoRA", "head only"}


def test_an_extended_study_keeps_its_trials(halves: Halves) -> None:
    longer = load_suite({**STUDY, "tuning": {**STUDY["tuning"], "studies": 4}})
    stored = latest(Store.existing(halves.first, "toy").records())
    assert set(stored) < {trial.id for trial in tensorbench.make_plan(longer).trials}


def test_results_have_each_trial_s_study_point_offset_and_rate(halves: Halves) -> None:
    results = tensorbench.load_results(halves.whole)
    by_cell = results.seeds.set_index(["study", "point"]).groupby("cell")
    offsets = [cell["offset"].sort_index().tolist() for _, cell in by_cell]
    assert offsets[0] == offsets[1]
    for number, cell in by_cell:
        studies = results.cells.loc[number, "studies"]
        assert sorted(cell.index) == [(s, p) for s in range(3) for p in range(4)]
        assert np.allclose(cell["lr"], studies.centre * 10 ** cell["offset"], rtol=1e-3)
        assert cell["validation_loss"].notna().all()
    stored = {seed.trial_id: seed.validation_loss for seed in results.all_seeds}
    measured = results.trials.set_index("trial_id")["validation_loss"].to_dict()
    assert stored == measured


def test_the_kept_trial_has_the_lowest_validation_loss(halves: Halves) -> None:
    results = tensorbench.load_results(halves.whole)
    for cell in results.all_cells:
        assert set(cell.kept) == {0, 1, 2}
        for study, trial in cell.kept.items():
            assert trial is not None
            losses = [seed.validation_loss for seed in cell.trials if seed.study == study]
            assert trial.validation_loss == min(loss for loss in losses if loss is not None)


def test_the_terminal_shows_the_reports_scores_of_complete_studies(halves: Halves) -> None:
    analysis = analyse(tensorbench.load_results("toy", store=halves.first))
    for cell in analysis.results.all_cells:
        assert set(cell.kept) == {0, 1}
        assert (found := analysis.score(cell)) is not None
        assert f"{found.value:.4f}" in halves.shown


def test_trials_of_studies_are_in_no_mean_over_seeds(halves: Halves) -> None:
    results = tensorbench.load_results(halves.whole)
    assert results.cells[["mean", "sd", "validation"]].isna().all(axis=None)
    assert results.cells["complete"].all()


def test_halves_of_a_study_are_reported_as_one(halves: Halves, tmp_path: Path) -> None:
    done = tensorbench.write_report(str(halves.whole), out=tmp_path / "out", formats=["html", "csv"])
    assert isinstance(done.analysis, Analysis)
    (block,) = done.analysis.blocks
    (lora,) = block.entrants
    assert (lora.method, lora.studies[0].numbers, block.k) == ("LoRA", (0, 1, 2), 4)
    seeds = [seed for seed in done.analysis.results.all_seeds if seed.method == "LoRA"]
    assert lora.studies[0].scores.ravel().tolist() == [seed.score for seed in seeds]
    assert "<svg" in (tmp_path / "out" / "index.html").read_text()


def test_a_study_is_verified_with_all_its_parts(halves: Halves, call: Call) -> None:
    ended = call("verify", "toy", "--store", halves.first)
    assert (ended.code, "16 verified, 0 broken" in ended.out) == (1, True), ended.out
    assert "toy holds studies 0 to 1 of 3 planned" in ended.out
    ended = call("verify", halves.whole)
    assert (ended.code, "24 verified, 0 broken" in ended.out) == (0, True), ended.out
    assert "toy holds studies 0 to 2 of 3 planned" in ended.out


def test_other_windows_do_not_merge(halves: Halves, tmp_path: Path, new_store: NewStore, call: Call) -> None:
    wider = {**STUDY, "tuning": {"studies": 3, "points": 4, "lr": {"decades": 2}}}
    uri, pack = new_store(tmp_path), tmp_path / "toy.tensorbench.zip"
    assert run_suite(write(tmp_path, wider), store=uri, part=Part(studies=[0], methods=["lora"])).complete
    tensorbench.pack("toy", out=pack, store=uri)
    with pytest.raises(UserError, match="decades"):
        tensorbench.unpack(halves.packs[0], pack, store=f"sqlite:///{tmp_path / 'merged.db'}")


def test_a_plan_shows_window_and_head_rate_and_counts_points(halves: Halves, call: Call) -> None:
    out = call("plan", halves.suite, "--studies", "1,2").out
    assert re.search(naming(16, "2 of 3 studies", 4), out)
    for shown in ("3.16e-4 … 3.16e-3", "the head's learning rate is 3e-3", "9.49e-4 … 9.49e-3"):
        assert shown in out
    (head, lora) = json.loads(call("plan", halves.suite, "--json").out)["windows"]
    assert (lora["method"], lora["lr"], lora["published_lr"]) == ("LoRA", [3.162e-4, 3.162e-3], None)
    assert head["method"] == "head only"
    assert call("plan", halves.suite, "--studies", "2-1").code == 2
    assert "study" in call("plan", halves.suite, "--studies", "3").err
    assert "3 studies" in call("plan", halves.suite, "--power").out
    assert "studies: 2" in call("plan", halves.suite, "--power", "--studies", "0-1").err


def test_a_look_waits_for_all_methods(tmp_path: Path, new_store: NewStore, call: Call) -> None:
    tuning = {"studies": 3, "points": 2, "looks": {"after": [3], "k": 1}}
    suite = write(tmp_path, STUDY, methods=["lora", "lotr"], tuning=tuning)
    uri = new_store(tmp_path)
    one = call("run", suite, "--store", uri, "--method", "lora")
    assert one.code == 1
    assert re.search(naming("The next look waits", 6, "LoTR"), one.out)
    rest = call("run", suite, "--store", uri)
    assert rest.code == 0, rest.err
    assert re.search(naming(12, "trials", 6, "to run"), rest.out)
    assert "Last look, after 3 studies" in rest.err
