"""Tests the commands `list` and `show` with the experiments of a store and with a trial."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import tensorbench
from tensorbench.machine.files import sha256
from tensorbench.store.store import Store
from tensorbench.training.seeding import stream_seed

from ..fixtures import Call
from ..messages import naming
from .toy_runs import SHORT, Ran, run
from .toy_suites import VISION

#: A LoRA that diverges at once.
DIVERGES = {"method": "lora", "rank": 2, "training": {"lr": 1e30, "steps": 3}}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], str], call: Call) -> Ran:
    """A suite with one finished trial and one failed trial. The runs of four others were deleted."""
    folder = tmp_path_factory.mktemp("stored")
    methods = ["lora", DIVERGES, {"method": "tenslora", "variant": "qkv_depth"}]
    ran = run(folder, new_store, call, VISION, methods=methods, seeds=[0, 1], training=SHORT | {"lr": 5e-3})
    for record in ran.store.records():
        if record.tags["method"].startswith("TensLoRA") or record.tags["seed"] == "1":
            ran.store.client.delete_run(record.run_id)
    return ran


def test_the_list_counts_each_suites_trials(ran: Ran, call: Call) -> None:
    Store.create(ran.uri, "not_of_ours")
    ended = call("list", "--store", ran.uri)
    assert ended.code == 0, ended.err
    (line,) = (line.split() for line in ended.out.splitlines() if line.split()[:1] == ["toy"])
    assert line[1:7] == ["1", "✗", "1", "0", "4", "0"]
    assert "not_of_ours" not in ended.out
    (listed,) = json.loads(call("list", "--store", ran.uri, "--json").out)
    assert (listed["experiment"], listed["complete"], listed["failed"], listed["missing"]) == ("toy", 1, 1, 4)
    assert listed["latest"] >= max(record.started for record in ran.store.records())


def test_trials_removed_from_the_plan_count_as_others(
    call: Call, new_store: Callable[[Path], str], tmp_path: Path
) -> None:
    before = run(tmp_path, new_store, call, VISION, methods=["head_only"], training=SHORT)
    before.suite.write_text(before.suite.read_text().replace("head_only", "lora"))
    assert call("run", before.suite, "--store", before.uri).code == 0
    (listed,) = json.loads(call("list", "--store", before.uri, "--json").out)
    assert (listed["complete"], listed["missing"], listed["others"]) == (1, 0, 1)


def test_a_store_without_a_suite_says_so(
    call: Call, new_store: Callable[[Path], str], tmp_path: Path
) -> None:
    uri = new_store(tmp_path)
    assert call("list", "--store", uri) == (0, f"{uri} contains no suite yet.\n", "")
    assert call("list", "--store", uri, "--json").out == "[]\n"
    missing = call("list", "--store", f"sqlite:///{tmp_path}/none.db")
    assert missing.code == 2
    assert "no store" in missing.err


def test_a_finished_trial_is_shown_with_all_that_is_stored_of_it(ran: Ran, call: Call) -> None:
    record = ran.by_method("LoRA")
    ended = call("show", record.trial_id[:6], "--store", ran.uri)
    assert ended.code == 0, ended.err
    shown = {line[:15].strip(): line[15:].strip() for line in ended.out.splitlines()}
    assert shown["trial"] == record.trial_id
    assert shown["run"] == f"{record.run_id}, in experiment toy"
    assert shown["budget"] == "isoparameters 2, 1.000 of 768"
    assert shown["parameters"].startswith("768, 50.00% of LoRA r=4; head ")
    assert shown["status"] == "finished"
    assert shown["test"].startswith(f"accuracy {record.score:.4f}, loss ")
    assert shown["selected"].startswith("validation accuracy ")
    assert "1 steps" in shown["time"]
    assert "lr 0.005" in shown["recipe options"]
    for artifact in ("adapter.safetensors", "config.json", "predictions.safetensors"):
        assert f"{artifact}, " in ended.out
    assert call("show", record.run_id, "--store", ran.uri).out == ended.out


def test_from_a_trial_one_comes_to_the_suite_and_all_that_made_it(ran: Ran, call: Call) -> None:
    record = ran.by_method("LoRA")
    shown = call("show", record.trial_id, "--store", ran.uri).out
    assert f"suite.yaml, sha256 {sha256(ran.suite)}" in shown.replace("\n", " ")
    assert f"harness {tensorbench.__version__}" in shown
    assert f"torch {record.provenance['version_torch']}" in shown
    assert f"data_order {stream_seed(0, 'data_order')}" in " ".join(shown.split())
    assert call("show", record.trial_id, "--suite", "--store", ran.uri).out == ran.suite.read_text()
    read = json.loads(call("show", record.trial_id, "--store", ran.uri, "--json").out)["provenance"]
    assert read["start"]["suite"]["text"] == ran.suite.read_text()
    assert read["start"]["libraries"]["torch"] == record.provenance["version_torch"]
    assert record.provenance["suite_sha256"] == sha256(ran.suite)
    assert (read["started"], read["ended"]) == (record.started, record.ended)
    assert read["ended"] >= read["started"]


def test_from_a_cell_of_a_table_one_comes_to_its_trials_and_what_made_them(ran: Ran, call: Call) -> None:
    record = ran.by_method("LoRA")
    cells = tensorbench.load_results("toy", store=ran.uri).cells
    (number,) = cells.index[cells["method"] == "LoRA"]
    shown = call("show", "toy", "--cell", number, "--store", ran.uri)
    assert shown.code == 0, shown.err
    assert shown.out.startswith("LoRA · isoparameters 2 · digits")
    assert f"trial {record.trial_id}, run {record.run_id}" in shown.out
    assert re.search(r"^seed 1 +missing, trial ", shown.out, re.M)
    assert re.search(r"^suite +suite.yaml, sha256 ", shown.out, re.M)
    read = json.loads(call("show", "toy", "--cell", number, "--store", ran.uri, "--json").out)
    assert read["cell"]["mean"] == record.score
    assert read["seeds"][0]["provenance"]["start"]["suite"]["text"] == ran.suite.read_text()
    assert read["seeds"][1]["provenance"] is None
    beyond = call("show", "toy", "--cell", 99, "--store", ran.uri)
    assert (beyond.code, bool(re.search(naming("--cell", 99, "toy", 0, 2), beyond.err))) == (2, True)


def test_a_trial_of_an_earlier_version_says_that_its_suite_is_not_known(ran: Ran, call: Call) -> None:
    record = ran.by_method("LoRA")
    file = ran.artifact(record, "config.json")
    original, configuration = file.read_text(), json.loads(file.read_text())
    del configuration["start"]
    file.write_text(json.dumps(configuration))
    ran.store.client.delete_tag(record.run_id, "sha256")
    try:
        shown = call("show", record.trial_id, "--store", ran.uri)
        answer = call("show", record.trial_id, "--suite", "--store", ran.uri)
    finally:
        file.write_text(original)
        ran.store.client.set_tag(record.run_id, "sha256", record.tags["sha256"])
    assert "stores none" in shown.out
    assert answer.code == 2
    assert "stores none" in answer.err


def test_a_failed_trial_is_shown_with_its_traceback(ran: Ran, call: Call) -> None:
    record = ran.by_method("LoRA [lr=1e+30, steps=3]")
    ended = call("show", record.trial_id, "--store", ran.uri)
    assert ended.code == 0, ended.err
    assert "diverged: the loss is" in ended.out
    assert "Traceback (most recent call last)" in ended.out
    read = json.loads(call("show", record.trial_id, "--store", ran.uri, "--json").out)
    assert read["traceback"] == ran.artifact(record, "traceback.txt").read_text()
    assert (read["status"], read["budgets"], read["row"]["parameters"]) == ("FAILED", [], 768)
    assert read["configuration"]["recipe.lr"] == "1e+30"


def test_unknown_and_ambiguous_ids_are_refused(ran: Ran, call: Call) -> None:
    first, second = (ran.by_method(name).trial_id for name in ("LoRA", "LoRA [lr=1e+30, steps=3]"))
    unknown = call("show", "zz", "--store", ran.uri)
    assert unknown.code == 2
    assert "'zz'" in unknown.err
    assert first in unknown.err
    for record in ran.store.records():
        ran.store.client.set_tag(record.run_id, "trial_id", f"abc{record.trial_id}")
    try:
        ambiguous = call("show", "abc", "--store", ran.uri)
    finally:
        for record in ran.store.records():
            ran.store.client.set_tag(record.run_id, "trial_id", record.trial_id.removeprefix("abc"))
    assert ambiguous.code == 2
    assert "'abc'" in ambiguous.err
    assert first in ambiguous.err
    assert second in ambiguous.err


def test_the_text_of_a_suite_commands_no_terminal(
    ran: Ran, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    wild = "# \u202egnihtemos\u202c \x1b[2J\x9b1m \u200b\ud800 \U000e0041\r\nname: toy\ttoo\n"
    monkeypatch.setattr("tensorbench.reports.stored.Provenance.suite_text", lambda _: wild)
    record = ran.by_method("LoRA")
    shown = call("show", record.trial_id, "--suite", "--store", ran.uri).out
    assert shown == (
        r"# \u202egnihtemos\u202c \u001b[2J\u009b1m \u200b\ud800 \U000e0041" + "\nname: toy\ttoo\n"
    )
