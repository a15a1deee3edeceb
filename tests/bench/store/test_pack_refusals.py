"""Tests that broken or malicious packs are refused with a reason, and nothing is written."""

from __future__ import annotations

import io
import math
import re
import stat
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tensorbench.methods import UserError
from tensorbench.records.pack_format import MANIFEST, SCHEMA
from tensorbench.store.opening import open_results
from tensorbench.store.pack import archive, parquet

from ...packs import Files, changed, edit_json, packed
from ...reports.made_up import store

NewStore = Callable[[Path], str]


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory, new_store: NewStore) -> Path:
    folder = tmp_path_factory.mktemp("pack")
    return packed(store(folder, new_store), "small", folder)


def refused(pack: Path, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        open_results("", [str(pack)])
    assert str(pack) in str(error.value)


def test_a_pack_that_is_cut_or_not_there(pack: Path, tmp_path: Path, call: Any, new_store: NewStore) -> None:
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


def one_more_byte(content: Files) -> None:
    content[next(name for name in content if name.endswith("predictions.parquet"))] += b" "


def test_changed_files_are_refused_by_their_hash(pack: Path, tmp_path: Path) -> None:
    target = tmp_path / "b.tensorbench.zip"
    refused(
        changed(pack, target, one_more_byte, signed=False), r"predictions.parquet was changed: its sha256 is"
    )
    bytes_of = bytearray(pack.read_bytes())
    with zipfile.ZipFile(pack) as file:
        largest = max(file.infolist(), key=lambda entry: entry.compress_size)
    # Changes the content, not the header, since most of the header is stored twice and read once.
    bytes_of[largest.header_offset + 30 + len(largest.filename) + largest.compress_size // 2] ^= 1
    target.write_bytes(bytes_of)
    refused(target, "cannot be read, the file is cut or was changed")

    def less(content: Files) -> None:
        del content[next(name for name in content if name.endswith("curves.parquet"))]

    refused(changed(pack, target, less, signed=False), "curves.parquet' is not in it")
    refused(changed(pack, target, less), "curves.parquet: it is not there")

    def more(content: Files) -> None:
        content["experiments/0000/artifacts/ab/plan.json"] = b"{}"

    refused(changed(pack, target, more, signed=False), "its manifest does not name it")


def test_a_newer_schema(pack: Path, tmp_path: Path) -> None:
    def newer(manifest: dict[str, Any]) -> None:
        manifest |= {"schema": SCHEMA + 1, "members": ["of another form"]}

    def more(content: Files) -> None:
        edit_json(MANIFEST, newer)(content)
        content["of/another.kind"] = b""

    versions = rf"schema {SCHEMA + 1}; this one reads up to {SCHEMA}"
    refused(
        changed(pack, tmp_path / "b.tensorbench.zip", more, signed=False),
        rf"a later version of the harness wrote it \({versions}\): update",
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../evil.json", "lies outside of it"),
        ("experiments/0000/artifacts/../../../evil.json", "lies outside of it"),
        ("/etc/passwd", "lies outside of it"),
        ("C:/evil.json", "lies outside of it"),
        ("..\\evil.json", "lies outside of it"),
        ("experiments/0000/adapter.pkl", "is no file of a pack"),
        ("experiments/0000/artifacts/ab/traceback.txt", "is no file of a pack"),
        ("experiments/0000/", "is no file of a pack"),
    ],
)
def test_a_file_that_leads_out_or_is_none_of_a_pack(pack: Path, tmp_path: Path, name: str, said: str) -> None:
    def more(content: Files) -> None:
        content[name] = b"evil"

    refused(changed(pack, tmp_path / "b.tensorbench.zip", more), said)


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


def test_bombs(pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = zipfile.ZipInfo("experiments/0000/artifacts/ab/predictions.parquet")
    target = added(pack, tmp_path / "b.tensorbench.zip", bomb, bytes(2**21))
    refused(target, "is more than 200 times as large as it is in the zip file")
    for limit, said in (("MOST_MEMBERS", "files, more than 3"), ("MOST_BYTES", "bytes large, more than 3")):
        with monkeypatch.context() as patch:
            patch.setattr(archive, limit, 3)
            refused(pack, said)
    with monkeypatch.context() as patch:
        patch.setitem(archive.LARGEST, ".json", 3)
        refused(pack, "bytes large, more than 3")
    with monkeypatch.context() as patch:
        patch.setattr(archive, "MOST_DIRECTORY", 100)
        refused(pack, "its list of files has [0-9,]+ bytes, more than 100")
    for limit in ("JSON_BYTES", "JSON_MARKS"):
        with monkeypatch.context() as patch:
            patch.setattr(archive, limit, (3, 0))
            refused(pack, "manifest.json and others have [0-9,]+ (bytes|marks), more than 3")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda content: content[:-8] + (2**31).to_bytes(4, "little") + b"PAR1",
            "its footer states 2,147,483,648 bytes",
        ),
        (
            lambda content: content.replace(b"parquet-cpp-arrow", b"parquet-cpp-other"),
            "not written by pyarrow",
        ),
        # The first page follows the file's first four bytes and begins with its kind.
        (lambda content: content[:4] + b"\x15\x08" + content[6:], "a page has no header of its kind"),
        (lambda content: content[:4] + b"\x1b" + content[5:], "a field of an unknown type"),
        (lambda content: content[:4] + b"\x1c" * 20 + content[24:], "nested too deep"),
        (lambda content: content[:4] + b"\x15" + b"\xff" * 20 + content[25:], "a number that is too long"),
    ],
)
def test_tables_whose_size_cannot_be_added_up(
    pack: Path, tmp_path: Path, change: Callable[[bytes], bytes], said: str
) -> None:
    def edit(content: Files) -> None:
        (name,) = [name for name in content if name.endswith("runs.parquet")]
        content[name] = change(content[name])

    refused(changed(pack, tmp_path / "b.tensorbench.zip", edit), said)


