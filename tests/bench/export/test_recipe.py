"""Tests recipes: what is written trains by transformers' Trainer as well as by our loop."""

from __future__ import annotations

import importlib.util
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

import tensorbench
from tensorbench.backbones import describe
from tensorbench.backbones.random_weights import byte_tokenizer
from tensorbench.methods import UserError
from tensorbench.plan.trial import Trial
from tensorbench.tasks import prepare
from tensorbench.tasks.splits import Split

from ...fixtures import Call
from ...messages import naming
from ..local_checkpoints import model_of
from ..toy_suites import TEXT, VISION

CPU = tensorbench.Place(device="cpu")
SEEDS = (0, 1, 2)


def write_table(file: Path) -> None:
    """Writes texts of the letters a and b. The label says which of them is more frequent."""
    draw, texts = random.Random(0), {}
    while len(texts) < 500:
        label = draw.choice(("less", "more"))
        texts["".join(draw.choices("ab", (1, 3) if label == "more" else (3, 1), k=12))] = label
    file.write_text("\n".join(["body,label", *(f"{text},{label}" for text, label in texts.items())]))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], str]) -> str:
    """The store of a suite of LoRA and TensLoRA, on a RoBERTa that transformers has with our head."""
    folder = tmp_path_factory.mktemp("recipe")
    model_of("roberta").save_pretrained(folder / "roberta")
    byte_tokenizer(16).save_pretrained(folder / "roberta")
    write_table(folder / "letters.csv")
    task = {"name": "letters", "csv": str(folder / "letters.csv"), "text": "body", "label": "label"}
    suite = {
        "name": "letters",
        "tasks": [{**task, "train_size": 240, "validation_size": 70, "test_size": 70, "max_tokens": 16}],
        "backbones": [{"local": str(folder / "roberta")}],
        "methods": [
            {"method": "lora", "rank": 4},
            {"method": "tenslora", "variant": "qkv_depth", "ranks": [4, 4, 3, 2]},
        ],
        "seeds": list(SEEDS),
        "training": {"lr": 1e-2, "head_lr": 3e-3, "batch_size": 16, "epochs": 4, "clip": 1.0},
        "floor": "none",
    }
    uri = new_store(folder)
    assert tensorbench.run_suite(suite, store=uri, place=CPU).complete
    return uri


def script(folder: Path) -> Any:
    spec = importlib.util.spec_from_file_location("train", folder / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def examples(split: Split) -> list[dict[str, torch.Tensor]]:
    inputs = split.batch(torch.arange(len(split)))
    return [
        {"labels": label, **{name: values[place] for name, values in inputs.items()}}
        for place, label in enumerate(split.labels)
    ]


def serve(recipe: Path, model: Any, folder: Path) -> Path:
    """Runs the last lines of the recipe's README.md, which save a trained model for transformers alone."""
    (code,) = re.findall("```python\n(.*?)```", (recipe / "README.md").read_text(), re.DOTALL)
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(code.partition("trainer.train()\n")[2], {"model": model})
    return folder / "served"


def trials_of(folder: Path) -> tuple[Trial, ...]:
    return tensorbench.make_plan(tensorbench.load_suite(folder / "suite.yaml")).trials


def data_of(trial: Trial) -> Any:
    task = trial.task.lookup()
    return prepare(
        task, trial.task.input(describe(trial.backbone).input, task), trial.task.max_tokens, *trial.task.sizes
    )


@pytest.mark.parametrize("method", ["lora", "tenslora"])
def test_the_trainer_scores_as_our_loop(trained: str, method: str, tmp_path: Path) -> None:
    selection = tensorbench.Selection(methods=[method])
    out = tmp_path / "recipe"
    written = tensorbench.write_recipe("letters", out=out, store=trained, selection=selection)
    assert not written.no_script
    assert (
        "# inputs: token ids of the backbone's own tokenizer, at most 16\n" in (out / "README.md").read_text()
    )
    results = tensorbench.load_results("letters", store=trained)
    ours = {seed.seed: seed for seed in results.all_seeds if seed.method.lower().startswith(method)}
    # The suite has the very trials whose results are known.
    trials = trials_of(out)
    assert [trial.id for trial in trials] == [ours[seed].trial_id for seed in SEEDS]
    data, module = data_of(trials[0]), script(out)
    test, labels = examples(data.test), data.test.labels.numpy()
    scores, losses = [], []
    for seed in SEEDS:
        model, groups = module.make_model(seed)
        counts = [sum(parameter.numel() for parameter in group["params"]) for group in groups]
        trainer = module.make_trainer(
            model, groups, examples(data.train), examples(data.validation), tmp_path / str(seed), seed
        )
        trainer.train()
        predicted = trainer.predict(test)
        scores.append((predicted.predictions.argmax(1) == labels).mean())
        losses.append(trainer.evaluate()["eval_loss"])
    cell = next(cell for cell in results.all_cells if cell.method.lower().startswith(method))
    assert counts[0] == cell.parameters
    for theirs, own, grain in (
        (scores, [ours[seed].score for seed in SEEDS], 2 / len(labels)),
        (losses, [ours[seed].validation_loss for seed in SEEDS], 0.02),
    ):
        noise = np.sqrt((np.var(theirs, ddof=1) + np.var(own, ddof=1)) / len(SEEDS))
        assert abs(np.mean(theirs) - np.mean(own)) <= 4 * noise + grain
    # Both have learnt: else they would agree at chance.
    assert min(np.mean(scores), np.mean([ours[seed].score for seed in SEEDS])) > 0.75
    served = transformers.RobertaForSequenceClassification.from_pretrained(
        serve(out, model, tmp_path / "last")
    )
    with torch.no_grad():
        logits = served.eval()(**data.test.batch(torch.arange(len(labels)))).logits
    np.testing.assert_allclose(logits, predicted.predictions, atol=1e-5)
    config = out / "adapter_config.json"
    assert config.exists() == (method == "lora")
    if config.exists():
        fields = json.loads(config.read_text())
        assert (fields["r"], fields["lora_alpha"], fields["task_type"]) == (4, 4, "SEQ_CLS")
        assert fields["target_modules"] == ["key", "query", "value"]


@pytest.fixture(scope="module")
def headed(tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], str]) -> str:
    """The store of suites on a BERT, for whose pooling and head transformers has no class."""
    uri = new_store(tmp_path_factory.mktemp("headed"))
    methods = ["lora", {"method": "tenslora", "variant": "qkv"}, {"method": "loretta_adp", "rank": 2}]
    short = {"batch_size": 16, "steps": 3}
    for name, training in (("toy", short), ("core", {**short, "core_lr": 0.5})):
        suite = {**TEXT, "name": name, "methods": methods, "training": training}
        assert tensorbench.run_suite(suite, store=uri, place=CPU).complete
    return uri


