"""Writes an adapter and a head as files for other programs, and checks them first."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCardData
from safetensors.torch import save_file
from torch import Tensor, nn

from tensorbench.backbones import BackboneSpec, LoadedBackbone, entry_of
from tensorbench.backbones.answers import Answers, Writer
from tensorbench.backbones.backbone import FittedHead
from tensorbench.backbones.huggingface import FolderBackbone, HubBackbone, quiet
from tensorbench.backbones.kinds import KINDS, TIMM
from tensorbench.backbones.random_weights import RandomBackbone
from tensorbench.backbones.timm_vit import Blueprint, TimmBackbone
from tensorbench.export import loading
from tensorbench.export.checkpoint import write_checkpoint
from tensorbench.export.form import BaseOrigin, Form, copies
from tensorbench.export.timm_form import TimmForm
from tensorbench.export.transformers_form import TransformersForm, head_class
from tensorbench.inputs import ImageInput, ModelInput
from tensorbench.machine.files import remove
from tensorbench.machine.outputs import earlier_files, output_folder
from tensorbench.machine.visible import markdown_text, visible
from tensorbench.methods import Adapter, UserError

#: The largest accepted difference between an export's logits and the harness's, divided by the harness's
#: largest absolute logit if that is above 1.
TOLERANCE = 1e-5

#: The file that lists an export's files. With `force`, a later export removes all files in this list.
MANIFEST = "export.json"

#: The name that the copy of `bench/export/loading.py` has in an export.
LOADER = "load_export.py"

#: The code in the README.md of every export.
CODE = """```python
from load_export import load

export = load(".")
model = export.model
# export.logits(**batch) gives what the trial computed.
```"""


@dataclass(frozen=True)
class Exported:
    """A written and checked export."""

    folder: Path
    files: tuple[str, ...]
    #: The largest difference between the harness's logits and the export's, loaded as its README.md says.
    difference: float
    #: How large the adapter has become as factors of LoRA. Empty in other forms.
    size: str
    #: Sentences without a full stop. Each names a check that was not possible.
    doubts: tuple[str, ...]


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
    and loaded as its README.md says. It moves to `out` only if it gives the logits of `backbone.module` on a
    fixed batch. The adapter is unchanged afterwards. Raises UserError as `export_run` does.
    """
    target = output_folder(out, "export", force=force)
    form = form_of(backbone, spec, classes, model_input or backbone.info.input)
    inputs = _inputs(backbone)
    expected = form.judged(_logits(backbone, inputs))
    facts = {
        **(facts or {}),
        "backbone": f"{backbone.info.name} ({backbone.info.description})",
        "weights": backbone.info.weights_hash,
        **form.facts(),
    }
    with _beside(target) as folder:
        write = _write_merged if merged else write_checkpoint
        notes, more = write(form, adapter, spec, folder)
        facts |= more
        notes = [*form.notes(merged), *notes]
        _write_loader(form, merged, folder)
        difference = _check(_loaded_logits(folder, form.origin, inputs), expected)
        notes += [f"{markdown_text(doubt)}." for doubt in doubts]
        text = _card(form, score, merged) + _readme(facts, notes, difference, merged)
        (folder / "README.md").write_text(text, encoding="utf-8")
        files = tuple(sorted([MANIFEST, *(entry.name for entry in folder.iterdir())]))
        manifest = {**facts, "merged": merged, "largest difference of logits": difference, "files": files}
        _write_json(folder / MANIFEST, manifest)
        _publish(folder, target)
    return Exported(target, files, difference, more.get("as LoRA", ""), tuple(doubts))


def _write_loader(form: Form, merged: bool, folder: Path) -> None:
    text = resources("tensorbench.export").joinpath("loading.py").read_text(encoding="utf-8")
    (folder / LOADER).write_text(text, encoding="utf-8")
    _write_json(folder / loading.SETTINGS, form.settings(merged))


