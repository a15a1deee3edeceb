"""Tests generation tasks: losses against a loop, texts against transformers' `generate`, and trials."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet

from tensorbench.backbones import BackboneSpec, LoadedBackbone, load
from tensorbench.backbones.answers import put_head
from tensorbench.backbones.inputs import TextInput
from tensorbench.backbones.random_weights import byte_tokenizer
from tensorbench.methods import Geometry, UserError, create, from_identity
from tensorbench.plan.suite import load_suite
from tensorbench.records.measures import Measure
from tensorbench.records.words import Artifact
from tensorbench.tasks import DataSource, TextSplit, prepare
from tensorbench.tasks.objective import extracted, same
from tensorbench.tasks.school_math import GSM8K, METAMATH, MetaMath
from tensorbench.tasks.splits import WrittenSplit, answers_of
from tensorbench.tasks.tokens import written
from tensorbench.training.loop import evaluate
from tensorbench.training.saving import Saving
from tensorbench.training.trial import Resources, run_trial

from ...messages import naming
from ...predicted import frame_of
from ..local_checkpoints import language_model
from ..toy_suites import VISION, plan

PROMPTS, ANSWERS = ["what?", "why is it so?", "a"], ["this", "é", "no reason at all"]


@pytest.fixture(scope="module", params=["llama", "gemma2", "gpt2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A language model of transformers, saved with a tokenizer of bytes in the folder `model.folder`."""
    folder = tmp_path_factory.mktemp(request.param)
    made = language_model(request.param, folder, tokens=64)
    made.folder = folder
    return made


def loaded(model: Any, new_tokens: int) -> LoadedBackbone:
    backbone = load(BackboneSpec(local=model.folder))
    text_input = TextInput("", 64, lambda: byte_tokenizer(64), new_tokens=new_tokens)
    put_head(backbone, text_input, 3, torch.Generator())
    return backbone


def split(*, trains_prompts: bool = False, max_tokens: int = 24) -> WrittenSplit:
    arrays = written(byte_tokenizer(64), max_tokens, PROMPTS, ANSWERS)
    made = {name: torch.from_numpy(values.copy()) for name, values in arrays.items()}
    starts = made["lengths"].cumsum(0) - made["lengths"]
    base = TextSplit(made["tokens"], starts, made["lengths"], torch.ones(3), torch.arange(3), 1)
    return WrittenSplit(
        **vars(base), prompts=made["prompts"], answers=answers_of(made), trains_prompts=trains_prompts
    )


@pytest.mark.parametrize("trains_prompts", [False, True])
def test_losses_are_of_the_answers_tokens_or_of_all(model: Any, trains_prompts: bool) -> None:
    backbone, tokenizer = loaded(model, 5), byte_tokenizer(64)
    expected = []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        prompt_ids, answer_ids = (
            tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer)
        )
        tokens = [0, *prompt_ids, *answer_ids, 2][:24]
        with torch.no_grad():
            logits = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
        first = 1 if trains_prompts else 1 + len(prompt_ids)
        log_likelihoods = [float(logits[place - 1, tokens[place]]) for place in range(first, len(tokens))]
        expected.append([0.0, sum(log_likelihoods), len(log_likelihoods)])
    with torch.no_grad():
        outputs = backbone.module(**split(trains_prompts=trains_prompts).batch(torch.arange(3)))
    torch.testing.assert_close(outputs, torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_written_texts_equal_those_of_transformers(model: Any) -> None:
    backbone, tokenizer = loaded(model, 12), byte_tokenizer(64)
    ids, mask = split().prompt_batch(torch.tensor([1, 0, 2]))
    assert ids[1].tolist()[: ids.shape[1] - 6] == [1] * (ids.shape[1] - 6)
    assert tokenizer.decode(ids[0]) == "<s>why is it so?"
    # The likeliest third token ends the text for some prompts, so lengths differ.
    for end in (2, int(model(ids[:1]).logits[0, -1].argmax())):
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
        backbone.module.answers.tokenizer = tokenizer
        with torch.no_grad():
            texts = backbone.module.answers.write(backbone.module.encoder, ids, mask)
            generated = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=12,
                do_sample=False,
                eos_token_id=end,
                pad_token_id=1,
            )[:, ids.shape[1] :]
        expected = [row[: row.index(end)] if end in row else row for row in generated.tolist()]
        assert texts == [tokenizer.decode(row, skip_special_tokens=True) for row in expected]


