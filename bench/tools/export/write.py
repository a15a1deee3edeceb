"""Writes the adapter and the head of a trial as files for other programs, and checks them first."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult
from torch import Tensor

from tensorbench.backbones import BackboneSpec, LoadedBackbone
from tensorbench.backbones.answers import Answers, Writer
from tensorbench.backbones.huggingface import quiet
from tensorbench.backbones.inputs import ImageInput, ModelInput, TextInput
from tensorbench.backbones.kinds import TIMM
from tensorbench.machine.files import remove
from tensorbench.machine.outputs import earlier_files, output_folder
from tensorbench.machine.visible import markdown_text
from tensorbench.methods import Adapter, UserError
from tensorbench.records.measures import Measure
from tensorbench.records.words import Tag
from tensorbench.tools.export.card import card, facts_of
from tensorbench.tools.export.checkpoint import write_checkpoint
from tensorbench.tools.export.original import ORIGINAL, Original, TimmOriginal, copies, write_json

#: The largest accepted difference between an export's logits and the harness's, divided by the harness's
#: largest absolute logit if that is above 1.
TOLERANCE = 1e-5

#: The file that lists an export's files. With `force`, a later export removes all files in this list.
MANIFEST = "export.json"


@dataclass(frozen=True)
class Exported:
    """A written and checked export."""

    folder: Path
    files: tuple[str, ...]
    #: The largest difference between the harness's logits and those of the export, loaded again.
    difference: float
    #: How large the adapter has become as factors of LoRA. Empty in other forms.
    size: str
    #: Sentences without a full stop. Each names a check that was not possible.
    doubts: tuple[str, ...]


def export_run(
    store: str, run: str, out: Path, *, merged: bool = False, force: bool = False, opened: Sequence[str] = ()
) -> Exported:
    """Writes the adapter and head of a finished trial into the folder `out`.

    `store` is the URI of the store. `run` is an MLflow run id or a trial id, or the beginning of one.
    `opened` matters only for a trial that came from a pack: it lists the folders that the trial may open, or
    "hub" for the Hugging Face hub. `force` replaces files of an earlier export.

    Raises UserError, and leaves `out` unchanged, for each of these:
    - the run is unknown, ambiguous or not finished
    - `out` is not empty
    - the backbone, the method or a stored file changed since the trial
    - the update cannot be written in this form
    - the export's logits differ from the harness's
    """
    # Imported late: MLflow takes seconds, and an adapter in memory needs no store.
    from tensorbench.store.trained import stored_trial

    target = output_folder(out, "export", force=force)
    with stored_trial(store, run, opened) as stored:
        record, trial, method, adapter = stored.record, stored.trial, stored.method, stored.adapter
        facts = {
            "run": record.run_id,
            "trial": record.trial_id,
            "method": method.label,
            "ranks": ", ".join(map(str, stored.ranks)) or "–",
            "adapter parameters": f"{adapter.parameter_count:,}",
            "task": trial.task.task,
            "score": f"{record.score:.4f} ({record.tag(Tag.METRIC)}, {trial.evaluate} split)",
            "seed": str(trial.seed),
            "precision in training": trial.recipe.precision,
        }
        task = trial.task.lookup()
        model_input = trial.task.input(stored.backbone.info.input, task)
        mean, sd = record.measure(Measure.TARGET_MEAN), record.measure(Measure.TARGET_SD)
        if mean is not None and sd is not None:
            facts["output"] = f"standardised; in {task.unit or 'units of the targets'} × {sd:g} + {mean:g}"
        if isinstance(model_input, TextInput):
            model_input = replace(model_input, max_tokens=min(model_input.max_tokens, trial.task.max_tokens))
        kind = "image" if task.modality == "vision" else "text"
        score = EvalResult(
            task_type="text-generation" if task.target == "generation" else f"{kind}-classification",
            dataset_type=trial.task.task,
            dataset_name=trial.task.task,
            dataset_split=trial.evaluate,
            metric_type=record.tag(Tag.METRIC),
            metric_value=record.score,
        )
        doubts = []
        if task.at_hand and task.identity_hash() != trial.data.get("task_identity"):
            doubts.append(
                f"The data of task '{task.name}' changed since the trial, so the names of the outputs may be "
                "wrong"
            )
        if not stored.verified:
            doubts.append("The trial's files are not verified, since their hashes were not stored")
        return write_export(
            stored.backbone,
            adapter,
            trial.backbone,
            target,
            task.classes or ("value",),
            facts,
            model_input=model_input,
            score=score,
            doubts=doubts,
            merged=merged,
            force=force,
        )


def write_export(
    backbone: LoadedBackbone,
    adapter: Adapter,
    spec: BackboneSpec,
    out: Path,
    classes: Sequence[str],
    facts: Mapping[str, str] | None = None,
    *,
    model_input: ModelInput | None = None,
    score: EvalResult | None = None,
    doubts: Sequence[str] = (),
    merged: bool = False,
    force: bool = False,
) -> Exported:
    """Writes an attached adapter and the head into the folder `out`.

    README.md contains `facts`, `doubts` and, for hubs, the score. `model_input` says how examples were
    prepared in training; by default, as the backbone prepares them. The export is written beside `out` first
    and loaded by its library. It moves to `out` only if it gives the logits of `backbone.module` on a fixed
    batch. The adapter is unchanged afterwards. Raises UserError as `export_run` does.
    """
    target = output_folder(out, "export", force=force)
    form = TimmOriginal if backbone.info.kind == TIMM else Original
    original = form(backbone, spec, classes, model_input or backbone.info.input)
    inputs = _inputs(backbone)
    expected = _logits(backbone, inputs)
    facts = {
        **(facts or {}),
        "backbone": f"{backbone.info.name} ({backbone.info.description})",
        "weights": backbone.info.weights_hash,
        **facts_of(original),
    }
    with _beside(target) as folder:
        notes, size = list[str](), ""
        if merged:
            _write_merged(original, adapter, folder)
        else:
            notes, size = write_checkpoint(original, adapter, folder)
            facts |= {"as LoRA": size} if size else {}
        difference = _check(_loaded_logits(original, adapter, folder, inputs, merged), expected)
        notes += [f"{markdown_text(doubt)}." for doubt in doubts]
        text = card(original, facts, notes, difference, score, merged)
        (folder / "README.md").write_text(text, encoding="utf-8")
        files = tuple(sorted([MANIFEST, *(entry.name for entry in folder.iterdir())]))
        manifest = {**facts, "merged": merged, "largest difference of logits": difference, "files": files}
        write_json(folder / MANIFEST, manifest)
        _publish(folder, target)
    return Exported(target, files, difference, size, tuple(doubts))


@torch.no_grad()
def _write_merged(original: Original, adapter: Adapter, folder: Path) -> None:
    if original.spec.quantise:
        raise UserError(
            f"--merged: weights in {original.spec.quantise} are too coarse to hold an update; leave it out "
            "for a checkpoint beside them"
        )
    was_merged = adapter.merged
    adapter.merge()
    try:
        state = copies(original.encoder.state_dict())
    finally:
        if not was_merged:
            adapter.unmerge()
    original.save(folder, state)
    original.save_head(folder)


def _inputs(backbone: LoadedBackbone) -> dict[str, Tensor]:
    """Returns a fixed random batch of 4 examples. All texts except the first are padded."""
    generator = torch.Generator().manual_seed(0)
    model_input, examples = backbone.info.input, 4
    if isinstance(model_input, ImageInput):
        size = model_input.size
        return {"pixel_values": torch.randn(examples, 3, size, size, generator=generator)}
    config: Any = backbone.module.encoder.config
    answers = backbone.module.answers
    # The words of a class follow the prompt.
    behind = max(map(len, answers.words)) if isinstance(answers, Answers) else 0
    length = max(examples, min(16, model_input.max_tokens) - behind)
    ids = torch.randint(config.vocab_size, (examples, length), generator=generator)
    mask = torch.ones_like(ids)
    for example in range(1, examples):
        ids[example, length - example :] = config.pad_token_id or 0
        mask[example, length - example :] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    if isinstance(answers, Writer):
        batch["scored"] = mask * (torch.arange(length) >= length // 2)
    return batch


@torch.no_grad()
def _logits(backbone: LoadedBackbone, inputs: Mapping[str, Tensor]) -> Tensor:
    module = backbone.module
    device, training = next(module.parameters()).device, module.training
    module.eval()
    try:
        return module(**{name: tensor.to(device) for name, tensor in inputs.items()}).float().cpu()
    finally:
        module.train(training)


@torch.no_grad()
def _loaded_logits(
    original: Original, adapter: Adapter, folder: Path, inputs: Mapping[str, Tensor], merged: bool
) -> Tensor:
    """Returns the logits of an export that its library loads. Raises UserError if it cannot."""
    try:
        with quiet(), warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            if merged:
                model = original.load(folder)
            else:
                model = original.load(original.reference or folder / ORIGINAL)
                if original.spec.quantise:
                    _round(original, adapter, model)
                from peft import PeftModel

                model = PeftModel.from_pretrained(model, folder)
            return original.logits(model.eval(), folder, inputs).float()
    except Exception as error:  # whatever the libraries raise, the export is unusable
        raise UserError(
            f"the original model cannot carry what was trained: loading the export fails with "
            f"{type(error).__name__}: {error}; nothing was written"
        ) from error


def _round(original: Original, adapter: Adapter, model: Any) -> None:
    """Gives the projections of the original model the rounded weights of the trial's, in float32."""
    backbone = original.backbone
    for site in backbone.geometry.sites(backbone.projections):
        layer: Any = adapter.bases.get(site) or backbone.module.get_submodule(backbone.path(site))
        model.get_submodule(original.path(site)).weight.data = layer.weight.detach().cpu()


