"""The kinds of backbones that transformers has, from a folder or the hub."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.backbones.base import (
    MOST_KEYS,
    BackboneInfo,
    LoadedBackbone,
    check_safetensors,
    check_shape,
    pixel_size,
    read_object,
    refuse_image_size,
)
from bench.backbones.fused import Split, SplitHeads, transposed
from bench.backbones.kinds import KINDS, MAY_EXCEED, MAY_MISS, MODEL_TYPES, UNEMBEDDINGS, Kind
from bench.backbones.preprocessing import normalisation
from bench.backbones.untrusted import refuse_choices
from bench.inputs import ImageInput, ModelInput, TextInput
from bench.process.files import sha256_of_all
from bench.sources.hub import SMALL_FILES, WEIGHT_FILES, LockedFiles, snapshot
from methods.errors import UserError, cut, first_few, near_names, shown

#: The special tokens that a tokenizer puts into a text or a batch by itself.
_ROLES = ("bos", "cls", "eos", "pad", "sep", "unk")


@dataclass(frozen=True)
class FolderBackbone:
    """A `save_pretrained` folder, written by transformers 4 or 5."""

    path: Path

    def describe(self, image_size: int | None) -> BackboneInfo:
        """Reads config, tokenizer and hash; see `BackboneEntry`. Raises UserError for a bad folder."""
        folder = self.path.expanduser()
        files = _checkpoint_files(folder)
        return describe_folder(
            folder,
            name=f"local:{folder.resolve().name}",
            weights_hash=f"sha256:{sha256_of_all(*files)}",
            description="a checkpoint folder of your own; you know its origin and licence",
            image_size=image_size,
        )

    def load(self, image_size: int | None) -> LoadedBackbone:
        """See `BackboneEntry`. Raises UserError if the weights are incomplete or do not fit."""
        return load_folder(self.path.expanduser(), self.describe(image_size))


@dataclass(frozen=True)
class HubBackbone:
    """A repository of the Hugging Face hub, at the commit that its revision names now."""

    repository: str
    revision: str | None = None
    locked: LockedFiles = ()

    def describe(self, image_size: int | None) -> BackboneInfo:
        """Downloads config and tokenizer; see `BackboneEntry`. Raises UserError as `snapshot` does."""
        folder = snapshot(self.repository, self.revision, SMALL_FILES, locked=self.locked)
        return describe_folder(
            folder,
            name=self.repository,
            weights_hash=f"hub:{self.repository}@{folder.name}",
            description=f"{self.repository} of the Hugging Face hub, commit {folder.name}; see its card",
            image_size=image_size,
        )

    def load(self, image_size: int | None) -> LoadedBackbone:
        """Downloads the weights; see `BackboneEntry`. Raises UserError as `load_folder` does too."""
        commit = snapshot(self.repository, self.revision, SMALL_FILES, locked=self.locked).name
        folder = snapshot(self.repository, commit, SMALL_FILES + WEIGHT_FILES, locked=self.locked)
        # The hub's cache may hold what a description needs alone, and does not say what else there is.
        if not any(folder.glob(WEIGHT_FILES[0])):
            raise UserError(
                f"hub model {self.repository} has no model.safetensors in the cache. If the hub cannot be "
                "reached from here, run `tensorbench tools fetch SUITE.yaml` where it can; else the "
                "repository has none (pickled weights are not read: load them once with transformers, write "
                "them with save_pretrained and name that folder as `local:`)"
            )
        return load_folder(folder, self.describe(image_size))


def describe_folder(
    folder: Path, *, name: str, weights_hash: str, description: str, image_size: int | None
) -> BackboneInfo:
    """Description of a checkpoint folder, read from its config. Raises UserError for a bad one."""
    with _config(folder) as config:
        wanted, shape = _model_input(folder, config, name, image_size), KINDS[config.model_type].shape
        return BackboneInfo(
            name=name,
            kind=config.model_type,
            geometry=shape.geometry(config, parameters(config, wanted)),
            projections=shape.projections(config),
            input=wanted,
            weights_hash=weights_hash,
            description=description,
        )


def parameters(config: Any, wanted: ModelInput) -> int:
    """Of the whole encoder at the wanted image size, built without weights."""
    import transformers

    kind = KINDS[config.model_type]
    if isinstance(wanted, ImageInput) and kind.resize:
        config = copy.deepcopy(config)
        config.image_size = wanted.size
    with torch.device("meta"):
        model = getattr(transformers, kind.model_class)(config, **kind.arguments)
    return sum(parameter.numel() for parameter in model.parameters())


def load_folder(folder: Path, info: BackboneInfo) -> LoadedBackbone:
    """Load a checkpoint folder as described by `info`.

    Raises UserError, with the keys named, if an encoder weight is missing or one of the file's has no
    place: transformers would leave what is missing random and only warn.
    """
    import transformers

    kind = KINDS[info.kind]
    check_safetensors(info.name, *_weight_files(folder))
    model_class = getattr(transformers, kind.model_class)
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            encoder, report = model_class.from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                attn_implementation=kind.attention,
                **kind.arguments,
            )
    except Exception as error:
        raise UserError(f"backbone '{info.name}' in {folder} does not load: {_told(error)}") from error
    _refuse(info.name, "lacks weights, which would stay random", report["missing_keys"], MAY_MISS)
    may_exceed = (*MAY_EXCEED, *kind.may_exceed)
    _refuse(info.name, "has weights that no layer takes", report["unexpected_keys"], may_exceed)
    # transformers 5 keeps a half-precision checkpoint's dtype, transformers 4 does not.
    encoder.float()
    unembedding = _unembedding(folder) if kind.decodes else None
    if unembedding is not None and not torch.equal(unembedding, encoder.get_input_embeddings().weight):
        # As in transformers, an output layer of its own counts, though a configuration says that it is tied.
        encoder.config.tie_word_embeddings = False
    return as_backbone(info, encoder, unembedding)


def _unembedding(folder: Path) -> Tensor | None:
    """What a language model's checkpoint turns states to tokens by, beside the encoder; None if nothing."""
    from safetensors import safe_open

    # As transformers does, where all is in one file it leaves others that lie beside it.
    whole = folder / "model.safetensors"
    for file in [whole] if whole.is_file() else _weight_files(folder):
        with safe_open(file, framework="pt") as weights:
            for name in UNEMBEDDINGS & set(weights.keys()):
                return weights.get_tensor(name).float()
    return None


