"""Tests that measured costs are those of one trial alone, also at inference, and that provenance is true."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tensorbench
import tensorbench.training.trial
from tensorbench.records.measures import Measure
from tensorbench.tasks import TextSplit
from tensorbench.training import measure
from tensorbench.training.inference import Forward, timed_sizes
from tensorbench.training.measure import LIBRARIES, WARMUP_STEPS, PeakMemory, StepTimer, provenance
from tensorbench.training.trial import Resources, run_trial

from ...messages import naming
from ..toy_runs import run
from ..toy_suites import TEXT, plan

CPU = torch.device("cpu")


def timed(monkeypatch: pytest.MonkeyPatch, seconds: list[float]) -> float | None:
    now = 0.0
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: now))
    timer = StepTimer(CPU)
    for duration in seconds:
        now += 100.0
        with timer:
            now += duration
    return timer.median_ms()


def test_steps_on_another_gpu_than_the_first_are_timed_there(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded, waited = [], []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: torch.device) -> None:
            recorded.append(stream)

        def elapsed_time(self, other: Event) -> float:
            return 7.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: device)
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    second = torch.device("cuda:1")
    timer = StepTimer(second)
    for _ in range(WARMUP_STEPS + 1):
        with timer:
            pass
    assert timer.median_ms() == 7.0
    assert {*recorded, *waited} == {second}


def test_the_step_time_is_a_median_without_the_first_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = [9.0] * WARMUP_STEPS
    assert timed(monkeypatch, [*slow, 0.010, 0.030, 0.020, 5.0, 0.020]) == pytest.approx(20)
    assert timed(monkeypatch, slow) is None


def test_peak_memory_is_that_since_the_reset_not_of_the_predecessor() -> None:
    before = PeakMemory(CPU)
    if before.mib() is None:
        pytest.skip("this system does not let a process reset its peak")
    torch.ones(400 * 2**18)
    predecessor = before.mib()
    own = PeakMemory(CPU).mib()
    assert predecessor is not None
    assert own is not None
    assert own < predecessor - 300


def test_an_unresettable_peak_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "write_text", refuse)
    assert PeakMemory(CPU).mib() is None


def uncached() -> dict[str, str]:
    return provenance.__wrapped__("cpu")


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    # Ignores the user's git configuration for signing and hooks.
    own = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=own).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes a repository with one commit, and makes `measure` look for its code there."""
    git(tmp_path, "init", "-q")
    (tmp_path / "measure.py").write_text("")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    monkeypatch.setattr(measure, "__file__", str(tmp_path / "measure.py"))
    return tmp_path


def test_commit_and_dirtiness_are_those_of_the_code(repository: Path) -> None:
    assert uncached()["git_commit"] == git(repository, "rev-parse", "HEAD")
    assert uncached()["git_dirty"] == "no"
    (repository / "measure.py").write_text("changed")
    assert uncached()["git_dirty"] == "yes"


