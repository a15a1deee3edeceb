"""Tests reports of searches, rank allocations and redundancy analyses stored beside the trials."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tensorbench.methods import UserError
from tensorbench.records import Wired
from tensorbench.records.record import Record
from tensorbench.records.search_results import (
    AllocationPoint,
    AllocationResult,
    ComponentWorth,
    Finalist,
    Redundancy,
    SearchPoint,
    SearchResult,
    Spectrum,
    Tried,
)
from tensorbench.records.words import YES, Artifact, RunKind, Status, Tag
from tensorbench.reports import ablation, figures
from tensorbench.reports.reading import Study, read
from tensorbench.reports.report import write_report
from tensorbench.store.store import Store

from ..stored import Result, write
from .made_up import SMALL, NewStore, plan_of

MODES = ("input", "head size", "heads")
IMPORTANCE = {"fanova": {"input": 0.7, "head size": 0.2, "heads": 0.1}}


def search(trials: dict[int, str], where: dict[str, str]) -> SearchResult:
    points = [
        SearchPoint(
            number=0, state="COMPLETE", ranks=(2, 1, 3), parameters=150, value=0.6, trial_id=trials[0]
        ),
        SearchPoint(
            number=2, state="COMPLETE", ranks=(4, 1, 1), parameters=180, value=0.7, trial_id=trials[1]
        ),
        SearchPoint(number=3, state="PRUNED", ranks=(1, 1, 1), parameters=90, value=None, trial_id="gone"),
    ]
    return SearchResult(
        **where,
        name="ranks <of> att",
        asked=180,
        modes=MODES,
        importance=IMPORTANCE,
        final=tuple(
            Finalist(label=label, ranks=(2, 2, 2), parameters=177, trials=trials)
            for label in ("best", "heuristic")
        ),
        objectives=("score",),
        trials=tuple(points),
        pareto=(0, 2),
        best=points[1],
    )


def allocation(trials: dict[int, str], where: dict[str, str]) -> AllocationResult:
    tried = Tried(ranks=(2, 2, 2), parameters=177, trials=trials)
    return AllocationResult(
        **where,
        name="sweep",
        asked=180,
        modes=MODES,
        importance=IMPORTANCE,
        final=tuple(Finalist(label=label, **dict(tried)) for label in ("best", "heuristic")),
        points=(
            AllocationPoint(mode="input", rank=2, **dict(tried)),
            AllocationPoint(mode="heads", rank=3, **dict(tried)),
        ),
        path=(tried,),
        heuristic=tried,
        best=tried,
    )


def redundancy(record: Record) -> Redundancy:
    return Redundancy(
        trial_id=record.trial_id,
        run_id=record.run_id,
        method="TensLoRA att",
        ranks=(2, 2, 2),
        metric="accuracy",
        norm=1.0,
        modes={"input": Spectrum(singular_values=(3.0, 1.0, 0.1), effective_rank=1.8, rank_99=2)},
        components=(
            ComponentWorth(layer=0, projection="query", head=1, share=0.4, drop=0.02),
            ComponentWorth(layer=1, projection="value", head=None, share=0.1, drop=None),
        ),
    )


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory, new_store: NewStore) -> str:
    """The URI of a store with trials of two seeds, a search, an allocation and a redundancy analysis."""
    made = new_store(tmp_path_factory.mktemp("ablation"))
    plan = plan_of(**SMALL)
    store = write(made, plan, lambda trial, row: Result(score=0.6 + 0.1 * trial.seed))
    row = next(row for row in plan.rows if row.title == "TensLoRA att")
    trials = {seed: id_ for seed, id_ in row.trials.items() if id_}
    where = {"method": "tenslora", "task": row.task, "backbone": row.backbone, "budget": "isorank 2"}
    keep(store, RunKind.SEARCH, Artifact.SEARCH, search(trials, where))
    keep(store, RunKind.ALLOCATION, Artifact.ALLOCATION, allocation(trials, where))
    record = next(record for record in store.records() if record.trial_id == trials[0])
    store.keep(record.run_id, Artifact.REDUNDANCY, redundancy(record))
    store.tag(record.run_id, Tag.REDUNDANCY, YES)
    return made


def keep(store: Store, kind: RunKind, name: Artifact, content: Wired) -> None:
    run = store.begin(kind, str(kind), {}, driver="")
    store.keep(run, name, content)
    store.end(run, Status.FINISHED)


@pytest.fixture(scope="module")
def study(uri: str) -> Study:
    return read(uri, ["small"])


def test_scores_come_from_the_trials_and_their_runs_are_named(study: Study) -> None:
    search, allocation, redundancy = ablation.read(study)
    assert (search.kind, allocation.kind, redundancy.kind) == ("search", "allocation", "redundancy")
    assert [entry.ranks for entry in search.tried] == [[2, 1, 3], [4, 1, 1], [1, 1, 1]]
    assert [entry.value for entry in search.tried] == [0.6, 0.7, None]
    assert [entry.state for entry in search.tried] == ["complete", "complete", "pruned"]
    # Positions in `tried`. The search names its points by number.
    assert search.pareto == [0, 1]
    final, _ = search.final
    assert final.value == pytest.approx(0.65)
    assert final.sd == pytest.approx(0.1 / 2**0.5)
    assert set(final.runs) <= {record.run_id for record in study.experiments[0].records.values()}
    assert [entry.label for entry in allocation.tried] == [
        "input 2",
        "heads 3",
        "step 1",
        "heuristic",
        "chosen",
    ]
    assert redundancy.effective_ranks == {"input": 1.8}


def test_each_search_allocation_and_analysis_has_its_figures(study: Study) -> None:
    names = [
        [drawn.name for drawn in figures.ablation(number, ablation_)]
        for number, ablation_ in enumerate(ablation.read(study))
    ]
    assert names == [
        ["ablation-0-ranks", "ablation-0-importance"],
        ["ablation-1-ranks", "ablation-1-importance"],
        ["ablation-2-spectra"],
    ]


def test_the_same_ranks_under_several_labels_count_once_in_the_mean_at_a_rank() -> None:
    tried = [
        ablation.Scored("input 2", [2, 1], 10, 0.5, None, []),
        ablation.Scored("heads 3", [2, 3], 10, 0.9, None, []),
        ablation.Scored("best", [2, 3], 10, 0.9, None, []),
    ]
    head = {"name": "n", "run_id": "", "method": "", "task": "", "backbone": "", "budget": ""}
    allocation = ablation.StoredAblation(kind="allocation", **head, modes=["input", "heads"], tried=tried)
    (drawn,) = figures.ablation(0, allocation)
    (line,) = drawn.figure.axes[0].lines
    assert list(line.get_xydata()[0]) == pytest.approx([2, 70])


def test_the_best_of_a_search_by_loss_is_not_that_of_the_scores() -> None:
    tried = [ablation.Scored("#0", [2], 10, 0.72, None, []), ablation.Scored("#1", [4], 10, 0.70, None, [])]
    head = {"name": "n", "run_id": "", "method": "", "task": "", "backbone": "", "budget": ""}
    search = ablation.StoredAblation(kind="search", **head, modes=["input"], tried=tried, best=tried[1])
    (drawn,) = figures.ablation(0, search)
    assert drawn.alternative == "Best: input 4."


def test_the_page_shows_ablations_with_names_escaped(uri: str, tmp_path: Path) -> None:
    done = write_report(uri, ["small"], tmp_path / "out", log=False)
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count('<div data-task="digits" data-backbone="tiny-random-vit">') == 3
    assert "ranks &lt;of&gt; att" in page
    assert "ranks <of> att" not in page
    assert "figures/ablation-2-spectra.svg" in done.files
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [entry["kind"] for entry in content["ablations"]] == ["search", "allocation", "redundancy"]


def test_a_report_without_comparisons_opens_with_the_choice_of_ranks_and_its_picture(
    tmp_path: Path, new_store: NewStore
) -> None:
    plan = plan_of(**{**SMALL, "methods": [{"method": "tenslora", "variant": "att"}]})
    made = new_store(tmp_path)
    store = write(made, plan, lambda trial, row: Result(score=0.6 + 0.1 * trial.seed))
    (row,) = plan.rows
    trials = {seed: id_ for seed, id_ in row.trials.items() if id_}
    where = {"method": "tenslora", "task": row.task, "backbone": row.backbone, "budget": "isorank 2"}
    keep(store, RunKind.ALLOCATION, Artifact.ALLOCATION, allocation(trials, where))
    write_report(made, ["small"], tmp_path / "out", log=False)
    page = (tmp_path / "out" / "index.html").read_text()
    main = page[page.index("<main>") :]
    answer = main[: main.index("</section>")]
    assert "The heuristic&#39;s own ranks are the choice" in answer
    assert "<svg" in answer
    assert "Nothing to compare" not in main
    assert page.count('id="figure-ablation-0-ranks"') == 1


def test_an_artifact_of_another_form_is_named(tmp_path: Path, new_store: NewStore) -> None:
    class Half(Wired):
        name: str

    uri = new_store(tmp_path)
    store = write(uri, plan_of(**SMALL), lambda trial, row: Result(score=0.5))
    keep(store, RunKind.SEARCH, Artifact.SEARCH, Half(name="half"))
    (run,) = store.records(RunKind.SEARCH)
    message = rf"search\.json of run {run.run_id} \(search\) is broken.*field 'method' is required"
    with pytest.raises(UserError, match=message):
        ablation.read(read(uri, ["small"]))