def as_backbone(info: BackboneInfo, encoder: Any, unembedding: Tensor | None = None) -> LoadedBackbone:
    """A transformers model as a backbone: at the described image size, what is fused split."""
    kind, config = KINDS[info.kind], encoder.config
    # What is pooled is read by its name, which a tuple has not.
    config.return_dict = True
    for field, value in kind.sets.items():
        setattr(config, field, value)
    if isinstance(info.input, ImageInput) and kind.resize:
        if info.input.size != _side(config.image_size, info.name):
            kind.resize(encoder, info.input.size)
        config.image_size = info.input.size
    for layer in range(info.geometry.layers):
        for path in (path.format(layer=layer) for path in kind.transposed):
            encoder.set_submodule(path, transposed(encoder.get_submodule(path)))
        for template, parts in kind.fused.items():
            path = template.format(layer=layer)
            fused = encoder.get_submodule(path)
            split = SplitHeads(fused, info.geometry.head_size) if kind.fused_by_head else Split(fused, parts)
            encoder.set_submodule(path, split)
    return LoadedBackbone(info, encoder, kind.pool, kind.make_head(config), kind.layouts, unembedding)


def load_tokenizer(folder: Path, pads_by_end: bool = False) -> Any:
    """The tokenizer of a checkpoint folder. Raises UserError if it has none.

    Many a decoder's has no padding token. `pads_by_end` then pads by the one that ends a text, as is usual.
    Since padding is masked, it does not matter which token it is.
    """
    from transformers import AutoTokenizer

    # Without these transformers 5 makes an empty tokenizer, which turns every word into one unknown token.
    if not _tokenizer_files(folder):
        raise UserError(f"{folder} has no tokenizer: put its tokenizer.json or vocabulary there")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise UserError(f"{folder} has a tokenizer that does not load: {_told(error)}") from error
    if pads_by_end and tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@contextmanager
