"""Writes the configuration that validation chose, as a suite and as a script for transformers' Trainer.

The script uses peft and an `adapter_config.json` for methods that peft has, and `tensorbench.wrap` for all
other methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tensorbench.backbones import describe, load
from tensorbench.backbones.answers import put_head
from tensorbench.backbones.inputs import TextInput
from tensorbench.backbones.kinds import TIMM
from tensorbench.baselines.peft_adapter import PeftAdapter
from tensorbench.machine.outputs import output_folder
from tensorbench.machine.visible import markdown_text, visible
from tensorbench.methods import METHODS, Adapter, Method, UserError
from tensorbench.methods.registry import PythonFile
from tensorbench.methods.validation import validate
from tensorbench.plan.recipe import Recipe
from tensorbench.plan.suite import Suite
from tensorbench.plan.trial import Trial
from tensorbench.plan.yaml_text import written
from tensorbench.reports.analysis import analyse
from tensorbench.reports.chosen import Chosen, choose
from tensorbench.reports.reading import read
from tensorbench.reports.selection import Selection
from tensorbench.store import DEFAULT_STORE
from tensorbench.store.access import Access, is_foreign
from tensorbench.tasks import Task
from tensorbench.tools.export.card import FEATURES, facts_of, facts_of_writing, loading
from tensorbench.tools.export.original import ORIGINAL, Original, copies, write_json
from tensorbench.tools.export.write import MANIFEST, beside, publish

#: The seeds of the written suite.
SEEDS = (0, 1, 2)

#: The code of the loss by the task's target, for a model whose head is outside transformers' class.
LOSSES = {
    "single label": "functional.cross_entropy(logits, labels)",
    "multi-label": "functional.binary_cross_entropy_with_logits(logits, labels.float())",
    "regression": "functional.mse_loss(logits.squeeze(-1), labels.float())",
}

#: The `problem_type` of transformers by the task's target.
PROBLEMS = {"multi-label": "multi_label_classification", "regression": "regression"}

SCRIPT = '''"""Trains {method} on {task} as the studies chose, by {library} and transformers' Trainer.

Examples hold what the tokenizer or image processor gives, and `labels`. README.md has the lines to call it.
"""

import json
from pathlib import Path

import {library}
import torch
import transformers

HERE = Path(__file__).parent
RATES = {rates}
{model}

def make_model(seed=0):
    """Returns the model and the groups of parameters to train, each with its own learning rate."""
    transformers.set_seed(seed)
    model = {make}
{groups}


def make_trainer(model, groups, train, validation, out="trained", seed=0, **options):
    """Returns a Trainer. TrainingArguments has one learning rate, so the groups go in by the optimizer."""
    arguments = json.loads((HERE / "training_arguments.json").read_text())
    return transformers.Trainer(
        model,
        transformers.TrainingArguments(str(out), seed=seed, **arguments),
        train_dataset=train,
        eval_dataset=validation,
        optimizers=(torch.optim.AdamW(groups), None),
        **options,
    )
'''

MODEL = '''

class Model(torch.nn.Module):
    """The encoder with the pooling and the head of the studies, for which transformers has no class."""

    def __init__(self):
        super().__init__()
        self.encoder = {call}
        self.head = torch.nn.Linear({hidden}, {outputs})

    def forward(self, labels=None, **batch):
        outputs = self.encoder(**batch)
        {pooled}
        logits = self.head(features)
        functional = torch.nn.functional
        return {{"loss": None if labels is None else {loss}, "logits": logits}}
'''

BY_PEFT = """    model = peft.get_peft_model(model, peft.PeftConfig.from_pretrained(HERE))
    adapter, head = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (head if "modules_to_save" in name else adapter).append(parameter)
    groups = [{"params": adapter, **RATES["adapter"]}, {"params": head, **RATES["head"]}]
    return model, [group for group in groups if group["params"]]"""

BY_WRAP = """    method = tensorbench.methods.create({method})
    adapter = tensorbench.wrap(model, method, seed)
    return model, [group | RATES[group["name"]] for group in adapter.parameter_groups()]"""

TEXTS = """import transformers
from train import make_model, make_trainer

tokenizer = transformers.AutoTokenizer.from_pretrained({place!r})
# train, validation: data sets of {{"labels": label, **inputs}}, where
# inputs = tokenizer({texts}, truncation=True, max_length={tokens})
# {labels}
model, groups = make_model(seed=0)
trainer = make_trainer(model, groups, train, validation, processing_class=tokenizer)
trainer.train()
"""

IMAGES = """from train import make_model, make_trainer

