"""Writes the adapter and the head of a trial as files for other programs, and checks them first.

A checkpoint for peft stores low-rank updates as LoRA. Other adapters are stored in peft's own format for the
method, if peft has the method.
"""

from __future__ import annotations

import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from tensorbench.backbones import BackboneSpec, LoadedBackbone, load
from tensorbench.backbones.answers import Answers, Writer
from tensorbench.backbones.huggingface import quiet
from tensorbench.backbones.inputs import ImageInput, ModelInput, TextInput
from tensorbench.baselines.peft_adapter import NAME, PeftAdapter
from tensorbench.machine.files import remove
from tensorbench.machine.outputs import earlier_files, output_folder
from tensorbench.machine.visible import markdown_text
from tensorbench.methods import Adapter, NotLowRank, UserError
from tensorbench.records.measures import Measure
from tensorbench.records.words import Tag
from tensorbench.store import DEFAULT_STORE
from tensorbench.tools.export.card import card, facts_of, facts_of_writing, template_of
from tensorbench.tools.export.original import ORIGINAL, Original, Update, copies, write_json

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
    #: The largest difference between the harness's logits and the logits of the export when it is loaded.
    difference: float
    #: A sentence on how many numbers the adapter has as LoRA. Empty if it was not written as LoRA.
    size: str
    #: Sentences without a full stop. Each names a check that was not possible.
    doubts: tuple[str, ...]