def _blaming_tokenizer(folder: Path) -> Iterator[None]:
    """Inside, whatever a folder's tokenizer raises becomes a UserError that names the folder."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # its files decide what it raises of a text
        raise UserError(f"the tokenizer in {folder} fails: {_told(error)}") from error


# A plan asks the same many times: a tokenizer is loaded again only if its files changed.
@lru_cache(maxsize=256)
def _check_tokens(folder: Path, hashed: str, pads_by_end: bool, vocabulary: int) -> None:
    """Raises UserError if a folder's tokenizer makes tokens that the folder's model has no embeddings of.

    One that is not there or does not load is refused where a text is read.
    """
    try:
        tokenizer = load_tokenizer(folder, pads_by_end)
    except UserError:
        return
    with _blaming_tokenizer(folder):
        beyond = {number: token for token, number in tokenizer.get_vocab().items() if number >= vocabulary}
        used = {getattr(tokenizer, f"{role}_token_id") for role in _ROLES}
        # Of other special tokens no text is made, and many a converted tokenizer has one too many.
        idle = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special} - used
    if wrong := beyond.keys() - idle:
        raise UserError(
            f"the tokenizer in {folder} has the token {shown(beyond[max(wrong)])} with the id {max(wrong)}, "
            f"but the model has {vocabulary} tokens (vocab_size in config.json), from 0 on: put the "
            "tokenizer there that it was trained with, or give it more embeddings (resize_token_embeddings)"
        )


@contextmanager
def _config(folder: Path) -> Iterator[Any]:
    """The configuration of the folder's model, or of the part of it that is a kind of ours.

    Raises UserError for one that cannot be read, and for what fails inside.
    """
    from transformers import AutoConfig

    file = folder / "config.json"
    if not file.is_file():
        raise UserError(f"{folder} is not a checkpoint folder: it has no config.json")
    settings = read_object(file)
    model_type = settings.get("model_type")
    if model_type not in tuple(MODEL_TYPES):
        raise UserError(f"{folder} holds a {shown(model_type)} model, {_nearest(model_type, settings)}")
    name, kind = MODEL_TYPES[model_type], KINDS[MODEL_TYPES[model_type]]
    for part in (settings, *(value for value in settings.values() if isinstance(value, dict))):
        check_shape(file, part)
        refuse_choices(file, part)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if model_type != name:
            config = getattr(config, kind.within[model_type])
        _check_needs(file, config, name)
        config._attn_implementation = kind.attention
        yield config
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{file} describes no {model_type} model: {_told(error)}") from error


def _nearest(model_type: Any, settings: dict[str, Any]) -> str:
    """What a refusal of a model type says beside its name: the nearest kind, by name or else by its input."""
    reads = "images" if {"image_size", "patch_size"} & settings.keys() else "texts"
    alike = [name for name, kind in KINDS.items() if kind.reads == reads]
    nearest = (*near_names(str(model_type), alike, at_most=1), alike[0])[0]
    return (
        f"which is no kind of backbone here. The nearest is '{nearest}'; there are {', '.join(MODEL_TYPES)}. "
        "docs/guides/own-backbone.md says how to add one"
    )


def _check_needs(file: Path, config: Any, name: str) -> None:
    """Raises UserError for a configuration whose features are not what the kind reads."""
    kind: Kind = KINDS[name]
    for field, wanted in kind.needs.items():
        if (value := getattr(config, field)) != wanted:
            raise UserError(
                f"{file}: {field} should be {str(wanted).lower()}, got {shown(value)}: of a {name}, the head "
                f"reads {kind.pools}"
            )


def _told(error: Exception) -> str:
    """What transformers says of a file. It checks none, so that any exception may come when one is used."""
    return f"{type(error).__name__}: {cut(' '.join(str(error).split()), 300)}"


def _checkpoint_files(folder: Path) -> list[Path]:
    """What a checkpoint is known by: its weights, and its config if it has one."""
    weights = _weight_files(folder)
    return [folder / "config.json", *weights] if (folder / "config.json").is_file() else weights


def _weight_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; `local:` takes one written by save_pretrained")
    weights = sorted(file for file in folder.glob("model*.safetensors") if file.is_file())
    if not weights and (gguf := sorted(file.name for file in folder.glob("*.gguf"))):
        raise UserError(
            f"{folder} has no model.safetensors, but {gguf[0]}: a GGUF file is first written to a folder "
            "that `local:` takes. bench.backbones.gguf_files.convert_gguf does so (docs/guides/decoders.md)"
        )
    if not weights:
        raise UserError(
            f"{folder} has no model.safetensors (pickled weights are not read: load them once with "
            f"transformers and write them with save_pretrained)"
        )
    return weights


def _model_input(folder: Path, config: Any, name: str, image_size: int | None) -> ModelInput:
    kind = KINDS[config.model_type]
    if kind.normalisation is None:
        refuse_image_size(name, image_size)
        reserved = config.pad_token_id + 1 if kind.positions_after_padding else 0
        hashed = f"sha256:{sha256_of_all(*files)}" if (files := _tokenizer_files(folder)) else ""
        _check_tokens(folder, hashed, kind.decodes, config.vocab_size)
        return TextInput(
            tokenizer_hash=hashed,
            max_tokens=config.max_position_embeddings - reserved,
            load_tokenizer=partial(load_tokenizer, folder, pads_by_end=kind.decodes),
            blaming=partial(_blaming_tokenizer, folder),
            decodes=kind.decodes,
        )
    size, patch = _side(config.image_size, name), _side(config.patch_size, name)
    return ImageInput(pixel_size(name, size, image_size, patch), *normalisation(folder, kind.normalisation))


def _tokenizer_files(folder: Path) -> list[Path]:
    names = (
        *("tokenizer.*", "vocab.*", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"),
        *("added_tokens.json", "sentencepiece.bpe.model", "spiece.model", "spm.model"),
    )
    found = [file for name in names for file in sorted(folder.glob(name))]
    vocabularies = [file for file in found if file.name.startswith(("tokenizer.", "vocab."))]
    return found if vocabularies else []


def _side(value: Any, name: str) -> int:
    sides = set(value) if isinstance(value, list | tuple) else {value}
    if len(sides) != 1:
        raise UserError(f"backbone '{name}' takes images of {shown(value)}; only square ones are supported")
    return sides.pop()


def _refuse(name: str, what: str, keys: Any, allowed: tuple[str, ...]) -> None:
    wrong = sorted(key for key in keys if not set(key.split(".")) & set(allowed))
    if wrong:
        raise UserError(f"backbone '{name}' {what}: {first_few(wrong, MOST_KEYS)}")


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, transformers prints neither its report of missing weights nor progress bars."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