def test_an_installation_outside_any_repository_or_inside_a_foreign_one_has_no_commit(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (tmp_path_factory.mktemp("outside"), repository / "venv"):
        folder.mkdir(exist_ok=True)
        (folder / "measure.py").write_text("")
        monkeypatch.setattr(measure, "__file__", str(folder / "measure.py"))
        assert (uncached()["git_commit"], uncached()["git_dirty"]) == ("unknown", "unknown")


#: A script that builds a wheel or a source distribution of the working folder in the folder `dist`.
BUILD = "import setuptools.build_meta as b, sys; getattr(b, 'build_' + sys.argv[1])('dist')"


@pytest.mark.processes
def test_an_installed_copy_has_the_commit_that_it_was_built_from(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("setuptools")
    packages = ("bench", "bench/training", "methods", "baselines", "reports")
    modules = ("bench/training/measure.py", *(f"{package}/__init__.py" for package in packages))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", *modules):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(__file__).parents[3] / name, repository / name)
    (repository / ".gitignore").write_text("/dist/\n/build/\n*.egg-info/\n")
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "second")
    commit = git(repository, "rev-parse", "HEAD")

    def built(folder: Path, kind: str) -> Path:
        subprocess.run([sys.executable, "-c", BUILD, kind], cwd=folder, check=True, capture_output=True)
        (archive,) = (folder / "dist").glob("*.whl" if kind == "wheel" else "*.tar.gz")
        shutil.unpack_archive(archive, folder / "dist", "zip" if kind == "wheel" else "gztar")
        archive.unlink()
        return folder / "dist"

    def stored(folder: Path) -> tuple[str, str]:
        monkeypatch.setattr(measure, "__file__", str(folder / "tensorbench" / "training" / "measure.py"))
        return uncached()["git_commit"], uncached()["git_dirty"]

    # As `python -m build` does: a wheel from the files of a source distribution.
    (source,) = built(repository, "sdist").glob("tensorpeft*")
    assert stored(built(source, "wheel")) == (commit, "no")
    (repository / "bench" / "__init__.py").write_text("changed")
    assert stored(built(repository, "wheel")) == (commit, "yes")


def test_provenance_names_libraries_and_hardware() -> None:
    provenance = uncached()
    assert {f"version_{name}" for name in LIBRARIES} <= set(provenance)
    # The version in a package's metadata may lack the suffix that names the build, such as +cpu.
    assert provenance["version_torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert provenance["threads"] == str(torch.get_num_threads())
    assert provenance["cpu"]
    assert provenance["gpu"] == ""


def test_processors_of_one_name_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = []
    for model, bf16 in (("1", False), ("17", True)):
        facts = {"model name": "AMD EPYC", "cpu family": "25", "model": model}
        monkeypatch.setattr(measure, "_cpu_facts", lambda facts=facts: facts)
        monkeypatch.setattr(measure, "computes_bf16", lambda bf16=bf16: bf16)
        provenance.cache_clear()
        kinds.append(provenance("cpu")["cpu_kind"])
    provenance.cache_clear()
    vectors = torch.backends.cpu.get_cpu_capability()
    assert kinds == [
        f"cpu family 25, model 1, {vectors}, no bf16",
        f"cpu family 25, model 17, {vectors}, bf16",
    ]


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


def test_a_run_says_how_many_texts_were_cut() -> None:
    (trial,) = plan(TEXT).trials
    with pytest.warns(UserWarning, match=naming("texts have more than 32 tokens and were cut", "max_tokens")):
        measures = run_trial(trial, Resources("cpu"), lambda _: None).measures
    assert 0 < measures[Measure.CUT_TEXTS] <= measures[Measure.TEXTS]


def test_a_gpu_is_also_timed_with_a_batch_that_fills_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert timed_sizes(torch.device("cpu")) == (8,)
    assert timed_sizes(torch.device("cuda:1")) == (8, 256)
    monkeypatch.setattr(tensorbench.training.trial, "timed_sizes", lambda device: (8, 20))
    (trial,) = plan(TEXT).trials
    measures = run_trial(trial, Resources("cpu"), lambda _: None).measures
    assert (measures[Measure.TIMED_EXAMPLES], measures[Measure.FILLED_EXAMPLES]) == (8, 20)
    assert None not in [measures[f"inference/filled/{name}_ms"] for name in ("bare", "adapted", "merged")]


@pytest.mark.parametrize(("owner", "name"), [(Forward, "ms"), (TextSplit, "batch")])
def test_failed_measurements_do_not_fail_the_trial_and_are_repeated(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    def full(self: Any, *indices: torch.Tensor) -> Any:
        if not indices or len(indices[0]) == 20:
            raise MemoryError("no room")
        return real(self, *indices)

    real = getattr(owner, name)
    monkeypatch.setattr(tensorbench.training.trial, "timed_sizes", lambda device: (8, 20))
    (trial,) = plan(TEXT).trials
    resources = Resources("cpu")
    monkeypatch.setattr(owner, name, full)
    with pytest.warns(UserWarning, match=naming("forward", "no room")):
        failed = run_trial(trial, resources, lambda _: None)
    assert Measure.BARE_MS not in failed.measures
    monkeypatch.setattr(owner, name, real)
    assert Measure.BARE_MS in run_trial(trial, resources, lambda _: None).measures


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
    cut = trac["cut_texts"]
    assert 0 < cut < trac["texts"] == 64 + 30 + 45
    assert f"{cut} of 139" in shown[0]
    cells = results.cells.set_index("family")
    assert cells["adapted_forward"]["trac"] == pytest.approx(trac["adapted_ms"] / trac["bare_ms"])
    ended = call("report", "toy", "--store", ran.uri, "--out", tmp_path / "report")
    assert ended.code == 0, ended.err
    page = (tmp_path / "report" / "index.html").read_text()
    for value in (f"{cells['adapted_forward']['trac']:.2f}", f"{trac['adapter_bytes']:,}"):
        assert f">{value}<" in page
    assert f"tiny-random-llama: {cut} of 139 texts" in page