def export_run(
    run: str,
    out: Path | str,
    store: str = DEFAULT_STORE,
    *,
    merged: bool = False,
    force: bool = False,
    opened: Sequence[str] = (),
) -> Exported:
    """Writes the adapter and head of a finished trial into the folder `out`.

    `run` is an MLflow run id or a trial id, or the beginning of one. `store` is the URI of the store.
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

    target = output_folder(Path(out), "export", force=force)
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
        facts |= facts_of_writing(task)
        model_input = trial.task.input(stored.backbone.info.input, task)
        mean, sd = record.measure(Measure.TARGET_MEAN), record.measure(Measure.TARGET_SD)
        if mean is not None and sd is not None:
            facts["output"] = f"standardised; in {task.unit or 'units of the targets'} × {sd!r} + {mean!r}"
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
            template=template_of(task),
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
    template: str = "{prompt}",
    merged: bool = False,
    force: bool = False,
) -> Exported:
    """Writes an attached adapter and the head into the folder `out`.

    README.md contains `facts`, `doubts` and, for hubs, the score. `model_input` says how examples were
    prepared in training. None stands for the backbone's own preparation. `template` is the text that training
    made of a prompt, for a backbone that writes its answers. The export is first written to a
    temporary folder beside `out`, and loaded by its library. It moves to `out` only if its logits on a fixed
    batch agree with those of `backbone.module`. The adapter is unchanged afterwards. Raises UserError as
    `export_run` does.
    """
    target = output_folder(out, "export", force=force)
    original = Original(backbone, spec, classes, model_input or backbone.info.input)
    inputs = _inputs(backbone)
    expected = _logits(backbone, inputs)
    facts = {
        **(facts or {}),
        "backbone": f"{backbone.info.name} ({backbone.info.description})",
        "weights": backbone.info.weights_hash,
        **facts_of(original),
    }
    with beside(target) as folder:
        notes, size = list[str](), ""
        if merged:
            _write_merged(original, adapter, folder)
        else:
            notes, size = _write_checkpoint(original, adapter, folder)
            facts |= {"as LoRA": size} if size else {}
        difference = _check(_loaded_logits(original, adapter, folder, inputs, merged), expected)
        notes += [f"{markdown_text(doubt)}." for doubt in doubts]
        text = card(original, facts, notes, difference, score, merged, template)
        (folder / "README.md").write_text(text, encoding="utf-8")
        files = tuple(sorted([MANIFEST, *(entry.name for entry in folder.iterdir())]))
        manifest = {**facts, "merged": merged, "largest difference of logits": difference, "files": files}
        write_json(folder / MANIFEST, manifest)
        publish(folder, target)
    return Exported(target, files, difference, size, tuple(doubts))


@torch.no_grad()
def _write_checkpoint(original: Original, adapter: Adapter, folder: Path) -> tuple[list[str], str]:
    """Writes a PEFT checkpoint, with the original model if it is neither on the hub nor in a folder.

    Returns notes for README.md, and `Exported.size`.
    Raises UserError for a trial without adapter, and for an adapter of peft's own that does
    not fit the layers of the original model. Raises NotLowRank if peft cannot represent the update.
    """
    if not adapter.bases:
        raise UserError("the trial trained a head only: there is no adapter; --merged writes the whole model")
    size = ""
    try:
        notes, size = _write_lora(original, adapter, folder)
    except NotLowRank as error:
        if not isinstance(adapter, PeftAdapter):
            raise NotLowRank(
                f"{error}, so peft has no form for it; --merged writes a plain model, for every linear update"
            ) from error
        notes = _write_own(original, adapter, folder)
    original.save_head(folder)
    if original.reference is None:
        original.save(folder / ORIGINAL, _pristine(original, adapter))
    return notes, size


def _write_lora(original: Original, adapter: Adapter, folder: Path) -> tuple[list[str], str]:
    """Writes the update as LoRA. Returns notes for README.md, and `Exported.size`."""
    from peft import LoraConfig

    factors, biases = adapter.factors(), adapter.biases()
    layers = original.layers({site: Update(*pair, biases.get(site)) for site, pair in factors.items()})
    ranks = {layer: update.down.shape[0] for layer, update in layers.items()}
    usual = Counter(ranks.values()).most_common(1)[0][0]
    # peft reads keys as regular expressions for the end of a layer's path.
    unusual = {re.escape(layer): rank for layer, rank in ranks.items() if rank != usual}
    heads = original.heads()
    numbers = sum(update.down.numel() + update.up.numel() for update in layers.values())
    numbers += sum(update.bias.numel() for update in layers.values() if update.bias is not None)
    at = ", ".join(map(str, sorted(set(ranks.values()))))
    grown = f"{adapter.parameter_count:,} parameters become {numbers:,} numbers ({4 * numbers / 1e6:.1f} MB)"
    size = f"{grown} at r {at}"
    config = LoraConfig(
        r=usual,
        # The factors include the scale, so alpha / rank is 1 everywhere.
        lora_alpha=usual,
        rank_pattern=unusual,
        alpha_pattern=dict(unusual),
        target_modules=list(layers),
        fan_in_fan_out=bool(original.kind.transposed),
        lora_bias=bool(biases),
    )
    tensors = {}
    for layer, update in layers.items():
        tensors[f"{layer}.lora_A.weight"], tensors[f"{layer}.lora_B.weight"] = update.down, update.up
        if biases:
            none = update.up.new_zeros(update.up.shape[0])
            tensors[f"{layer}.lora_B.bias"] = none if update.bias is None else update.bias
    for path, head in heads.items():
        tensors |= {f"{path}.{name}": tensor for name, tensor in head.items()}
    _save(original, folder, config, {f"base_model.model.{name}": tensor for name, tensor in tensors.items()})
    notes = ["`model.merge_and_unload()` adds the update to the backbone's weights."]
    if biases and not all(base.bias is not None for base in adapter.bases.values()):
        notes = [
            "Some adapted layers have no bias of their own. peft then applies the trained biases, but "
            "`merge_and_unload` refuses: export with `--merged` instead."
        ]
    return notes, size


def _write_own(original: Original, adapter: PeftAdapter, folder: Path) -> list[str]:
    """Converts peft's adapter on the backbone to an adapter of the original model, and writes it."""
    from peft import get_peft_model, get_peft_model_state_dict

    if original.fused:
        *parts, last = next(iter(original.kind.fused.values()))
        raise UserError(
            f"{original.backbone.info.kind} holds {', '.join(parts)} and {last} in one layer, on which peft "
            "would put another adapter; --merged writes a plain model"
        )
    model = original.bare()
    config = adapter.config({original.path(site): site for site in adapter.bases})
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped: Any = get_peft_model(model, config, NAME)
    # The backbone has the same layers under other names.
    inside, outside = "model.encoder.", f"model.{original.prefix}"
    there = {
        outside + name.removeprefix(inside) if name.startswith(inside) else name: tensor
        for name, tensor in adapter.tuner.state_dict().items()
        if not name.startswith("model.head.")
    }
    missing = set(wrapped.base_model.load_state_dict(there, strict=False).missing_keys)
    if original.spec.quantise:
        # A quantised layer holds its weight under other names.
        sites = original.backbone.geometry.sites(original.backbone.projections)
        missing -= {
            f"model.{original.path(site)}.{end}" for site in sites for end in ("weight", "base_layer.weight")
        }
    # Heads and output layers are outside the encoder and have no adapter.
    if wrong := [name for name in missing if name.startswith(outside)]:
        raise UserError(f"peft has other parts on the original model: {', '.join(sorted(wrong)[:4])}")
    tensors = get_peft_model_state_dict(wrapped, adapter_name=NAME, save_embedding_layers=False)
    for path, head in original.heads().items():
        tensors |= {f"base_model.model.{path}.{name}": tensor for name, tensor in head.items()}
    _save(original, folder, config, tensors)
    return ["`model.merge_and_unload()` adds the update to the backbone's weights, if peft merges this type."]


