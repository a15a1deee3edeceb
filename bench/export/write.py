"""Writes an adapter and a head as files that other programs load, and checks them first."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from bench.backbones import BackboneSpec, LoadedBackbone
from bench.backbones.answers import Answers as Answerer
from bench.backbones.answers import Writer
from bench.backbones.huggingface import quiet
from bench.export import loading
from bench.export.answers import Agreement, Answers, agreement
from bench.export.checkpoint import write_checkpoint
from bench.export.form import Form, Origin, copies
from bench.export.forms import form_of
from bench.inputs import ImageInput, ModelInput
from bench.process.files import remove
from bench.process.outputs import earlier_files, output_folder
from bench.process.visible import markdown_text
from methods import Adapter, UserError

#: How far a logit may be from the harness's own, relative to the largest one (at least 1).
TOLERANCE = 1e-5

#: What says which files an export wrote, so that `force` removes no others.
MANIFEST = "export.json"

#: What `bench.export.loading` is called in an export.
LOADER = "load_export.py"

#: What README.md shows, whatever was exported.
CODE = """```python
from load_export import load

export = load(".")
model = export.model
# export.logits(**batch) gives what the trial computed.
```"""


@dataclass(frozen=True)
class Doubt:
    """What could not be checked, and why; neither ends in a dot. Only the reason may name a path."""

    what: str
    why: str


@dataclass(frozen=True)
class Exported:
    """A written and checked export."""

    folder: Path
    files: tuple[str, ...]
    #: Largest difference of a logit between the export, loaded as its README.md says, and the harness.
    difference: float
    #: How it answers the examples that the trial was scored on; None where that was not asked for.
    agreement: Agreement | None
    doubts: tuple[Doubt, ...]


def write_export(
    backbone: LoadedBackbone,
    adapter: Adapter,
    spec: BackboneSpec,
    out: Path,
    classes: Sequence[str],
    facts: Mapping[str, str] | None = None,
    *,
    wanted: ModelInput | None = None,
    answers: Answers | None = None,
    doubts: Sequence[Doubt] = (),
    merged: bool = False,
    force: bool = False,
) -> Exported:
    """Writes an attached adapter and the head. Raises UserError as `export_run` does.

    `facts` and `doubts` are told in README.md. `wanted` is how training prepared the examples; without, it
    is as the backbone wants them. Nothing is in `out` before the export, loaded as its README.md says, gave
    the logits of `backbone.module` on a fixed batch, and those of `answers`. The adapter is left as it was.
    """
    target = output_folder(out, "export", force=force)
    form = form_of(backbone, spec, classes, wanted or backbone.info.input)
    inputs = _inputs(backbone)
    expected = form.judged(_logits(backbone, inputs))
    facts = {
        **(facts or {}),
        "backbone": f"{backbone.info.name} ({backbone.info.description})",
        "weights": backbone.info.weights_hash,
        **form.facts(),
    }
    with _beside(target) as made:
        notes = _write_merged(form, adapter, made) if merged else write_checkpoint(form, adapter, made)
        notes = [*form.notes(merged), *notes]
        _write_loader(form, merged, made)
        logits = _loaded(made, form.origin)
        difference = _check(logits(**inputs), expected)
        agreed = None if answers is None else _agreement(form, logits, answers)
        notes += [f"{agreed}."] if agreed else []
        notes += [f"{markdown_text(doubt.what)}." for doubt in doubts]
        (made / "README.md").write_text(_readme(facts, notes, difference, merged), encoding="utf-8")
        files = tuple(sorted([MANIFEST, *(entry.name for entry in made.iterdir())]))
        manifest = {**facts, "merged": merged, "largest difference of logits": difference, "files": files}
        _write_json(made / MANIFEST, manifest)
        _publish(made, target)
    return Exported(target, files, difference, agreed, tuple(doubts))


def _write_loader(form: Form, merged: bool, folder: Path) -> None:
    """Writes the Python that loads an export, which is the same for all, and its settings."""
    text = resources("bench.export").joinpath("loading.py").read_text(encoding="utf-8")
    (folder / LOADER).write_text(text, encoding="utf-8")
    _write_json(folder / loading.SETTINGS, form.settings(merged))


def _write_json(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _agreement(form: Form, logits: Callable[..., Tensor], answers: Answers) -> Agreement:
    """Raises UserError as `agreement` does."""
    # A language model gives a logit for every token of its vocabulary: a few examples at a time.
    parts = [logits(**part) for part in answers.parts(4)]
    return agreement(torch.cat(parts), replace(answers, logits=form.judged(answers.logits)))


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
        save_file(loose, folder / loading.HEAD, metadata={"format": "pt"})
    if form.write_tokenizer(folder) or isinstance(form.wanted, ImageInput):
        return []
    return ["There is no tokenizer here: none of the backbone's loads."]


def _readme(facts: Mapping[str, str], notes: Iterable[str], difference: float, merged: bool) -> str:
    """The page of an export. Its code is always the same; facts are escaped, notes are Markdown."""
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
    """A fixed random batch; of texts, all but one are padded."""
    generator = torch.Generator().manual_seed(0)
    wanted, examples = backbone.info.input, 4
    if isinstance(wanted, ImageInput):
        return {"pixel_values": torch.randn(examples, 3, wanted.size, wanted.size, generator=generator)}
    config: Any = backbone.module.encoder.config
    answers = backbone.module.answers
    # The words of a class come behind the prompt.
    behind = max(map(len, answers.words)) if isinstance(answers, Answerer) else 0
    length = max(examples, min(16, wanted.max_tokens) - behind)
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


def _loaded(folder: Path, origin: Origin) -> Callable[..., Tensor]:
    """What an export computes logits with. Raises UserError where loading it, or later that, fails."""
    with _telling():
        export = loading.load(folder, origin.reference if origin.own else None)

    def logits(**inputs: Tensor) -> Tensor:
        with _telling():
            return export.logits(**inputs).float().cpu()

    return logits


@contextmanager
def _telling() -> Iterator[None]:
    try:
        with quiet(), warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # whatever the libraries raise, the export is of no use
        raise UserError(
            f"the original model cannot carry what was trained: loading the export fails with "
            f"{type(error).__name__}: {error}; nothing was written"
        ) from error


def _check(found: Tensor, expected: Tensor) -> float:
    """The largest difference of the logits. Raises UserError if it is too large."""
    if found.shape != expected.shape:
        raise UserError(f"the export gives logits of shape {tuple(found.shape)}, not {tuple(expected.shape)}")
    difference = float((found - expected).abs().max())
    allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
    # Written so that not-a-number fails too.
    if not difference <= allowed:
        raise UserError(
            f"the export's logits differ from the trial's by {difference:.1e}, allowed are {allowed:.1e}: "
            "the original model's library computes something else (another pooling, say); nothing was written"
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
