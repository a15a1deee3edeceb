"""Tests exports of stored trials."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from mlflow.tracking import MlflowClient
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, pipeline

import tensorbench.store.finding
from tensorbench.backbones import BackboneSpec, load
from tensorbench.methods import UserError
from tensorbench.records.record import Record, record_of
from tensorbench.records.words import Tag
from tensorbench.store.finding import find_trial
from tensorbench.store.store import Store
from tensorbench.tasks import TASKS, prepare
from tensorbench.tools.export import Exported, export_run

from ...messages import naming
from ...predicted import frame_of
from ...stored import begun
from ..toy_runs import run_inline
from ..toy_suites import TEXT, VISION, plan
from .cases import Case, close


@dataclass
class Stored:
    """A store with finished, failed and killed trials."""

    uri: str
    records: list[Record]

    def record(self, status: str, method: str = "") -> Record:
        return next(r for r in self.records if r.status == status and r.tags["method"].startswith(method))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], str]) -> Stored:
    uri = new_store(tmp_path_factory.mktemp("run"))
    store = Store.create(uri, "toy")
    wild = {"method": "lora", "rank": 1, "training": {"lr": 1e30}}
    made = plan(VISION, methods=["lora", {"method": "tenslora", "variant": "qkv"}, "head_only", wild])
    run_inline(store, made)
    other = plan(VISION, seeds=[7])
    begun(store, other.trials[0], other.rows).kill()
    return Stored(uri, store.records())


@pytest.mark.parametrize("method", ["LoRA", "TensLoRA"])
def test_a_stored_trial_gives_the_predictions_that_were_stored(
    stored: Stored, tmp_path: Path, method: str
) -> None:
    record = stored.record("FINISHED", method)
    exported = export_run(record.trial_id[:8], tmp_path / "export", stored.uri)
    file = MlflowClient(stored.uri).download_artifacts(
        record.run_id, "predictions.safetensors", str(tmp_path)
    )
    predictions = frame_of(Path(file).read_bytes())
    task = VISION["tasks"][0]
    sizes = {key: task[key] for key in ("train_size", "validation_size", "test_size")}
    info = load("tiny-random-vit").info
    split = prepare(TASKS.get("digits"), info.input, max_tokens=128, **sizes).test
    batch = split.batch(torch.arange(len(split)))
    assert split.ids.tolist() == predictions["example"].tolist()
    stored_logits = torch.tensor(predictions[[f"logit_{i}" for i in range(10)]].to_numpy())
    close(_logits(exported, batch), stored_logits)
    readme = (exported.folder / "README.md").read_text()
    for sentence in (
        record.run_id,
        record.trial_id,
        info.weights_hash,
        "digits",
        "accuracy, test split",
        "| seed | 0",
    ):
        assert sentence in readme
    assert f"{record.metrics['score']:.4f}" in readme
    merged_export = export_run(record.run_id, tmp_path / "again", stored.uri, merged=True)
    close(_logits(merged_export, batch), stored_logits)


def _logits(exported: Exported, batch: dict[str, Tensor]) -> Tensor:
    spec = BackboneSpec(name="tiny-random-vit")
    logits: Tensor = Case(spec, load(spec), exported.folder).loaded(**batch)["logits"]
    return logits


def test_runs_that_cannot_be_exported(stored: Stored, tmp_path: Path) -> None:
    out = tmp_path / "export"
    finished = stored.record("FINISHED")
    wrong = finished.trial_id[:-1] + "x"
    with pytest.raises(UserError, match=naming(f"'{wrong}'", f"trial {finished.trial_id}")):
        export_run(wrong, out, stored.uri)
    with pytest.raises(UserError, match="''"):
        export_run("", out, stored.uri)
    with pytest.raises(UserError, match=naming("diverged", "no adapter")):
        export_run(stored.record("FAILED").run_id, out, stored.uri)
    with pytest.raises(UserError, match="stopped"):
        export_run(stored.record("KILLED").trial_id, out, stored.uri)
    with pytest.raises(UserError, match=naming("no adapter", "--merged")):
        export_run(stored.record("FINISHED", "head").run_id[:12], out, stored.uri)
    with pytest.raises(UserError, match="no store"):
        export_run(wrong, out, f"sqlite:///{tmp_path}/none.db")
    assert not out.exists()
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        export_run(finished.run_id, out, stored.uri)


def test_ids_and_prefixes_select_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(run_id: str, trial: str, status: str, origin: str = "", parent: str = "own") -> Record:
        tags = {"trial_id": trial, "mlflow.runName": f"name of {run_id}"}
        tags |= {Tag.ORIGIN: origin, Tag.PARENT: parent}
        return record_of(run_id, status, 0, tags, {})

    runs = [
        run("aa01", "cc01", "FAILED"),
        run("aa02", "cc01", "FINISHED"),
        run("aa03", "cc01", "FINISHED"),
        run("bb01", "cc02", "FINISHED"),
        run("bb02", "cc03", "FINISHED"),
        # A pack's run, and its copy in the suite that extends the pack.
        run("dd01", "cc05", "FINISHED", "ee01", "pack"),
        run("dd02", "cc05", "FINISHED", "ee01"),
    ]
    monkeypatch.setattr(tensorbench.store.finding, "find_runs", lambda *_: runs)
    monkeypatch.setattr(tensorbench.store.finding, "experiments", lambda _: [])
    monkeypatch.setattr(tensorbench.store.finding, "connect", MagicMock())
    monkeypatch.setattr(tensorbench.store.finding, "Store", MagicMock())
    expected = {
        "aa01": "aa01",
        "AA03": "aa03",
        "cc01": "aa02",
        "cc02": "bb01",
        "bb01": "bb01",
        "bb02": "bb02",
        "dd01": "dd01",
        "ee01": "dd02",
        "cc05": "dd02",
    }
    assert {prefix: find_trial("", prefix)[1].run_id for prefix in expected} == expected
    with pytest.raises(UserError, match=naming("'cc'", "cc01", "aa02", "cc02", "cc03")):
        find_trial("", "cc")
    with pytest.raises(UserError, match=naming("aa01", "(failed)", "aa02", "aa03")):
        find_trial("", "aa")
    with pytest.raises(UserError, match=naming("'cc04'", "trial cc0")):
        find_trial("", "cc04")


# --- what was stored is what is read ---


@dataclass
class Kept:
    """The run of a finished trial. A test may change its artifacts, which are restored afterwards."""

    stored: Stored
    record: Record
    out: Path

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.stored.uri)

    def file(self, name: str) -> Path:
        return Path(self.record.artifacts.removeprefix("file://")) / name

    def flip(self, name: str, at: int = -1) -> None:
        content = bytearray(self.file(name).read_bytes())
        content[at] ^= 0x40
        self.file(name).write_bytes(content)

    def as_of_an_older_version(self) -> None:
        self.client.delete_tag(self.record.run_id, Tag.HASHES)

    def export(self, **options: Any) -> Exported:
        return export_run(self.record.run_id, self.out, self.stored.uri, **options)


@pytest.fixture
def kept(stored: Stored, tmp_path: Path) -> Iterator[Kept]:
    made = Kept(stored, stored.record("FINISHED", "LoRA"), tmp_path / "export")
    files = {file: file.read_bytes() for file in made.file(".").iterdir()}
    yield made
    made.client.set_tag(made.record.run_id, Tag.HASHES, made.record.tag(Tag.HASHES))
    for file, content in files.items():
        file.write_bytes(content)


@pytest.mark.parametrize("name", ["adapter.safetensors", "config.json"])
def test_a_flipped_bit_is_refused_with_run_and_file(kept: Kept, name: str) -> None:
    kept.flip(name)
    with pytest.raises(UserError, match=naming(name, kept.record.run_id, "changed")):
        kept.export()
    assert not kept.out.exists()


def test_a_run_without_hashes_is_exported_and_said_to_be_not_verified(
    kept: Kept, call: Callable[..., Any]
) -> None:
    kept.as_of_an_older_version()
    ended = call("export", kept.record.run_id, "--store", kept.stored.uri, "--out", kept.out)
    assert ended.code == 0, ended.err
    for shown in (ended.out, (kept.out / "README.md").read_text()):
        assert "not verified" in shown


def test_a_pipeline_of_a_merged_trial_gives_its_stored_predictions(kept: Kept) -> None:
    kept.export(merged=True)
    frame = frame_of(kept.file("predictions.safetensors").read_bytes())
    examples = TASKS.get("digits").examples()
    images = dict(zip(examples.ids, examples.inputs, strict=True))
    exact = AutoImageProcessor.from_pretrained(kept.out, backend="pil")
    classify = pipeline("image-classification", model=str(kept.out), image_processor=exact)
    shown_images = [Image.fromarray(images[each]) for each in frame["example"]]
    answers = classify(shown_images, function_to_apply="none", top_k=10)
    scores = [
        [{entry["label"]: entry["score"] for entry in answer}[str(i)] for i in range(10)]
        for answer in answers
    ]
    close(torch.tensor(scores), torch.tensor(frame[[f"logit_{i}" for i in range(10)]].to_numpy()))


def test_weights_that_are_not_the_trials(
    stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tensorbench.backbones.random_weights.SEED", 1)
    with pytest.raises(UserError, match=naming("seed=0", "seed=1")):
        export_run(stored.record("FINISHED", "LoRA").run_id, tmp_path / "export", stored.uri)


def test_an_empty_store(new_store: Callable[[Path], str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no trial"):
        export_run("abc", tmp_path / "export", new_store(tmp_path))


def test_a_file_that_is_gone_is_named_with_its_run(kept: Kept) -> None:
    kept.as_of_an_older_version()
    kept.file("adapter.safetensors").unlink()
    with pytest.raises(UserError, match=naming("adapter.safetensors", kept.record.run_id)):
        kept.export()


def test_names_of_outputs_that_may_have_changed_are_reported(
    tmp_path: Path, new_store: Callable[[Path], str]
) -> None:
    data = tmp_path / "data.csv"
    rows = "".join(f"text number {i},{'good' if i % 2 else 'bad'}\n" for i in range(120))
    data.write_text(f"text,label\n{rows}")
    uri = new_store(tmp_path)
    store = Store.create(uri, "toy")
    task = {"name": "mine", "csv": str(data), "text": "text", "label": "label", "max_tokens": 16}
    made = plan({**TEXT, "tasks": [task]}, methods=["lora"])
    run_inline(store, made)
    (record,) = store.records()
    assert not export_run(record.run_id, tmp_path / "before", uri).doubts
    data.write_text(f"text,label\n{rows.replace('bad', 'terrible')}")
    (doubt,) = export_run(record.run_id, tmp_path / "after", uri).doubts
    assert "'mine' changed since the trial" in doubt
    assert doubt in (tmp_path / "after" / "README.md").read_text()