def _save(original: Original, folder: Path, config: Any, tensors: dict[str, Tensor]) -> None:
    fields: dict[str, Any] = {
        "modules_to_save": list(original.heads()) or None,
        "inference_mode": True,
        "base_model_name_or_path": original.place,
        "revision": original.revision,
        "task_type": original.target.task,
    }
    if original.target.task is None:
        mapping = {"base_model_class": original.target.class_name, "parent_library": "transformers"}
        fields["auto_mapping"] = mapping
    for field, value in fields.items():
        setattr(config, field, value)
    config.save_pretrained(folder)
    save_file(copies(tensors), folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _pristine(original: Original, adapter: Adapter) -> dict[str, Tensor]:
    """The frozen encoder's state, not quantised and without the attached adapter."""
    if original.spec.quantise:
        return copies(load(original.spec.model_copy(update={"quantise": None})).module.encoder.state_dict())
    backbone = original.backbone
    layers = {backbone.path(site).removeprefix("encoder."): base for site, base in adapter.bases.items()}
    inside = tuple(f"{path}." for path in layers)
    state = {
        name: tensor for name, tensor in original.encoder.state_dict().items() if not name.startswith(inside)
    }
    for path, base in layers.items():
        state |= {f"{path}.{name}": tensor for name, tensor in base.state_dict().items()}
    return copies(state)


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
    """Loads an export by its library, and returns its logits. Raises UserError if that fails."""
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
    """Copies the trial's projection weights, rounded by quantisation, into the original model in float32."""
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
def beside(target: Path) -> Iterator[Path]:
    """A context with an empty folder beside `target`, which is deleted at the end.

    Raises UserError if files cannot be written there, for example if the disk is full.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
            new = Path(folder) / "made"
            new.mkdir()
            yield new
    except (OSError, SafetensorError) as error:
        raise UserError(f"{target} cannot be written: {error}") from error


def publish(folder: Path, target: Path) -> None:
    """Moves a finished export or recipe to `target`. Replaces files of an earlier one, or of the same name.

    Raises UserError if a new file would replace a folder in `target` that no export or recipe wrote.
    """
    if not target.exists():
        folder.replace(target)
        return
    try:
        earlier = earlier_files(target, MANIFEST)
    except (OSError, ValueError):  # a file of that name from elsewhere
        earlier = []
    new = {target / entry.name: entry for entry in folder.iterdir()}
    for there in new:
        if there.is_dir() and not there.is_symlink() and there not in earlier:
            raise UserError(f"{there} is a folder that no export or recipe wrote; name another folder")
    for there in (*earlier, *new):
        remove(there)
    for there, entry in new.items():
        entry.replace(there)