# The model itself has 64 positions.
@pytest.mark.parametrize("limit", [20, 64])
def test_no_answer_is_longer_than_the_model_reads(model: Any, limit: int) -> None:
    backbone = loaded(model, 100)
    writer: Any = backbone.module.answers
    writer.limit = limit
    ids, mask = split().prompt_batch(torch.arange(3))
    with torch.no_grad():
        together = writer.write(backbone.module.encoder, ids, mask)
        prompts = [split().prompt_batch(torch.tensor([number])) for number in range(3)]
        alone = [writer.write(backbone.module.encoder, *prompt)[0] for prompt in prompts]
    assert together == alone


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("It is 3.\nThe answer is: 42", "42"),
        ("The answer is 7 apples.", "7 apples"),
        ("The answer is: 1\nThe answer is: $2.50!\nmore", "2.50"),
        ("#### 5 The answer is 6", "6"),
        ("so\n#### 1,234", "1,234"),
        ("The final answer is: 3/4", "3/4"),
        ("The answer is: \n42\nmore", "42"),
        ("####  \n\n 18", "18"),
        ("The answer is: ", None),
        ("nothing of the kind", None),
    ],
)
def test_the_part_that_counts(text: str, answer: str | None) -> None:
    phrases = ("The answer is: ", "The answer is ", "The final answer is: ", "The final answer is ", "#### ")
    assert extracted(text, phrases) == answer


def test_answers_are_numbers_where_both_are() -> None:
    assert same("0.75", "3/4")
    assert same("42.0", "42")
    assert same("3 / 4", "0.75")
    assert same("1.5/2", "3/4")
    assert same("3/-4", "-0.75")
    assert not same("1/2/3", "1/6")
    assert same("Nan", "Nan")
    assert not same("1,234", "1234")
    assert same("x + 1", "x + 1")
    assert not same(None, None)
    assert not same("1/0", "inf")
    assert not same("12345678901234567890", "12345678901234567999")
    assert not same("9007199254740993", "9007199254740992")
    assert not same("1e400", "1e500")
    assert same("10e399", "1e400")
    assert same("0.1", "1/10")
    # Their values would fill the memory, so these are compared as texts.
    assert same("1e999999999", "1e999999999")
    assert not same("1e999999999", "1e-999999999")
    assert extracted("  yes\nno ", ()) == "yes\nno"


@pytest.mark.parametrize("answer", ["8", "#### "])
def test_an_answer_with_nothing_to_compare_with_is_refused_in_the_plan(tmp_path: Path, answer: str) -> None:
    rows = [{"q": f"{i}+1", "a": f"#### {i + 1}", "s": ("train", "test")[i % 2]} for i in range(40)]
    rows[8]["a"] = "no phrase, but only trained on"
    file = tmp_path / "s.jsonl"
    row = {"name": "sums", "jsonl": str(file), "prompt": "q", "answer": "a", "answer_after": ["#### "]}
    row["split_by"] = "s"
    file.write_text("\n".join(map(json.dumps, rows)))
    assert suite(row)
    rows[7]["a"] = answer
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match=naming("'sums'", "row 7", "test split")):
        suite(row)