def test_an_encoding_that_repeats_texts_in_a_few_bits(pack: Path, tmp_path: Path) -> None:
    def edit(content: Files) -> None:
        (name,) = [name for name in content if name.endswith("curves.parquet")]
        file = io.BytesIO()
        table = pq.read_table(io.BytesIO(content[name]))
        pq.write_table(table, file, use_dictionary=False, column_encoding={"key": "DELTA_BYTE_ARRAY"})
        content[name] = file.getvalue()

    refused(changed(pack, tmp_path / "b.tensorbench.zip", edit), "a page has encoding 7")


def test_a_file_of_parquet_that_is_larger_than_its_rows(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "LARGE", 0)
    monkeypatch.setattr(parquet, "SLACK", 0)
    monkeypatch.setitem(parquet.ROOMS, parquet.RUNS, parquet.Room(1))
    refused(pack, r"runs.parquet: 5 rows that need [\d,]+ bytes, more than")


def with_runs(change: Callable[[dict[str, Any]], None]) -> Callable[[Files], None]:
    """Returns a change of a pack's files. It applies `change` to the last row of the table of runs."""

    def edit(content: Files) -> None:
        (name,) = [name for name in content if name.endswith("runs.parquet")]
        lines = pq.read_table(io.BytesIO(content[name])).to_pylist()
        change(lines[-1])
        content[name] = parquet.written(pa.Table.from_pylist(lines, parquet.RUNS))

    return edit


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"run_id": "../../x"}, "run_id: '../../x' is none"),
        ({"status": "RUNNING"}, "status of run .*: 'RUNNING'; accepted are FINISHED, FAILED, KILLED"),
        ({"started": None}, "started of run .* is missing"),
        ({"started": -1}, "started of run .*: -1 is no time"),
        ({"ended": 10**18}, "ended of run .*: 1000000000000000000 is no time"),
        ({"tags": [("kind", "trial"), ("trial_id", "<b>")]}, "trial_id of run .*: '<b>' is none"),
        ({"metrics": [("score", 1e308)]}, "metric 'score' of run .*: 1e\\+308"),
        ({"metrics": [("score", -1e39)]}, "metric 'score' of run .*: -1e\\+39"),
        ({"tags": [("kind", "suite")]}, "2 runs of a suite; a pack has one"),
        ({"tags": [("kind", "other")]}, "kind of run .*: 'other'; accepted are suite"),
        (
            {"tags": [("kind", "suite"), ("mlflow.note.content", "x" * 8001)]},
            "tag 'mlflow.note.content' of run .* longer than",
        ),
    ],
)
def test_runs_that_no_store_would_hold(pack: Path, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    refused(changed(pack, tmp_path / "b.tensorbench.zip", with_runs(lambda run: run.update(change))), said)


def test_points_of_curves_beyond_float32(pack: Path, tmp_path: Path) -> None:
    def edit(content: Files) -> None:
        (name,) = [name for name in content if name.endswith("curves.parquet")]
        points = pq.read_table(io.BytesIO(content[name])).to_pylist()
        points[0]["value"], points[1]["value"] = math.inf, 1e308
        content[name] = parquet.written(pa.Table.from_pylist(points, parquet.CURVES))

    refused(changed(pack, tmp_path / "b.tensorbench.zip", edit), r"curves.parquet: a point is at 1e\+308")


def too_wide(plan: dict[str, Any]) -> None:
    window = {"studies": 2, "points": 2, "ks": [2], "centre": 1e-3, "decades": 1e9, "head_lr": None}
    plan["rows"][0]["studies"] = window | {"trials": {}}


def not_a_plan(plan: dict[str, Any]) -> None:
    plan["rows"] = 3


def no_method(plan: dict[str, Any]) -> None:
    del plan["trials"][0]["method"]["method"]


def no_seed(plan: dict[str, Any]) -> None:
    plan["rows"][0]["trials"] = {}


def no_trial(plan: dict[str, Any]) -> None:
    plan["rows"][0]["trials"] = {"0": "f" * 16}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (no_method, "trial '[0-9a-f]{16}' has no method"),
        (no_seed, "row 'LoRA' has no seed"),
        (too_wide, "rows.0.studies.decades: .*less than or equal to 100"),
        (not_a_plan, "rows: should be a list"),
        (no_trial, "row 'LoRA', seed 0: it has no trial 'ffffffffffffffff'"),
    ],
)
def test_plans_of_which_no_tables_could_be_made(
    pack: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], said: str, call: Any
) -> None:
    other = changed(pack, tmp_path / "b.tensorbench.zip", edit_json("plan.json", change))
    ended = call("report", other, "--out", tmp_path / "out")
    assert ended.code == 2
    assert re.search(f"is refused: .*plan.json: {said}", ended.err.replace("\n", " "))


def test_another_table_than_that_of_a_pack(pack: Path, tmp_path: Path) -> None:
    def other(content: Files) -> None:
        for name in content:
            if name.endswith("runs.parquet"):
                content[name] = parquet.written(pa.table({"run_id": ["a"]}))

    refused(changed(pack, tmp_path / "b.tensorbench.zip", other), "its columns are not run_id, parent")


def test_columns_within_columns_end_no_process(pack: Path, tmp_path: Path) -> None:
    # A footer in Thrift: a version, 50,000 columns, each nested in the one before, no rows and no row groups.
    column, last = b"\x35\x02\x18\x01a\x15\x02\x00", b"\x15\x04\x25\x00\x18\x01a\x00"
    schema = b"\x19\xfc\xd1\x86\x03" + column * 50_000 + last
    footer = b"\x15\x04" + schema + b"\x16\x00\x19\x0c\x28\x11parquet-cpp-arrow\x00"
    content = b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1"

    def nested(files: Files) -> None:
        files[next(name for name in files if name.endswith("runs.parquet"))] = content

    refused(changed(pack, tmp_path / "deep.tensorbench.zip", nested), "runs.parquet: .*nested too deep")
