"""Tests the measure of forgetting: against a naive loop, in trials, and everywhere it is shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pyarrow
import pytest
import torch
from huggingface_hub.errors import HTTPError
from pyarrow import parquet

import tensorbench
import tensorbench.training.trial
from tensorbench.backbones import BackboneSpec, load
from tensorbench.backbones.inputs import TextInput
from tensorbench.backbones.random_weights import byte_tokenizer
from tensorbench.methods import UserError
from tensorbench.plan.recipe import Recipe
from tensorbench.records.measures import Measure
from tensorbench.records.words import Tag
from tensorbench.tasks import plain_text
from tensorbench.tasks.plain_text import plain_tokens
from tensorbench.training.trial import Resources, run_trial, text_loss

from ...messages import naming
from ..local_checkpoints import language_model
from ..toy_runs import run
from ..toy_suites import TEXT, plan

DECODER = {**TEXT, "backbones": ["tiny-random-llama"], "training": {"batch_size": 16, "steps": 2, "lr": 1e-2}}


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_the_loss_is_the_mean_of_all_tokens_together(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = language_model(kind, tmp_path, tie_word_embeddings=kind == "gemma2")
    backbone = load(BackboneSpec(local=tmp_path))
    text = tuple(torch.arange(2, 2 + length) for length in (3, 12, 7))
    total, count = 0.0, 0
    with torch.no_grad():
        for document in text:
            logits = model(document[None]).logits[0].log_softmax(-1)
            for place, token in enumerate(document[1:].tolist()):
                total, count = total - float(logits[place, token]), count + 1
    recipe = Recipe.model_validate({}).resolved("cpu")
    assert text_loss(backbone, text, recipe) == (pytest.approx(total / count, rel=1e-5), count)
    monkeypatch.setattr("tensorbench.training.trial.TOKENS_AT_ONCE", 12)
    assert text_loss(backbone, text, recipe) == (pytest.approx(total / count, rel=1e-5), count)


def test_trials_measure_what_the_adapter_did_against_the_backbone_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bare = []
    real = Resources.bare_loss

    def counted(self: Resources, *arguments: Any) -> float:
        before = len(self._bare)
        loss = real(self, *arguments)
        bare.append(len(self._bare) - before)
        return loss

    monkeypatch.setattr(Resources, "bare_loss", counted)
    # The second method starts away from zero and is hardly trained.
    other = {"method": "tt_lora", "start": "published", "training": {"lr": 1e-6}}
    made = plan(DECODER, methods=["head_only", other, "lora"])
    resources = Resources("cpu")
    records = [run_trial(trial, resources, lambda _: None).record() for trial in made.trials]
    assert bare == [1, 0, 0]
    nothing, start, lora = (record.measure(Measure.FORGETTING) for record in records)
    assert nothing == 0.0
    assert start is not None
    assert lora is not None
    assert min(abs(start), abs(lora)) > 1e-6
    assert len({record.measure(Measure.TEXT_LOSS_BARE) for record in records}) == 1
    # tiny-random-llama reads bytes, so 32 editorials reach the token limit.
    assert {record.measure(Measure.TEXT_TOKENS) for record in records} == {32 * 127}
    assert {record.tag(Tag.TEXT) for record in records} == {"newspapers"}


def test_no_id_depends_on_forgetting_and_encoders_have_none() -> None:
    (trial,) = plan(DECODER).trials
    (without,) = plan(DECODER, forgetting="none").trials
    assert (trial.forgetting, without.forgetting) == ("newspapers", None)
    assert trial.id == without.id
    assert Measure.TEXT_LOSS not in run_trial(without, Resources("cpu"), lambda _: None).measures
    (encoder,) = plan(TEXT).trials
    assert encoder.forgetting is None
    with pytest.raises(UserError, match=naming("forgetting", "'newspapers'", "'finewiki'")):
        plan(DECODER, forgetting="novels")


def test_a_missing_text_is_reported_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(_: int) -> list[str]:
        raise UserError("no index")

    monkeypatch.setattr("tensorbench.tasks.plain_text.TEXTS", {"finewiki": _text(away)})
    (trial,) = plan(DECODER, forgetting="finewiki").trials
    with pytest.raises(UserError, match=naming("'finewiki'", "no index", "`forgetting: none`")):
        tensorbench.execution.perform.prepare_all([trial], Resources("cpu"))


def _text(read: Callable[[int], Any]) -> Any:
    from tensorbench.tasks.plain_text import PlainText

    return PlainText(3, 9, "made up for a test", read)


def test_documents_begin_as_the_tokenizer_begins_a_text_and_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "tensorbench.tasks.plain_text.TEXTS", {"newspapers": _text(lambda count: ["ab", "x" * 99])}
    )
    tokenizer = byte_tokenizer(512)
    text_input = TextInput("bytes", 512, lambda: tokenizer)
    short, long = plain_tokens("newspapers", text_input)
    assert tokenizer.decode(short) == "<s>ab"
    assert tokenizer.decode(long) == "<s>" + "x" * 8


def test_the_first_articles_are_read_from_the_cache_or_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pyarrow.table({"id": range(150), "text": [f"article {number}" for number in range(150)]})
    parquet.write_table(table, file := tmp_path / "articles.parquet")
    paths = []

    class FileSystem:
        def open(self, path: str) -> Any:
            paths.append(path)
            if len(paths) > 1:
                raise HTTPError("no network")
            return file.open("rb")

    monkeypatch.setattr(huggingface_hub, "HfFileSystem", FileSystem)
    first = [f"article {number}" for number in range(100)]
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: str(file))
    assert plain_text.articles(100) == first
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    assert plain_text.articles(100) == first
    assert paths == [f"datasets/{plain_text.REPOSITORY}@{plain_text.REVISION}/{plain_text.FILE}"]
    with pytest.raises(UserError, match=naming("no network", "`hf download")):
        plain_text.articles(100)


def test_forgetting_is_stored_shown_and_reported(
    tmp_path: Path, new_store: Callable[[Path], str], call: Callable[..., Any]
) -> None:
    ran = run(tmp_path, new_store, call, DECODER, backbones=["tiny-random-llama", "tiny-random-bert"])
    results = tensorbench.load_results("toy", store=ran.uri)
    trials = results.trials.set_index("backbone")
    decoder, encoder = trials.loc["tiny-random-llama"], trials.loc["tiny-random-bert"]
    assert decoder["forgetting"] == pytest.approx(decoder["text_loss"] - decoder["text_loss_bare"])
    assert (decoder["text_tokens"], decoder["text"], encoder["text"]) == (4064, "newspapers", "")
    cells = results.cells.set_index("backbone")["forgetting"]
    assert cells["tiny-random-llama"] == pytest.approx(decoder["forgetting"])
    assert cells.isna()["tiny-random-bert"]
    shown = [call("show", row["trial_id"], "--store", ran.uri).out for row in (decoder, encoder)]
    assert f"{decoder['forgetting']:+.4f} nats" in shown[0]
    assert "not measured" in shown[1]
    ended = call("report", "toy", "--store", ran.uri, "--out", tmp_path / "report")
    assert ended.code == 0, ended.err
    page = (tmp_path / "report" / "index.html").read_text()
    assert "forgetting, nats" in page
    assert f">{cells['tiny-random-llama']:+.4f}<" in page