def test_long_prompts_and_answers_are_cut() -> None:
    made = written(byte_tokenizer(64), 8, ["abcdefghij", "ab", "a"], ["x", "uvwxyz", "b"])
    tokenizer = byte_tokenizer(64)
    rows = [tokenizer.decode(row) for row in np.split(made["tokens"], made["lengths"].cumsum()[:-1])]
    assert rows == ["<s>efghijx", "<s>abuvwxy", "<s>ab</s>"]
    assert made["cut"].tolist() == [True, True, False]
    with pytest.raises(UserError, match=naming("max_tokens", 3, 2)):
        written(byte_tokenizer(64), 2, ["a"], ["b"])


def data(folder: Path, rows: list[dict[str, str]] | None = None, **fields: Any) -> dict[str, Any]:
    rows = rows or [{"q": f"{n}+1", "a": f"so #### {n + 1}"} for n in range(60)]
    (folder / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own = {"name": "sums", "jsonl": str(folder / "sums.jsonl"), "prompt": "q", "answer": "a"}
    return {**own, "template": "{prompt}=", "new_tokens": 3, "answer_after": ["#### "], **fields}


def suite(task: dict[str, Any], **changes: Any) -> Any:
    training = {"batch_size": 8, "steps": 4, "lr": 1e-2}
    base = {**VISION, "backbones": ["tiny-random-llama"], "tasks": [task], "training": training}
    return plan({**base, "forgetting": "none"}, **changes)


@pytest.mark.parametrize(
    ("answer", "new_tokens"),
    [("too long", 7), ("<s>", 64), ("ye</s>s", 64)],
    ids=["longer than may be written", "dropped in decoding", "an end within"],
)
def test_right_answers_that_no_model_can_write_are_counted(
    tmp_path: Path, answer: str, new_tokens: int
) -> None:
    rows = [{"q": f"{n}+1", "a": answer if n % 4 else "yes"} for n in range(60)]
    task = data(tmp_path, rows=rows, new_tokens=new_tokens, answer_after=[])
    (trial,) = suite(task).trials
    resources = Resources("cpu")
    with pytest.warns(UserWarning, match=naming("of 18 right answers", f"exceed {new_tokens} tokens")):
        made = resources.data(trial, resources.backbone(trial).info.input)
    scored = [text for split in (made.validation, made.test) for text in split.answers]  # type: ignore[union-attr]
    assert made.unwritable == len([text for text in scored if text != "yes"])
    (likelihood,) = suite({**task, "metric": "answer_likelihood"}).trials
    assert resources.data(likelihood, resources.backbone(likelihood).info.input).unwritable == 0
    task = data(tmp_path, rows=[{**row, "a": answer} for row in rows], new_tokens=new_tokens, answer_after=[])
    (trial,) = suite(task).trials
    with pytest.raises(UserError, match=naming("none of 18 right answers", answer, "new_tokens")):
        resources.data(trial, resources.backbone(trial).info.input)


def test_a_warning_says_that_a_long_prompt_leaves_one_token_of_its_answer(tmp_path: Path) -> None:
    (trial,) = suite(data(tmp_path, template="a long {prompt}=", max_tokens=9)).trials
    resources = Resources("cpu")
    with pytest.warns(UserWarning, match=naming("60 of 60 prompts with their answers", "to one token")):
        resources.data(trial, resources.backbone(trial).info.input)


def test_parts_of_a_batch_count_by_their_tokens(tmp_path: Path) -> None:
    task = data(tmp_path, loss_on="all")
    lines = [json.dumps({"q": str(n**n), "a": f"#### {n}"}) for n in range(40)]
    (tmp_path / "sums.jsonl").write_text("\n".join(lines))
    (made,) = suite(task, methods=["lora"]).trials
    undivided, parts = (
        run_trial(made, Resources("cpu", Saving(micro_batch=size)), lambda _: None) for size in (None, 3)
    )
    assert parts.final.loss == pytest.approx(undivided.final.loss, rel=1e-5)
    for name, tensor in undivided.adapter.items():
        torch.testing.assert_close(parts.adapter[name], tensor, rtol=1e-3, atol=1e-5)


def test_trials_of_described_data_train_and_head_only_is_zero_shot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = suite(data(tmp_path), methods=["head_only", "lora"])
    resources = Resources("cpu")
    bare, lora = (run_trial(trial, resources, lambda _: None) for trial in made.trials)
    counts = [Measure.ADAPTER_PARAMETERS, Measure.HEAD_PARAMETERS]
    assert (bare.trained.steps, *(bare.measures[count] for count in counts)) == (0, 0, 0)
    assert (lora.trained.steps, lora.head) == (4, {})
    assert lora.final.loss < bare.final.loss
    table = frame_of(lora.record().files[Artifact.PREDICTIONS])
    assert len(table) == 9
    assert set(table.columns) == {"example", "label", "prediction", "text", *(f"logit_{i}" for i in range(3))}
    # The number of tokens of an answer such as "so #### 12", and one for the end of the text.
    assert set(table["logit_2"]) <= {len("so #### 1") + 1, len("so #### 12") + 1}
    assert bare.final.metric == 0
    split = resources.data(made.trials[0], resources.backbone(made.trials[0]).info.input).test
    assert isinstance(split, WrittenSplit)
    validated = resources.data(made.trials[0], resources.backbone(made.trials[0]).info.input).validation
    right = [
        f"#### {examples.answers[number].removeprefix('so #### ')}.0"
        for examples in (validated, split)
        for number in examples.lengths.argsort(stable=True).tolist()  # type: ignore[union-attr]
    ]
    scripted_answers = lambda *_: [right.pop(0) for _ in range(9)]  # noqa: E731
    monkeypatch.setattr("tensorbench.backbones.answers.Writer.write", scripted_answers)
    assert run_trial(made.trials[0], resources, lambda _: None).final.metric == 1


@pytest.mark.parametrize("method", [{"method": "tenslora", "variant": "att_qkv_depth"}, "lora"])
def test_an_adapter_writes_as_the_merged_model_does(method: Any, tmp_path: Path) -> None:
    (trial,) = suite(
        data(tmp_path), methods=[method], training={"batch_size": 8, "steps": 3, "lr": 0.3}
    ).trials
    resources = Resources("cpu")
    outcome = run_trial(trial, resources, lambda _: None)
    backbone = resources.backbone(trial)
    put_head(backbone, trial.task.input(backbone.info.input), 3, torch.Generator())
    split = resources.data(trial, backbone.info.input).test
    alone = create("head_only").attach(backbone, torch.Generator())
    bare = evaluate(
        backbone,
        alone,
        split,
        trial.recipe,
        resources.data(trial, backbone.info.input).objective,
    ).texts
    alone.detach()
    adapter = from_identity(trial.method).attach(backbone, torch.Generator().manual_seed(0))
    adapter.load(outcome.adapter)
    adapter.merge()
    assert isinstance(split, WrittenSplit)
    order = torch.arange(len(split))
    with torch.no_grad():
        merged = backbone.module.answers.write(backbone.module.encoder, *split.prompt_batch(order))  # type: ignore[union-attr]
    assert outcome.final.texts == merged
    assert merged != bare


def test_training_on_prompts_is_another_trial_and_likelihood_a_metric(tmp_path: Path) -> None:
    (answer,) = suite(data(tmp_path)).trials
    (full,) = suite(data(tmp_path, loss_on="all", metric="answer_likelihood")).trials
    assert answer.id != full.id
    resources = Resources("cpu")
    outcome = run_trial(full, resources, lambda _: None)
    train = resources.data(full, resources.backbone(full).info.input).train
    assert train.batch(torch.arange(1))["scored"].sum() == train.lengths[0] - 1  # type: ignore[union-attr]
    logits = outcome.final.logits
    assert outcome.final.metric == pytest.approx(float((logits[:, 1] / logits[:, 2]).mean()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"template": "what?"}, naming("template", "{prompt}")),
        ({"text": "q"}, naming("text", "prompt")),
        ({"metric": "accuracy"}, naming("'accuracy'", "answer_likelihood, exact_match")),
        ({"verbalizer": {"prompt": "{text}", "words": ["a", "b"]}}, naming("verbalizer", "classes")),
        ({"backbone": "tiny-random-bert"}, naming("decoder")),
    ],
)
def test_bad_descriptions_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    backbones = [changes.pop("backbone", "tiny-random-llama")]
    with pytest.raises(UserError, match=message):
        suite(data(tmp_path, **changes), backbones=backbones)


