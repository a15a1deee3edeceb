"""Tests that broken or malicious packs are refused with a reason, and nothing is written."""

from __future__ import annotations

import math
import re
import stat
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tensorbench.methods import UserError
from tensorbench.records.pack_format import EXPERIMENT, MANIFEST, NUMBERS, RUNS, SCHEMA
from tensorbench.records.words import Artifact
from tensorbench.reports.loading import load_results
from tensorbench.store.opening import open_results
from tensorbench.store.pack import archive
from tensorbench.store.pack.writing import write_pack
from tensorbench.training.saving import PLAIN, Saving

from ...packs import Files, changed, edit_arrays, edit_json, edit_run, edit_runs, path_of
from .many_trials import ManyTrials, predictions
from .test_compact_packs import PUBLISHED, opened


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of three trials on one split of 20 examples and 2 classes."""
    path = tmp_path_factory.mktemp("pack") / "small.tensorbench.zip"
    write_pack([ManyTrials(opened(PUBLISHED), [predictions(seed, 20) for seed in range(3)], steps=4)], path)
    return path


def refused(pack: Path, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        open_results("", [str(pack)])
    assert str(pack) in str(error.value)


def test_a_pack_that_is_cut_or_not_there(pack: Path, tmp_path: Path, call: Any) -> None:
    cut = tmp_path / "cut.tensorbench.zip"
    for length in (0, 100, len(pack.read_bytes()) // 2, len(pack.read_bytes()) - 1):
        cut.write_bytes(pack.read_bytes()[:length])
        refused(cut, "is refused: it is cut, or no zip file")
    refused(tmp_path / "none.tensorbench.zip", "there is no pack")
    for command in (
        ("unpack", cut),
        ("report", cut, "--out", tmp_path / "out"),
    ):
        ended = call(*command, "--store", f"sqlite:///{tmp_path / 'mlflow.db'}")
        assert ended.code == 2
        assert "is cut" in ended.err
    assert [path.name for path in tmp_path.iterdir()] == [cut.name]


def test_a_changed_byte_is_refused(pack: Path, tmp_path: Path) -> None:
    bytes_of = bytearray(pack.read_bytes())
    with zipfile.ZipFile(pack) as file:
        largest = max(file.infolist(), key=lambda entry: entry.compress_size)
    # Changes the content, not the header, since most of the header is stored twice and read once.
    bytes_of[largest.header_offset + 30 + len(largest.filename) + largest.compress_size // 2] ^= 1
    target = tmp_path / "b.tensorbench.zip"
    target.write_bytes(bytes_of)
    refused(target, "cannot be read, the file is cut or was changed")


def more(name: str, text: bytes = b"{}") -> Callable[[Files], None]:
    return lambda content: content.update({name: text})


def without(name: str) -> Callable[[Files], None]:
    return lambda content: content.pop(path_of(content, name)) and None


def appended(name: str, text: bytes) -> Callable[[Files], None]:
    def edit(content: Files) -> None:
        content[path_of(content, name)] += text

    return edit


def of_another_version(schema: int) -> Callable[[Files], None]:
    def edit(content: Files) -> None:
        manifest = {"schema": schema, "members": ["of another form"]}
        edit_json(MANIFEST, lambda document: document.update(manifest))(content)
        content["of/another.kind"] = b""

    return edit


#: Changes after which the manifest is that of the pack before, and the reason of the refusal.
UNSIGNED: dict[str, tuple[Callable[[Files], None], str]] = {
    "another hash": (appended(RUNS, b" "), f"{RUNS} was changed: its sha256 is"),
    "another size": (
        edit_json(MANIFEST, lambda manifest: [each.update(bytes=1) for each in manifest["members"].values()]),
        "bytes, the manifest says 1",
    ),
    "a file less": (without(NUMBERS), f"{NUMBERS}' is not in it"),
    "a file more": (more("experiments/0000/artifacts/ab/plan.json"), "its manifest does not name it"),
    "a later version": (of_another_version(SCHEMA + 1), rf"a later version .* \(schema {SCHEMA + 1}; this"),
    "an earlier version": (of_another_version(2), r"an earlier version .* \(schema 2; this"),
}


@pytest.mark.parametrize("way", UNSIGNED)
def test_a_pack_that_is_not_that_of_its_manifest(way: str, pack: Path, tmp_path: Path) -> None:
    change, said = UNSIGNED[way]
    refused(changed(pack, tmp_path / "b.tensorbench.zip", change, signed=False), said)


def run(**fields: Any) -> Callable[[Files], None]:
    return edit_run(lambda line: line.update(fields))


def tags(**changes: str) -> Callable[[Files], None]:
    return edit_run(lambda line: line["tags"].update(changes))


def numbers(**values: Any) -> Callable[[Files], None]:
    """Returns a change of arrays, whose first values become these."""

    def change(arrays: dict[str, Any]) -> None:
        for name, value in values.items():
            arrays[name][:1] = value

    return edit_arrays(change)


def fewer(name: str) -> Callable[[Files], None]:
    return edit_arrays(lambda arrays: arrays.update({name: arrays[name][:-1]}))


def split(**fields: int) -> Callable[[Files], None]:
    return edit_json(EXPERIMENT, lambda experiment: experiment["splits"][0].update(fields))


COUNT = r"has not the [\d,]+ numbers that runs or splits state"
RANGE = "Input should be (greater|less) than"

#: Changes of a pack whose hashes are valid again, and the reason of the refusal.
SIGNED: dict[str, tuple[Callable[[Files], None], str]] = {
    # Names of files.
    "above it": (more("../evil.json"), "lies outside of it"),
    "above it by its parts": (more("experiments/0000/artifacts/../../../evil.json"), "lies outside of it"),
    "from a root": (more("/etc/passwd"), "lies outside of it"),
    "from a drive": (more("C:/evil.json"), "lies outside of it"),
    "above it in another system": (more("..\\evil.json"), "lies outside of it"),
    "a pickle": (more("experiments/0000/adapter.pkl"), "is no file of a pack"),
    "a traceback": (more("experiments/0000/artifacts/ab/traceback.txt"), "is no file of a pack"),
    "a folder": (more("experiments/0000/"), "is no file of a pack"),
    # Sizes.
    "a file of zeros": (
        more("experiments/0000/artifacts/ab/plan.json", bytes(2**25)),
        "bytes in [0-9,]+ compre",
    ),
    "values of JSON": (more("experiments/0000/artifacts/ab/plan.json", b"[" * 2**21), "marks of JSON in"),
    # Files that are missing or of another form.
    "no runs": (without(RUNS), f"{RUNS}: it is not there"),
    "no arrays": (without(NUMBERS), f"{NUMBERS}: it is not there"),
    "no experiment": (without(EXPERIMENT), f"{EXPERIMENT}: it is not there"),
    "no JSON": (appended(RUNS, b"{\n"), f"{RUNS}, line 5: "),
    "deep JSON": (appended(RUNS, b"[" * 10**5), f"{RUNS}, line 5: "),
    "no arrays in the file": (appended(NUMBERS, b" "), f"{NUMBERS}: it is no safetensors file"),
    # Runs.
    "no run id": (run(run_id="../../x"), "run_id: "),
    "a run twice": (edit_runs(lambda lines: lines.append(lines[-1])), "a run is in it twice"),
    "a run that goes on": (
        run(status="RUNNING"),
        r"status: Input should be 'FINISHED', 'FAILED' or 'KILLED' \(got 'RUNNING'\)",
    ),
    "more than all right": (run(metrics={"score": 1.7}), "score of run .*: 1.7; accuracy is from 0 to 1"),
    "no start": (run(started=None), "started: Input should be"),
    "a start before time": (run(started=-1), f"started: {RANGE}"),
    "an end after time": (run(ended=10**18), f"ended: {RANGE}"),
    "an end of thousands of digits": (run(ended=10**4000), f"ended: {RANGE}"),
    "no trial id": (tags(trial_id="<b>"), "trial_id of run .*: '<b>' is none"),
    "a large score": (run(metrics={"score": 1e308}), "metrics.score: .*1e\\+308 is beyond"),
    "a low score": (run(metrics={"score": -1e39}), "metrics.score: .*-1e\\+39 is beyond"),
    "two suites": (tags(kind="suite"), "2 runs of a suite; a pack has one"),
    "another kind": (tags(kind="other"), "kind of run .*: 'other'; accepted are suite"),
    "a long tag": (tags(note="x" * 8001), "tags.note: .*8000 characters"),
    "a long key": (run(tags={"x" * 251: ""}), "tags.*250 characters"),
    "another split": (run(split=7), "a split that is not there"),
    # Splits and arrays.
    "one class": (split(classes=1), "splits.0.classes: "),
    "too many classes": (split(classes=10**6), "splits.0.classes: "),
    "more examples": (split(examples=21), COUNT),
    "billions of examples": (split(examples=2**39), COUNT),
    "more points than there are": (run(curves={"train/loss": 1000}), COUNT),
    "billions of points": (run(curves={"train/loss": 2**39}), " points, more than "),
    "a negative count": (run(config=-1), f"config: {RANGE}"),
    "fewer answers": (fewer("prediction"), f"prediction {COUNT}"),
    "fewer log-probabilities": (fewer("log_probability"), f"log_probability {COUNT}"),
    "fewer labels": (fewer("label"), f"label {COUNT}"),
    "fewer examples": (fewer("example"), f"example {COUNT}"),
    "fewer steps": (fewer("step"), f"step {COUNT}"),
    "fewer lines": (fewer("config"), f"config {COUNT}"),
    "a class that is none": (numbers(prediction=9), "a line or a class is out of range"),
    "a label that is none": (numbers(label=2), "a line or a class is out of range"),
    "a line that is none": (numbers(config=2**31), "a line or a class is out of range"),
    "a point beyond float32": (numbers(value=1e308), r"a point is at 1e\+308"),
    "numbers of another type": (
        edit_arrays(lambda arrays: arrays.update(step=arrays["step"].astype(np.int32))),
        f"step {COUNT}",
    ),
}


@pytest.mark.parametrize("way", SIGNED)
def test_a_pack_whose_content_cannot_be_that_of_a_pack(way: str, pack: Path, tmp_path: Path) -> None:
    change, said = SIGNED[way]
    refused(changed(pack, tmp_path / "b.tensorbench.zip", change), said)


def test_scores_and_points_may_be_infinite_or_nan(pack: Path, tmp_path: Path) -> None:
    def change(content: Files) -> None:
        run(metrics={"score": math.nan, "loss": math.inf})(content)
        numbers(value=math.inf)(content)

    (source,) = open_results("", [str(changed(pack, tmp_path / "b.tensorbench.zip", change))])
    assert math.inf in source.curves()["value"].tolist()
    assert math.inf in [record.metrics.get("loss") for record in source.records()]


def test_numbers_with_more_digits_than_python_reads_are_unknown(tmp_path: Path) -> None:
    digits = dict.fromkeys(("provenance.threads", "provenance.micro_batch"), "1" * 5000)
    other = changed(PUBLISHED, tmp_path / "b.tensorbench.zip", tags(**digits))
    *_, record = sorted(opened(other).records(), key=lambda record: len(record.provenance["threads"]))
    assert Saving.of(record.provenance) == PLAIN
    assert load_results(other).trials["threads"].isna().sum() == 1


def test_a_configuration_that_repeats_a_long_line(pack: Path, tmp_path: Path) -> None:
    def change(content: Files) -> None:
        edit_json(EXPERIMENT, lambda experiment: experiment["lines"].__setitem__(0, "x" * 2**20))(content)

    source = opened(changed(pack, tmp_path / "b.tensorbench.zip", change))
    (*_, record) = source.records()
    assert source.read(record, Artifact.CONFIG)
    edit = edit_arrays(lambda arrays: arrays["config"].fill(0))
    with pytest.raises(UserError, match=r"its configurations have .* characters"):
        opened(changed(source.archive.path, tmp_path / "c.tensorbench.zip", edit))
    short = edit_json(EXPERIMENT, lambda experiment: experiment["lines"].__setitem__(0, "x" * 2**15))
    shorter = changed(source.archive.path, tmp_path / "d.tensorbench.zip", short)
    source = opened(changed(shorter, tmp_path / "e.tensorbench.zip", edit))
    with pytest.raises(UserError, match=r"the configuration of run .* characters"):
        source.read(record, Artifact.CONFIG)


def added(pack: Path, target: Path, entry: zipfile.ZipInfo, content: bytes) -> Path:
    target.write_bytes(pack.read_bytes())
    with warnings.catch_warnings(), zipfile.ZipFile(target, "a") as file:
        # Python warns about a duplicate name.
        warnings.simplefilter("ignore")
        file.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return target


def test_a_link_and_a_file_that_is_there_twice(pack: Path, tmp_path: Path) -> None:
    link = zipfile.ZipInfo("experiments/0000/artifacts/ab/plan.json")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    refused(added(pack, tmp_path / "b.tensorbench.zip", link, b"/etc/passwd"), "plan.json' is a link")
    twice = zipfile.ZipInfo(MANIFEST)
    refused(added(pack, tmp_path / "b.tensorbench.zip", twice, b"{}"), "'manifest.json' is in it twice")


@pytest.mark.parametrize(
    ("limit", "most", "said"),
    [
        ("MOST_MEMBERS", 3, "files, more than 3"),
        ("MOST_DIRECTORY", 100, "its list of files has [0-9,]+ bytes, more than 100"),
        ("MOST_BYTES", (3, 0), "bytes in [0-9,]+ compressed bytes, more than 3"),
        ("MOST_MARKS", (3, 0), "marks of JSON in [0-9,]+ compressed bytes, more than 3"),
    ],
)
def test_limits(pack: Path, monkeypatch: pytest.MonkeyPatch, limit: str, most: Any, said: str) -> None:
    monkeypatch.setattr(archive, limit, most)
    refused(pack, said)


def too_wide(plan: dict[str, Any]) -> None:
    window = {"studies": 2, "points": 2, "ks": [2], "centre": 1e-3, "decades": 1e9, "head_lr": None}
    plan["rows"][0]["studies"] = window | {"trials": {}}


def other_ks(plan: dict[str, Any]) -> None:
    window = {"studies": 3, "points": 3, "ks": [1, 2], "centre": 1e-3, "decades": 2, "head_lr": None}
    plan["rows"][0]["studies"] = window | {"trials": {}}


def no_method(plan: dict[str, Any]) -> None:
    del plan["trials"][0]["method"]["method"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (no_method, "trial '[0-9a-f]{16}' has no method"),
        (lambda plan: plan["rows"][0].update(trials={}), "row '[^']+' has no seed"),
        (too_wide, "rows.0.studies.decades: .*less than or equal to 100"),
        (other_ks, r"rows.0.studies: ks: expected 3, the number of points, .*got \[1, 2\]"),
        (lambda plan: plan.update(rows=3), "rows: should be a list"),
        (
            lambda plan: plan["rows"][0].update(trials={"0": "f" * 16}),
            "row '[^']+', seed 0: it has no trial 'ffffffffffffffff'",
        ),
    ],
)
def test_plans_of_which_no_tables_could_be_made(
    pack: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], said: str, call: Any
) -> None:
    other = changed(pack, tmp_path / "b.tensorbench.zip", edit_json("plan.json", change))
    ended = call("report", other, "--out", tmp_path / "out")
    assert ended.code == 2
    assert re.search(f"is refused: .*plan.json: {said}", ended.err.replace("\n", " "))
