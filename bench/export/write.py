"""Writes an adapter and a head as files that other programs load, and checks them first."""

from __future__ import annotations

import json
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bench.backbones import BackboneSpec, LoadedBackbone
from bench.backbones.huggingface import quiet
from bench.export.form import ORIGINAL, Form, copies
from bench.export.forms import form_of
from bench.export.updates import Update
from bench.inputs import ImageInput
from bench.process.files import remove
from bench.process.outputs import earlier_files, output_folder
from methods import Adapter, NotLowRank, UserError

#: How far a logit may be from the harness's own, relative to the largest one (at least 1).
TOLERANCE = 1e-5

#: What says which files an export wrote, so that `force` removes no others.
MANIFEST = "export.json"


@dataclass(frozen=True)
class Exported:
    """A written and checked export."""

    folder: Path
    files: tuple[str, ...]
    #: Largest difference of a logit between the export, loaded as its README.md says, and the harness.
    difference: float


def write_export(
    backbone: LoadedBackbone,
    adapter: Adapter,
    spec: BackboneSpec,
    out: Path,
    classes: Sequence[str],
    facts: Mapping[str, str] | None = None,
    *,
    merged: bool = False,
    force: bool = False,
) -> Exported:
    """Writes an attached adapter and the head. Raises UserError as `export_run` does.

    `facts` are told in README.md. Nothing is in `out` before the export, loaded by the very code in its
    README.md, gave the logits of `backbone.module` on a fixed batch. The adapter is left as it was.
    """
    target = output_folder(out, "export", force=force)
    form = form_of(backbone, spec, classes)
    inputs = _inputs(backbone)
    expected = _logits(backbone, inputs)
    facts = {
        **(facts or {}),
        "backbone": f"{backbone.info.name} ({backbone.info.description})",
        "weights": backbone.info.weights_hash,
        "classes": ", ".join(f"{index} {name}" for index, name in enumerate(classes)),
        "input": form.input(),
    }
    with _beside(target) as made:
        notes = _write_merged(form, adapter, made) if merged else _write_lora(form, adapter, made, target)
        difference = _check(form.code(made, merged), inputs, expected)
        (made / "README.md").write_text(
            _readme(facts, form.code(target, merged), [*form.notes(merged), *notes], difference, merged),
            encoding="utf-8",
        )
        files = tuple(sorted([MANIFEST, *(entry.name for entry in made.iterdir())]))
        manifest = {**facts, "merged": merged, "largest difference of logits": difference, "files": files}
        (made / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", "utf-8")
        _publish(made, target)
    return Exported(target, files, difference)


@torch.no_grad()
def _write_lora(form: Form, adapter: Adapter, folder: Path, final: Path) -> list[str]:
    """Writes a LoRA checkpoint that will lie at `final`; returns notes on it."""
    from peft import LoraConfig

    if not adapter.bases:
        raise UserError("the trial trained a head only: there is no adapter; --merged writes the whole model")
    try:
        factors = adapter.factors()
    except NotLowRank as error:
        raise NotLowRank(
            f"{error}, so it is no LoRA checkpoint; --merged writes a plain model, for every linear update"
        ) from error
    biases = adapter.biases()
    layers = form.layers({site: Update(*pair, biases.get(site)) for site, pair in factors.items()})
    ranks = {layer: update.down.shape[0] for layer, update in layers.items()}
    usual = Counter(ranks.values()).most_common(1)[0][0]
    # peft reads keys as regular expressions that a layer's path has to end with.
    others = {re.escape(layer): rank for layer, rank in ranks.items() if rank != usual}
    heads = form.heads()
    reference = str(final / ORIGINAL) if form.origin.reference is None else form.origin.reference
    config = LoraConfig(
        r=usual,
        # The factors hold the scale: alpha / rank is 1 everywhere.
        lora_alpha=usual,
        rank_pattern=others,
        alpha_pattern=dict(others),
        target_modules=list(layers),
        modules_to_save=list(heads) or None,
        lora_bias=bool(biases),
        inference_mode=True,
        base_model_name_or_path=reference,
        revision=form.origin.revision,
    )
    config.save_pretrained(folder)
    tensors = {}
    for layer, update in layers.items():
        tensors[f"{layer}.lora_A.weight"], tensors[f"{layer}.lora_B.weight"] = update.down, update.up
        if biases:
            none = update.up.new_zeros(update.up.shape[0])
            tensors[f"{layer}.lora_B.bias"] = none if update.bias is None else update.bias
    for path, head in heads.items():
        tensors |= {f"{path}.{name}": tensor for name, tensor in head.items()}
    prefixed = {f"base_model.model.{name}": tensor for name, tensor in copies(tensors).items()}
    save_file(prefixed, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    if loose := form.loose_head():
        save_file(loose, folder / "head.safetensors", metadata={"format": "pt"})
    if form.origin.reference is None:
        form.write_original(folder / ORIGINAL, _pristine(form.encoder, form.backbone, adapter))
    if biases and not all(base.bias is not None for base in adapter.bases.values()):
        return [
            "Some adapted layers have no bias of their own. peft then applies the trained biases, but "
            "`merge_and_unload` refuses: export with `--merged` instead."
        ]
    return []


@torch.no_grad()
def _write_merged(form: Form, adapter: Adapter, folder: Path) -> list[str]:
    """Writes the merged model, and the tokenizer with it if there is one; returns notes on it."""
    was_merged = adapter.merged
    adapter.merge()
    try:
        state = copies(form.encoder.state_dict())
    finally:
        if not was_merged:
            adapter.unmerge()
    form.write_merged(folder, state)
    if loose := form.loose_head():
        save_file(loose, folder / "head.safetensors", metadata={"format": "pt"})
    wanted = form.backbone.info.input
    if not isinstance(wanted, ImageInput):
        try:
            wanted.load_tokenizer().save_pretrained(folder)
        except UserError as error:
            return [f"Without a tokenizer: {error}"]
    return []


def _pristine(encoder: nn.Module, backbone: LoadedBackbone, adapter: Adapter) -> dict[str, Tensor]:
    """The frozen encoder's state, without the adapter that is on it."""
    layers = {backbone.path(site).removeprefix("encoder."): base for site, base in adapter.bases.items()}
    inside = tuple(f"{path}." for path in layers)
    state = {name: tensor for name, tensor in encoder.state_dict().items() if not name.startswith(inside)}
    for path, base in layers.items():
        state |= {f"{path}.{name}": tensor for name, tensor in base.state_dict().items()}
    return copies(state)


def _readme(
    facts: Mapping[str, str], code: str, notes: Iterable[str], difference: float, merged: bool
) -> str:
    title = "A fine-tuned model" if merged else "A LoRA checkpoint"
    libraries = ("torch", "transformers", "timm", "peft")
    checked = ", ".join(f"{library} {version(library)}" for library in libraries)
    return "\n".join(
        [
            f"# {title}, written by tensorpeft-bench",
            "",
            "| | |",
            "|---|---|",
            *(f"| {key} | {value} |" for key, value in facts.items()),
            "",
            "```python",
            f"{code}```",
            "",
            *(f"- {note}" for note in notes),
            f"- This code was run with {checked}; no logit was off by more than {difference:.1e}.",
            "",
        ]
    )


def _inputs(backbone: LoadedBackbone) -> dict[str, Tensor]:
    """A fixed random batch; of texts, all but one are padded."""
    generator = torch.Generator().manual_seed(0)
    wanted, examples = backbone.info.input, 4
    if isinstance(wanted, ImageInput):
        return {"pixel_values": torch.randn(examples, 3, wanted.size, wanted.size, generator=generator)}
    config: Any = backbone.module.encoder.config
    length = min(16, wanted.max_tokens)
    ids = torch.randint(config.vocab_size, (examples, length), generator=generator)
    mask = torch.ones_like(ids)
    for example in range(1, examples):
        ids[example, length - example :] = config.pad_token_id or 0
        mask[example, length - example :] = 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def _logits(backbone: LoadedBackbone, inputs: Mapping[str, Tensor]) -> Tensor:
    module = backbone.module
    device, training = next(module.parameters()).device, module.training
    module.eval()
    try:
        return module(**{name: tensor.to(device) for name, tensor in inputs.items()}).float().cpu()
    finally:
        module.train(training)


def _check(code: str, inputs: Mapping[str, Tensor], expected: Tensor) -> float:
    """The largest difference of the logits of `code`. Raises UserError if it fails or is too far off."""
    names: dict[str, Any] = {}
    try:
        with quiet(), warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            exec(compile(code, "README.md", "exec"), names)
            found = names["logits"](**inputs)
    except Exception as error:  # whatever the libraries raise, the export is of no use
        raise UserError(
            f"the original model cannot carry what was trained: loading the export fails with "
            f"{type(error).__name__}: {error}; nothing was written"
        ) from error
    if found.shape != expected.shape:
        raise UserError(f"the export gives logits of shape {tuple(found.shape)}, not {tuple(expected.shape)}")
    difference = float((found.cpu() - expected).abs().max())
    allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
    # Written so that not-a-number fails too.
    if not difference <= allowed:
        raise UserError(
            f"the export's logits differ from the trial's by {difference:.1e}, allowed are {allowed:.1e}; "
            "nothing was written"
        )
    return difference


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """An empty folder on the same disk, gone afterwards."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
            made = Path(folder) / "made"
            made.mkdir()
            yield made
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error}") from error


def _publish(made: Path, target: Path) -> None:
    """Moves the finished export to its place. Of what is there only files of an export are removed."""
    if not target.exists():
        made.replace(target)
        return
    try:
        earlier = earlier_files(target, MANIFEST)
    except (OSError, ValueError):  # a file of that name which no export wrote
        earlier = []
    new = {target / entry.name: entry for entry in made.iterdir()}
    for there in new:
        if there.is_dir() and not there.is_symlink() and there not in earlier:
            raise UserError(f"{there} is a folder that no export wrote; name another folder")
    for there in (*earlier, *new):
        remove(there)
    for there, entry in new.items():
        entry.replace(there)