def hub_folder(folder: Path) -> Path:
    """Writes small made-up copies of MetaMathQA and GSM8K, with the hub's names of files."""
    problems = folder / "gsm8k" / "main"
    problems.mkdir(parents=True)
    for split, size in (("train", 60), ("test", 12)):
        rows = {
            "question": [f"{split} {n}?" for n in range(size)],
            "answer": [f"#### {n}" for n in range(size)],
        }
        parquet.write_table(pyarrow.table(rows), problems / f"{split}-00000-of-00001.parquet")
    rows = [
        {"type": "GSM_AnsAug", "query": f"question {n // 2}?", "response": "x" * (1400 if n == 3 else n)}
        for n in range(40)
    ]
    (folder / "MetaMathQA-395K.json").write_text(json.dumps(rows))
    return folder


def test_metamath_is_as_in_the_comparison_of_peft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MetaMath, "sizes", (30, 50, 12))
    task = METAMATH.at(DataSource(local=hub_folder(tmp_path)))
    examples = task.examples()
    assert examples.inputs[0] == "Question: question 0? Think step by step.\nAnswer:"
    # The fourth row is too long.
    assert list(examples.ids[:5]) == [0, 1, 2, 4, 5]
    assert examples.splits == ["train"] * 30 + ["validation"] * 50 + ["test"] * 12
    shuffled = np.random.RandomState(0).permutation(60)[:50].tolist()
    assert [examples.labels[30 + i] for i in range(50)] == [f"#### {n}" for n in shuffled]
    prepared = prepare(task, TextInput("bytes", 128, lambda: byte_tokenizer(128), decodes=True), 128)
    train, test = prepared.train, prepared.test
    assert isinstance(train, WrittenSplit)
    assert isinstance(test, WrittenSplit)
    assert (len(train), len(prepared.validation), len(test)) == (30, 50, 12)
    assert (train.trains_prompts, test.trains_prompts) == (True, False)
    numbers = torch.arange(12)
    assert (
        test.correct(numbers, [f"so The answer is: {int(-1 - i - 10**9)}." for i in test.ids]) == [True] * 12
    )
    data_hash = task.data_hash
    (tmp_path / "gsm8k" / "main" / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(UserError, match=naming("parquet", "test")):
        _ = task.data_hash
    assert data_hash.startswith("sha256:")


def test_gsm8k_is_read_from_files_of_the_hubs_form(tmp_path: Path) -> None:
    task = GSM8K.at(DataSource(local=hub_folder(tmp_path) / "gsm8k"))
    examples = task.examples()
    assert examples.inputs[0] == "Question: train 0? Think step by step.\nAnswer:"
    assert (examples.labels[-1], Counter(examples.splits or ())) == ("#### 11", {"train": 60, "test": 12})


def test_the_suite_has_the_published_size_of_lora() -> None:
    suite = load_suite(Path(__file__).parents[3] / "suites" / "metamath.yaml")
    lora = create("lora", **suite.methods[1].options)
    llama = Geometry(3072, 24, 28, 8192, kv_heads=8, head_size=128, gated=True)
    assert lora.count(llama) == 9_175_040
    recipe = suite.recipe(suite.tasks[0], suite.methods[1])
    assert (recipe.steps, recipe.batch_size, recipe.adapter_weight_decay, recipe.lr_floor) == (
        5000,
        4,
        0.1,
        0,
    )