@pytest.mark.parametrize("method", ["lora", "tenslora", "loretta_adp"])
def test_a_head_beside_the_encoder_is_trained_too(headed: str, method: str, tmp_path: Path) -> None:
    out, selection = tmp_path / "recipe", tensorbench.Selection(methods=[method])
    tensorbench.write_recipe("toy", out=out, store=headed, selection=selection)
    # The backbone is nowhere else, so it is in the folder.
    assert (out / "original" / "model.safetensors").is_file()
    (trial,) = {trial.task.task: trial for trial in trials_of(out)}.values()
    data, module = data_of(trial), script(out)
    model, groups = module.make_model()
    before = [parameter.detach().clone() for group in groups for parameter in group["params"]]
    train, validation = examples(data.train), examples(data.validation)
    trainer = module.make_trainer(model, groups, train, validation, tmp_path / "out")
    trainer.train()
    assert trainer.state.global_step == 3
    after = [parameter for group in groups for parameter in group["params"]]
    assert any(not torch.equal(*pair) for pair in zip(before, after, strict=True))
    predicted = trainer.predict(examples(data.test)).predictions
    if method == "loretta_adp":
        assert "served" not in (out / "README.md").read_text()
        return
    served = serve(out, model, tmp_path / "last")
    encoder = transformers.BertModel.from_pretrained(served, add_pooling_layer=False).eval()
    batch = data.test.batch(torch.arange(len(data.test)))
    with torch.no_grad():
        states, mask = encoder(**batch).last_hidden_state, batch["attention_mask"][..., None]
        head = load_file(served / "head.safetensors")
        logits = torch.nn.functional.linear((states * mask).sum(1) / mask.sum(1), **head)
    np.testing.assert_allclose(logits, predicted, atol=1e-5)


def test_what_the_trainer_cannot_do_is_said_and_the_suite_is_written(headed: str, tmp_path: Path) -> None:
    selection = tensorbench.Selection(methods=["tenslora"])
    written = tensorbench.write_recipe("core", out=tmp_path, store=headed, selection=selection)
    assert "core" in written.no_script
    assert set(written.files) == {"README.md", "suite.yaml", "export.json"}
    assert written.no_script in (tmp_path / "README.md").read_text()
    assert trials_of(tmp_path)[0].recipe.core_lr == 0.5