def _write_json(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@torch.no_grad()
def _write_merged(
    form: Form, adapter: Adapter, spec: BackboneSpec, folder: Path
) -> tuple[list[str], dict[str, str]]:
    """Writes the merged model, with its tokenizer if there is one. Returns notes, and no further facts.

    Raises UserError for quantised weights, and as `Form.write_merged` does.
    """
    if spec.quantise:
        raise UserError(
            f"--merged: weights in {spec.quantise} are too coarse to hold an update; leave it out for a "
            "checkpoint beside them"
        )
    was_merged = adapter.merged
    adapter.merge()
    try:
        state = copies(form.encoder.state_dict())
    finally:
        if not was_merged:
            adapter.unmerge()
    form.write_merged(folder, state)
    if loose := form.loose_head():
        save_file(loose, folder / loading.HEAD, metadata={"format": "pt"})
    if form.write_tokenizer(folder) or isinstance(form.model_input, ImageInput):
        return [], {}
    return ["There is no tokenizer here: none of the backbone's loads."], {}


def _card(form: Form, score: EvalResult | None, merged: bool) -> str:
    """Returns the front matter by which hubs show an export. The licence is for its author to choose."""
    base = form.origin.reference if form.origin.revision else None
    library = "peft" if not merged else "timm" if isinstance(form, TimmForm) else "transformers"
    data = ModelCardData(
        library_name=library,
        base_model=base,
        base_model_relation=("finetune" if merged else "adapter") if base else None,
        tags=["tensorpeft-bench", *["lora"] * (not merged)],
        model_name=f"{form.backbone.info.name} by tensorpeft-bench" if score else None,
        eval_results=[score] if score else None,
    )
    return f"---\n{visible(data.to_yaml())}\n---\n\n"


def _readme(facts: Mapping[str, str], notes: Iterable[str], difference: float, merged: bool) -> str:
    """Returns the README of an export. `facts` are escaped. `notes` are Markdown already."""
    title = "A fine-tuned model" if merged else "A PEFT checkpoint"
    libraries = ("torch", "transformers", "timm", "peft")
    checked = ", ".join(f"{library} {version(library)}" for library in libraries)
    return "\n".join(
        [
            f"# {title}, written by tensorpeft-bench",
            "",
            "| | |",
            "|---|---|",
            *(f"| {markdown_text(key)} | {markdown_text(value)} |" for key, value in facts.items()),
            "",
            "Run in this folder:",
            "",
            CODE,
            "",
            f"- `{LOADER}` is the same file in every export; `{loading.SETTINGS}` holds what it is given.",
            *(f"- {note}" for note in notes),
            f"- It was loaded so with {checked}; no logit was off by more than {difference:.1e}.",
            "",
        ]
    )


def _inputs(backbone: LoadedBackbone) -> dict[str, Tensor]:
    """Returns a fixed random batch of 4 examples. All texts except the first are padded."""
    generator = torch.Generator().manual_seed(0)
    model_input, examples = backbone.info.input, 4
    if isinstance(model_input, ImageInput):
        return {
            "pixel_values": torch.randn(examples, 3, model_input.size, model_input.size, generator=generator)
        }
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


def _loaded_logits(folder: Path, origin: BaseOrigin, inputs: Mapping[str, Tensor]) -> Tensor:
    """Returns the logits of an export that is loaded as its README.md says.

    Raises UserError if loading or computing fails.
    """
    try:
        with quiet(), warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            export = loading.load(folder, origin.reference if origin.own else None)
            return export.logits(**inputs).float().cpu()
    except Exception as error:  # whatever the libraries raise, the export is unusable
        raise UserError(
            f"the original model cannot carry what was trained: loading the export fails with "
            f"{type(error).__name__}: {error}; nothing was written"
        ) from error


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


def form_of(
    backbone: LoadedBackbone, spec: BackboneSpec, classes: Sequence[str], model_input: ModelInput
) -> Form:
    """Returns the form of an export. `model_input` says how examples were prepared in training.

    Raises UserError for each of these:
    - the backbone comes from a plug-in, and no library can load it again
    - the head is a converged head, but the classifier of transformers has a dense layer before its last layer
    - the timm model ends in a classifier that is not a linear layer
    - the frozen weights are not float32
    - the sites are quantised, and the original model has them fused or transposed
    """
    _check_library(backbone)
    if spec.dtype != "float32":
        raise UserError(
            f"backbone '{backbone.info.name}' cannot be exported: what an export computes is compared in "
            f"float32, and the adapter was trained on weights in {spec.dtype}"
        )
    form: type[Form] = TimmForm if backbone.info.kind == TIMM else TransformersForm
    made = form(backbone, replace(_origin(backbone, spec), quantise=spec.quantise), classes, model_input)
    if spec.quantise and (made.fused or made.transposed):
        raise UserError(
            f"backbone '{backbone.info.name}' cannot be exported: what is one layer in the original model, "
            "or transposed there, was quantised in another layout"
        )
    return made


def _check_library(backbone: LoadedBackbone) -> None:
    """Raises UserError if the encoder's or head's class is not the one that transformers needs to load it.

    Backbones from other libraries pass.
    """
    kind = KINDS.get(backbone.info.kind)
    if kind is None:
        return
    import transformers

    encoder, head = backbone.module.encoder, backbone.head
    encoder_class = getattr(transformers, kind.model_class)
    if isinstance(head, FittedHead) and head_class(backbone) is not nn.Linear:
        raise UserError(
            f"backbone '{backbone.info.name}' with a converged head cannot be exported: transformers' "
            f"classifier of kind '{backbone.info.kind}' has a dense layer before the last"
        )
    for what, module, needed in (("encoder", encoder, encoder_class), ("head", head, head_class(backbone))):
        if not isinstance(module, needed):
            raise UserError(
                f"backbone '{backbone.info.name}' of a plug-in cannot be exported: a backbone of kind "
                f"'{backbone.info.kind}' is exported for transformers, but its {what} is a "
                f"{type(module).__name__}, not a {needed.__name__}"
            )


def _origin(backbone: LoadedBackbone, spec: BackboneSpec) -> BaseOrigin:
    entry = entry_of(spec)
    commit = backbone.info.weights_hash.rpartition("@")[2]
    if isinstance(entry, FolderBackbone):
        return BaseOrigin(str(entry.path.expanduser().resolve()))
    if isinstance(entry, HubBackbone):
        return BaseOrigin(entry.repository, commit)
    if isinstance(entry, TimmBackbone):
        blueprint = entry.blueprint()
        if entry.weights is not None:
            return BaseOrigin(str(entry.weights.expanduser().resolve()), blueprint=blueprint)
        return BaseOrigin(blueprint.hub(entry.model)[0], commit, blueprint)
    if backbone.info.kind != TIMM:
        return BaseOrigin(None)
    if not isinstance(entry, RandomBackbone):
        raise UserError(
            f"backbone '{backbone.info.name}' of a plug-in is a timm model, but by which name timm makes it "
            "is not known, so no checkpoint could be loaded on it"
        )
    assert isinstance(backbone.info.input, ImageInput)
    geometry = backbone.geometry
    shape = {
        # Use the described size, not the entry's own, since an included original is already resized.
        "img_size": backbone.info.input.size,
        "patch_size": entry.patch,
        "embed_dim": geometry.hidden,
        "depth": geometry.layers,
        "num_heads": geometry.heads,
        "mlp_ratio": geometry.mlp / geometry.hidden,
    }
    return BaseOrigin(None, blueprint=Blueprint("vit_base_patch16_224", shape, {}))