def _check(logits: Tensor, expected: Tensor) -> float:
    """Returns the largest absolute difference between the logits.

    Raises UserError if it is larger than TOLERANCE allows or NaN, or if the shapes differ.
    """
    if logits.shape != expected.shape:
        raise UserError(
            f"the export gives logits of shape {tuple(logits.shape)}, not {tuple(expected.shape)}"
        )
    difference = float((logits - expected).abs().max())
    allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
    # Written so that NaN fails as well.
    if not difference <= allowed:
        raise UserError(
            f"the export's logits differ from the trial's by {difference:.1e}, allowed are {allowed:.1e}: "
            "the original model's library computes something else (another pooling, say); nothing was written"
        )
    return difference


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A context with an empty folder beside `target`, which is deleted at the end.

    Raises UserError if files cannot be written there.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
            new = Path(folder) / "made"
            new.mkdir()
            yield new
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error}") from error


def _publish(folder: Path, target: Path) -> None:
    """Moves the finished export to `target`. Files of an earlier export or of the same name are replaced.

    Raises UserError if a new file would replace a folder in `target` that no export wrote.
    """
    if not target.exists():
        folder.replace(target)
        return
    try:
        earlier = earlier_files(target, MANIFEST)
    except (OSError, ValueError):  # a file of that name not written by an export
        earlier = []
    new = {target / entry.name: entry for entry in folder.iterdir()}
    for there in new:
        if there.is_dir() and not there.is_symlink() and there not in earlier:
            raise UserError(f"{there} is a folder that no export wrote; name another folder")
    for there in (*earlier, *new):
        remove(there)
    for there, entry in new.items():
        entry.replace(there)