def test_written_answers_have_no_script_and_their_preparation_is_said(
    tmp_path: Path, new_store: Callable[[Path], str]
) -> None:
    rows = [json.dumps({"q": f"{n}+1", "a": f"#### {n + 1}"}) for n in range(60)]
    (tmp_path / "sums.jsonl").write_text("\n".join(rows))
    task = {"name": "sums", "jsonl": str(tmp_path / "sums.jsonl"), "prompt": "q", "answer": "a"}
    task |= {"template": "Sum: {prompt}\n", "answer_after": ["#### "], "loss_on": "all", "new_tokens": 9}
    training = {"batch_size": 16, "steps": 1}
    suite = {**TEXT, "backbones": ["tiny-random-llama"], "tasks": [task], "training": training}
    uri = new_store(tmp_path)
    assert tensorbench.run_suite(suite, store=uri, place=CPU).complete
    written = tensorbench.write_recipe("toy", out=tmp_path / "recipe", store=uri)
    assert "writes its answers" in written.no_script
    assert set(written.files) == {"README.md", "suite.yaml", "export.json"}
    exported = tensorbench.export_run(trials_of(tmp_path / "recipe")[0].id, tmp_path / "export", uri)
    pages = [(folder / "README.md").read_text() for folder in (tmp_path / "recipe", exported.folder)]
    for page in pages:
        for row in (
            'prompt | "Sum: {prompt}',
            "at most 9 tokens; what counts is behind",
            "and of the prompt",
        ):
            assert row in page
    assert not any(word in pages[0] for word in ("converged head", "head at"))
    assert "template = 'Sum: {prompt}\\n'" in pages[1]


def test_a_pair_s_tokenizer_call_and_a_regression_s_scale_are_as_in_training(
    tmp_path: Path, new_store: Callable[[Path], str]
) -> None:
    lines = [f"a {n},b {n},{100 + n / 7}" for n in range(60)]
    (tmp_path / "pairs.csv").write_text("\n".join(["first,second,y", *lines]))
    task = {"name": "pairs", "csv": str(tmp_path / "pairs.csv"), "text": ["first", "second"], "label": "y"}
    task |= {"target": "regression", "max_tokens": 20}
    uri = new_store(tmp_path)
    suite = {**TEXT, "tasks": [task], "training": {"batch_size": 16, "steps": 1}}
    assert tensorbench.run_suite(suite, store=uri, place=CPU).complete
    tensorbench.write_recipe("toy", out=tmp_path / "recipe", store=uri)
    page = (tmp_path / "recipe" / "README.md").read_text()
    assert "tokenizer(first, second, truncation=True, max_length=20)\n" in page
    assert "own tokenizer, at most 20\n" in page
    trial = trials_of(tmp_path / "recipe")[0]
    exported = tensorbench.export_run(trial.id, tmp_path / "export", uri)
    mean, sd = data_of(trial).objective.scale
    assert f"× {sd!r} + {mean!r} |" in (exported.folder / "README.md").read_text()


def test_images_of_another_size_than_the_model_s_have_no_script(
    tmp_path: Path, new_store: Callable[[Path], str]
) -> None:
    model_of("vit").save_pretrained(tmp_path / "vit")
    backbone = {"local": str(tmp_path / "vit"), "image_size": 24}
    uri, training = new_store(tmp_path), {"batch_size": 16, "steps": 1}
    suite = {**VISION, "backbones": [backbone], "training": training}
    assert tensorbench.run_suite(suite, store=uri, place=CPU).complete
    written = tensorbench.write_recipe("toy", out=tmp_path / "recipe", store=uri)
    assert "24 pixels" in written.no_script


def test_a_pack_opens_nothing_that_is_not_allowed(trained: str, tmp_path: Path) -> None:
    pack = tmp_path / "letters.tensorbench.zip"
    tensorbench.pack("letters", out=pack, store=trained)
    written = tensorbench.write_recipe(str(pack), out=tmp_path / "closed")
    assert "--open" in written.no_script
    assert "suite.yaml" in written.files


def test_the_command_writes_a_recipe_and_refuses_what_does_not_go_with_it(
    trained: str, tmp_path: Path, call: Call
) -> None:
    ended = call("export", "letters", "--recipe", "--out", tmp_path / "recipe", "--store", trained)
    assert ended.code == 0
    assert all(word in ended.out for word in ("chosen by", "learning rate", "train.py"))
    for options, word in (
        (["letters", "--recipe", "--merged"], "--merged"),
        (["abc", "--task", "letters"], "--recipe"),
        (["letters", "--recipe", "--method", "lotr"], "lotr"),
    ):
        ended = call("export", *options, "--out", tmp_path / "other", "--store", trained)
        assert (ended.code, word in ended.err) == (2, True)
        assert not (tmp_path / "other").exists()
    with pytest.raises(UserError, match=naming("not empty", "--force")):
        tensorbench.write_recipe("letters", out=tmp_path / "recipe", store=trained)