# train, validation: data sets of {{"labels": label, "pixel_values": (3, height, width)}}
# {labels}
model, groups = make_model(seed=0)
trainer = make_trainer(model, groups, train, validation)
trainer.train()
"""


#: The code that saves the trained model for serving. `plain` is the merged model.
SERVED = """
plain = {plain}
plain.save_pretrained("served")  # transformers loads it by itself
"""

#: The code that saves a trained model for serving if its head is beside the encoder.
SERVED_APART = """
from safetensors.torch import save_file

plain = {plain}
plain.encoder.save_pretrained("served")
save_file(plain.head.state_dict(), "served/head.safetensors")
"""


@dataclass(frozen=True)
class WrittenRecipe:
    """A configuration that was written."""

    folder: Path
    files: tuple[str, ...]
    #: Statements on the choice and on its certainty, by name.
    facts: dict[str, str]
    #: Why there is no script beside the suite. Empty if there is one.
    no_script: str


def write_recipe(
    *experiments: str,
    out: Path | str,
    store: str = DEFAULT_STORE,
    selection: Selection | None = None,
    opened: Sequence[str] = (),
    force: bool = False,
) -> WrittenRecipe:
    """Writes the configuration that the studies of one task and backbone chose into the folder `out`.

    `suite.yaml` runs this configuration with a few seeds. `train.py` trains it by transformers' Trainer, with
    the keyword arguments in `training_arguments.json`. The script applies the method by peft, from
    `adapter_config.json`, or by `tensorbench.wrap` if peft does not have the method. README.md says how
    certain the choice is. If no script can be written, `WrittenRecipe.no_script` says why.

    Args:
        experiments: The names of experiments, or files of packs.
        store: The store with the experiments.
        selection: The task, backbone and budget, and the methods among which to choose. The statements on the
            choice compare it with all methods, including those that are left out.
        opened: For a pack, the folders that may be opened, or "hub" for the Hugging Face hub.
        force: Whether to replace an earlier recipe in the folder.

    Raises UserError as `tensorbench.reports.chosen.choose` does, for an experiment that cannot be read, and
    if the folder is not empty.
    """
    target = output_folder(Path(out), "recipe", force=force)
    selection = selection or Selection()
    part = replace(selection, methods=())
    results = read(store, experiments, None if part.everything else part)
    chosen = choose(analyse(results), selection.methods)
    experiment = results.experiment(chosen.cell.experiment)
    trial = Trial.model_validate(chosen.trial.model_dump(exclude={"id"}))
    headed = chosen.cell.studies is None or chosen.cell.studies.head_lr is not None
    rates = {"lr": chosen.lr} | ({} if headed else {"head_lr": chosen.lr})
    recipe = validate(Recipe, trial.recipe.model_dump() | rates, "the chosen training")
    trial = trial.model_copy(update={"recipe": recipe})
    usage, no_script, of_writing = "", "", dict[str, str]()
    with beside(target) as folder:
        if file := METHODS.file(str(trial.method["method"])):
            (folder / file.path.name).write_bytes(file.content)
        (folder / "suite.yaml").write_text(written(_suite(chosen, trial, file)), encoding="utf-8")
        try:
            if any(is_foreign(experiment.source, record) for record in experiment.records.values()):
                trial = Access(opened).trial(trial)
            task = trial.task.lookup()
            of_writing = facts_of_writing(task)
            usage = _write_script(folder, trial, task)
        except UserError as error:
            no_script = str(error)
        readme = _readme(chosen, trial, of_writing, usage, no_script)
        (folder / "README.md").write_text(readme, encoding="utf-8")
        files = tuple(sorted([MANIFEST, *(entry.name for entry in folder.iterdir())]))
        write_json(folder / MANIFEST, {**chosen.facts, "files": files})
        publish(folder, target)
    return WrittenRecipe(target, files, chosen.facts, no_script)


def _suite(chosen: Chosen, trial: Trial, file: PythonFile | None) -> dict[str, Any]:
    """Returns the fields of a suite that runs only the chosen configuration, as a user would write them.

    `file` defines the method, and lies beside the suite.
    """
    row = trial.task.model_dump(mode="json", exclude_defaults=True, exclude={"training", "label"})
    if data := row.pop("data", None):
        row = {"name": row.pop("task"), **data, **row}
    method = trial.build_method()
    values = {
        "name": f"{chosen.cell.experiment[:120]}-recipe",
        "description": "\n".join(f"{name}: {fact}" for name, fact in chosen.facts.items()),
        "tasks": [row],
        "backbones": [trial.backbone.model_dump(mode="json", exclude_defaults=True)],
        "methods": [
            {
                "method": method.name,
                **({"file": file.path.name} if file else {}),
                **method.model_dump(mode="json", exclude_defaults=True),
            }
        ],
        "seeds": list(SEEDS),
        "training": trial.recipe.model_dump(mode="json", exclude_defaults=True),
        "floor": "none",
    }
    if trial.evaluate != "test":
        values["evaluate"] = trial.evaluate
    validate(Suite, values, "the recipe's suite")
    return values


def _write_script(folder: Path, trial: Trial, task: Task) -> str:
    """Writes `train.py` and its files, and returns the lines that call it.

    Raises UserError, and writes nothing, if transformers' Trainer cannot train as the studies did.
    """
    if task.target == "generation":
        raise UserError("the model writes its answers: Trainer neither pads their labels nor scores them")
    backbone, method, recipe = load(trial.backbone), trial.build_method(), trial.recipe
    if backbone.info.weights_hash != trial.weights_hash:
        raise UserError(f"backbone '{backbone.info.name}' has other weights than in the studies")
    model_input = trial.task.input(backbone.info.input, task)
    put_head(backbone, model_input, task.outputs, torch.Generator())
    if isinstance(model_input, TextInput):
        model_input = replace(model_input, max_tokens=min(model_input.max_tokens, trial.task.max_tokens))
    if backbone.info.kind == TIMM:
        raise UserError("the backbone is timm's, and transformers' Trainer takes models of transformers")
    original = Original(backbone, trial.backbone, task.classes or ("value",), model_input)
    if original.fused:
        raise UserError(
            f"a {original.target.class_name} has one layer for projections that the studies adapted apart"
        )
    if original.answers is not None:
        raise UserError("the model answers in words of its classes, for which Trainer has no loss")
    if recipe.core_lr != 1:
        raise UserError("the core has a learning rate of its own")
    if not METHODS.is_built_in(method.name):
        raise UserError(f"method '{method.name}' is not one of tensorbench's own")
    own = describe(trial.backbone.model_copy(update={"image_size": None})).input
    if original.kind.resize and original.reference and own != backbone.info.input:
        raise UserError(
            f"images are of {trial.backbone.image_size} pixels, and Trainer does not ask the model to "
            "interpolate its position embeddings"
        )
    adapter = method.attach(backbone, torch.Generator())
    try:
        if not adapter.settled:
            raise UserError(f"{method.label} prunes ranks by calls that Trainer does not make")
        config = _peft_config(original, adapter) if isinstance(adapter, PeftAdapter) else None
        merges = config is not None or _merges(adapter)
    finally:
        adapter.detach()
    if original.reference is None:
        dense = load(trial.backbone.model_copy(update={"quantise": None}))
        original.save(folder / ORIGINAL, copies(dense.module.encoder.state_dict()))
    if config is not None:
        config.save_pretrained(folder)
    saves = merges or original.head_is_beside
    write_json(folder / "training_arguments.json", _arguments(original, recipe, saves=saves))
    script = _script(original, task, method, recipe, by_peft=config is not None)
    (folder / "train.py").write_text(script, encoding="utf-8")
    served = (SERVED_APART if original.head_is_beside else SERVED) if merges else ""
    plain = "model.merge_and_unload()" if config is not None else "model"
    return _usage(original, task) + served.format(plain=plain)


def _usage(original: Original, task: Task) -> str:
    labels = f"labels: {dict(enumerate(task.classes))}" if task.classes else "labels: standardised values"
    # State the preparation of inputs above the labels.
    labels = f"inputs: {visible(facts_of(original)['input'])}\n# {labels}"
    if not isinstance(original.model_input, TextInput):
        return IMAGES.format(labels=labels)
    return TEXTS.format(
        place=str(original.reference or ORIGINAL),
        texts="first, second" if task.paired else "text",
        tokens=original.model_input.max_tokens,
        labels=labels,
    )


def _merges(adapter: Adapter) -> bool:
    try:
        adapter.merge_exactly()
    except UserError:
        return False
    finally:
        adapter.unmerge()
    return True


def _peft_config(original: Original, adapter: PeftAdapter) -> Any:
    """Returns peft's configuration of the adapter, with the module paths of the script's model."""
    paths = {original.path(site): site for site in adapter.bases}
    config = adapter.config(paths)
    # Name the layers by the last parts of their paths, unless other layers share these.
    ends = sorted({path.rpartition(".")[2] for path in paths})
    every = [name for name, _ in original.encoder.named_modules()]
    for part, path in original.target.head.items():
        inside = original.backbone.head.get_submodule(part).named_modules()
        every += [f"{path}.{name}".rstrip(".") for name, _ in inside]
    same = [name for name in every if name.rpartition(".")[2] in ends]
    config.target_modules = ends if len(same) == len(paths) else list(paths)
    apart = original.head_is_beside
    fields = {
        "modules_to_save": ["head"] if apart else list(original.target.head.values()) or None,
        "inference_mode": False,
        "base_model_name_or_path": None if apart else original.reference or ORIGINAL,
        "revision": original.revision,
        "task_type": None if apart else original.target.task,
    }
    for field, value in fields.items():
        setattr(config, field, value)
    return config


def _arguments(original: Original, recipe: Recipe, *, saves: bool) -> dict[str, Any]:
    """Returns the keyword arguments of transformers' TrainingArguments.

    `saves` says whether the Trainer can save checkpoints of the model and load the best one at the end.
    """
    best = saves and recipe.select != "last"
    length = {"max_steps": recipe.steps} if recipe.steps else {"num_train_epochs": recipe.epochs}
    return {
        "learning_rate": recipe.lr,
        "weight_decay": recipe.adapter_weight_decay,
        "adam_epsilon": recipe.epsilon,
        "per_device_train_batch_size": recipe.batch_size,
        "per_device_eval_batch_size": 2 * recipe.batch_size,
        **length,
        "warmup_steps": recipe.warmup,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": recipe.lr_floor / recipe.lr},
        # 0 stands for no clipping.
        "max_grad_norm": recipe.clip or 0.0,
        "bf16": recipe.precision == "bf16",
        **({"tf32": True} if recipe.precision == "tf32" else {}),
        "optim": "adamw_torch",
        "eval_strategy": "epoch",
        "save_strategy": "epoch" if best else "no",
        "save_total_limit": 1,
        "load_best_model_at_end": best,
        "metric_for_best_model": "eval_loss",
        "remove_unused_columns": not original.head_is_beside,
        "report_to": "none",
    }


def _script(original: Original, task: Task, method: Method, recipe: Recipe, *, by_peft: bool) -> str:
    place = str(original.reference or original.place)
    shown = repr(place) if original.reference else f'HERE / "{ORIGINAL}"'
    call, model = loading(original, place, shown), ""
    if original.head_is_beside:
        model = MODEL.format(
            call=call,
            hidden=original.encoder.config.hidden_size,
            outputs=task.outputs,
            pooled=FEATURES[original.kind.pool.__name__].replace("\n", "\n        "),
            loss=LOSSES[task.target],
        )
        call = "Model()"
    elif problem := PROBLEMS.get(task.target):
        call = f'{call[:-1]}, problem_type="{problem}")'
    options = [repr(method.name)]
    options += [f"{name}={value!r}" for name, value in method.model_dump(exclude_defaults=True).items()]
    eps = recipe.epsilon
    rates = {
        "adapter": {"lr": recipe.lr, "weight_decay": recipe.adapter_weight_decay, "eps": eps},
        "head": {"lr": recipe.head_lr or recipe.lr, "weight_decay": recipe.weight_decay, "eps": eps},
    }
    return SCRIPT.format(
        method=method.name,
        task=task.name,
        library="peft" if by_peft else "tensorbench",
        rates=rates,
        model=model,
        make=call,
        groups=BY_PEFT if by_peft else BY_WRAP.format(method=", ".join(options)),
    )


def _readme(chosen: Chosen, trial: Trial, of_writing: dict[str, str], usage: str, no_script: str) -> str:
    recipe = trial.recipe
    length = f"{recipe.steps:,} steps" if recipe.steps else f"{recipe.epochs} epochs"
    training = (
        f"{length} of batches of {recipe.batch_size}, warm-up {recipe.warmup:g} of the steps, then a cosine "
        f"to {recipe.lr_floor:g}; "
        + ("" if of_writing else f"head at {recipe.head_lr or recipe.lr:g}; ")
        + f"clip {recipe.clip or 'none'}; Adam's epsilon {recipe.epsilon:g}; {recipe.precision}"
    )
    if of_writing:
        training += f"; prompt and answer have at most {trial.task.max_tokens} tokens"
    rows = {"task": str(chosen.cell.setting), **chosen.facts, **of_writing, "training": training}
    table = [f"| {markdown_text(name)} | {markdown_text(fact)} |" for name, fact in rows.items()]
    lines = [
        "# A recipe, written by tensorpeft-bench",
        "",
        *("| | |", "|---|---|", *table, ""),
        "Validation losses chose method and rate. Test scores only say how good the choice is.",
        "",
        "`tensorbench run suite.yaml` trains it with three seeds.",
        "",
    ]
    if no_script:
        return "\n".join(
            [*lines, f"There is no script for transformers' Trainer: {markdown_text(no_script)}.", ""]
        )
    lines += [
        "`train.py` trains it by transformers' Trainer. In this folder:",
        "",
        f"```python\n{usage}```",
        "",
        "What differs from the studies: the order of examples, the head's first weights, and a warm-up that "
        "begins at 0.",
    ]
    if recipe.select == "score":
        lines.append(
            "The studies kept the epoch with the best validation score. The Trainer keeps that with the "
            "lowest loss."
        )
    if recipe.augmentation:
        lines.append(f"Images were augmented: {', '.join(recipe.augmentation)}. The script does not.")
    return "\n".join([*lines, ""])
