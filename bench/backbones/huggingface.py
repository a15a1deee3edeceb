"""Backbones of transformers, from a folder or the hub."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tensorbench.backbones.backbone import (
    MOST_KEYS,
    BackboneInfo,
    LoadedBackbone,
    channels,
    check_safetensors,
    check_shape,
    pixel_size,
    read_object,
    refuse_image_size,
)
from tensorbench.backbones.fused import Split, SplitHeads, transposed
from tensorbench.backbones.inputs import ImageInput, ModelInput, TextInput
from tensorbench.backbones.kinds import (
    KINDS,
    MAY_EXCEED,
    MAY_MISS,
    MODEL_TYPES,
    NO_KINDS,
    UNEMBEDDINGS,
    Normalisation,
)
from tensorbench.backbones.transformers_internals import choose_attention
from tensorbench.backbones.untrusted import refuse_choices
from tensorbench.machine.files import sha256_of_all
from tensorbench.machine.hub import SMALL_FILES, WEIGHT_FILES, snapshot
from tensorbench.methods.errors import UserError, cut, did_you_mean, first_few, shown

#: The special tokens that a tokenizer adds to texts and batches.
_ROLES = ("bos", "cls", "eos", "pad", "sep", "unk")

#: The largest factor by which a tokenizer may lengthen a text, and the most special tokens that it may add.
#: Typical tokenizers replace each character by one character and add two tokens.
MOST_GROWTH = 1000


@dataclass(frozen=True)
class FolderBackbone:
    """A backbone in a folder written by `save_pretrained` of transformers 4 or 5."""

    path: Path

    def describe(self, image_size: int | None) -> BackboneInfo:
        """Describes the backbone by its config, tokenizer and hashed weights (see `BackboneEntry`).

        Raises UserError for a folder without weights, and as `describe_folder` does.
        """
        folder = self.path.expanduser()
        weights, config = _weight_files(folder), [folder / "config.json"]
        return describe_folder(
            folder,
            name=f"local:{folder.resolve().name}",
            weights_hash=f"sha256:{sha256_of_all(*(config if config[0].is_file() else []), *weights)}",
            description="a checkpoint folder of your own; you know its origin and licence",
            image_size=image_size,
        )

    def load(self, image_size: int | None) -> LoadedBackbone:
        """Loads the weights (see `BackboneEntry`). Raises UserError as `describe` and `load_folder` do."""
        return load_folder(self.path.expanduser(), self.describe(image_size))


@dataclass(frozen=True)
class HubBackbone:
    """A backbone in a repository of the Hugging Face hub.

    `revision` is a branch, tag or commit, or None for the main branch.
    """

    repository: str
    revision: str | None = None

    def describe(self, image_size: int | None) -> BackboneInfo:
        """Describes the backbone by its config and tokenizer, which it downloads (see `BackboneEntry`).

        Raises UserError as `snapshot` and `describe_folder` do.
        """
        folder = snapshot(self.repository, self.revision, SMALL_FILES)
        return describe_folder(
            folder,
            name=self.repository,
            weights_hash=f"hub:{self.repository}@{folder.name}",
            description=f"{self.repository} of the Hugging Face hub, commit {folder.name}; see its card",
            image_size=image_size,
        )

    def load(self, image_size: int | None) -> LoadedBackbone:
        """Downloads and loads the backbone (see `BackboneEntry`).

        Raises UserError for a repository without safetensors weights, and as `describe` and `load_folder` do.
        """
        commit = snapshot(self.repository, self.revision, SMALL_FILES).name
        folder = snapshot(self.repository, commit, SMALL_FILES + WEIGHT_FILES)
        # The hub's cache may have only the files for a description, and does not tell which others exist.
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
    """Describes a checkpoint folder by its config and tokenizer, without its weights.

    Raises UserError for a config that is missing, invalid or of an unsupported model, for an image size that
    does not fit, and for a tokenizer whose tokens the model does not know.
    """
    with _config(folder) as config:
        kind = KINDS[config.model_type]
        model_input: ModelInput
        if kind.normalisation is None:
            refuse_image_size(name, image_size)
            reserved = config.pad_token_id + 1 if kind.positions_after_padding else 0
            hashed = f"sha256:{sha256_of_all(*files)}" if (files := _tokenizer_files(folder)) else ""
            _check_tokens(folder, hashed, kind.decodes, config.vocab_size)
            positions = getattr(config, "max_position_embeddings", kind.trained_tokens)
            assert positions is not None, f"{config.model_type}: KINDS has no trained_tokens"
            model_input = TextInput(
                tokenizer_hash=hashed,
                max_tokens=int(positions) - reserved,
                load_tokenizer=partial(load_tokenizer, folder, pads_by_end=kind.decodes),
                blaming=partial(_blaming_tokenizer, folder),
                decodes=kind.decodes,
                model_type=config.model_type,
            )
        else:
            size, patch = _side(config.image_size, name), _side(config.patch_size, name)
            size = pixel_size(name, size, image_size, patch)
            model_input = ImageInput(size, *normalisation(folder, kind.normalisation))
        return BackboneInfo(
            name=name,
            kind=config.model_type,
            geometry=kind.shape.geometry(config, parameters(config, model_input)),
            projections=kind.shape.projections(config),
            input=model_input,
            weights_hash=weights_hash,
            description=description,
        )


def parameters(config: Any, model_input: ModelInput) -> int:
    """Counts an encoder's parameters at the input's image size, by building it without weights."""
    import transformers

    kind = KINDS[config.model_type]
    if isinstance(model_input, ImageInput) and kind.resize:
        config = copy.deepcopy(config)
        config.image_size = model_input.size
    with torch.device("meta"):
        model = getattr(transformers, kind.model_class)(config, **kind.arguments)
    return sum(parameter.numel() for parameter in model.parameters())


def load_folder(folder: Path, info: BackboneInfo) -> LoadedBackbone:
    """Loads a checkpoint folder as described by `info`.

    Raises UserError for weights that do not load, and for missing and unexpected weights, with their names.
    transformers alone would draw missing weights at random and only warn.
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
                use_kernels=False,
                **kind.arguments,
            )
    except Exception as error:
        raise UserError(f"backbone '{info.name}' in {folder} does not load: {_summary(error)}") from error
    _refuse(info.name, "lacks weights, which would stay random", report["missing_keys"], MAY_MISS)
    may_exceed = (*MAY_EXCEED, *kind.may_exceed)
    _refuse(info.name, "has weights that no layer uses", report["unexpected_keys"], may_exceed)
    # transformers 5 keeps a half-precision checkpoint's dtype, transformers 4 does not.
    encoder.float()
    unembedding = _unembedding(folder) if kind.decodes else None
    if unembedding is not None and not torch.equal(unembedding, encoder.get_input_embeddings().weight):
        # Like transformers, use a separate output layer even if the configuration calls it tied.
        encoder.config.tie_word_embeddings = False
    return as_backbone(info, encoder, unembedding)


def _unembedding(folder: Path) -> Tensor | None:
    """Reads the output layer (vocabulary, hidden) of a language model's checkpoint. None if it has none."""
    from safetensors import safe_open

    # Like transformers, prefer model.safetensors over shards beside it.
    single = folder / "model.safetensors"
    for file in [single] if single.is_file() else _weight_files(folder):
        with safe_open(file, framework="pt") as weights:
            for name in UNEMBEDDINGS & set(weights.keys()):
                return weights.get_tensor(name).float()
    return None


def as_backbone(info: BackboneInfo, encoder: Any, unembedding: Tensor | None = None) -> LoadedBackbone:
    """Makes a backbone from a transformers model. Splits fused layers and sets the described image size."""
    kind, config = KINDS[info.kind], encoder.config
    # Pooling reads outputs by name, so the model must not return tuples.
    config.return_dict = True
    for field, value in kind.sets.items():
        setattr(config, field, value)
    if isinstance(info.input, ImageInput) and kind.resize:
        if info.input.size != _side(config.image_size, info.name):
            # It may be a list, with which transformers cannot interpolate.
            config.patch_size = encoder.embeddings.patch_size = _side(config.patch_size, info.name)
            kind.resize(encoder, info.input.size)
        config.image_size = info.input.size
    for layer in range(info.geometry.layers):
        for path in (path.format(layer=layer) for path in kind.transposed):
            encoder.set_submodule(path, transposed(encoder.get_submodule(path)))
        for template, parts in kind.fused.items():
            path = template.format(layer=layer)
            fused = encoder.get_submodule(path)
            widths = [info.geometry.shape(part)[0] for part in parts]
            by_head = kind.fused_by_head
            split = SplitHeads(fused, info.geometry.head_size) if by_head else Split(fused, parts, widths)
            encoder.set_submodule(path, split)
    return LoadedBackbone(info, encoder, kind.pool, kind.make_head(config), kind.layouts, unembedding)


def load_tokenizer(folder: Path, pads_by_end: bool = False) -> Any:
    """Loads the tokenizer of a checkpoint folder.

    If `pads_by_end`, a tokenizer without a padding token, which is common for decoders, pads with its end
    token. This has no effect on results, since padding is masked. Raises UserError if there is no tokenizer,
    if it does not load, and if it may lengthen a text too much or draws tokens at random.
    """
    from transformers import AutoTokenizer

    # Without these files, transformers 5 makes an empty tokenizer whose every word is unknown.
    if not _tokenizer_files(folder):
        raise UserError(f"{folder} has no tokenizer: put its tokenizer.json or vocabulary there")
    with _blaming_tokenizer(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        steps = (getattr(backend, name, None) for name in ("normalizer", "decoder"))
        added = max(map(tokenizer.num_special_tokens_to_add, (False, True)))
        longer = (_growth(json.loads(step.__getstate__())) for step in steps if step is not None)
        if max([added, *longer]) > MOST_GROWTH:
            raise UserError(
                f"the tokenizer in {folder} may make a text more than {MOST_GROWTH:,} times as long, or add "
                "more than so many tokens to it"
            )
        if dropout := getattr(getattr(backend, "model", None), "dropout", None):
            raise UserError(
                f"the tokenizer in {folder} draws tokens at random (dropout {dropout:g}); set it to null"
            )
    if pads_by_end and tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@contextmanager
def _blaming_tokenizer(folder: Path) -> Iterator[None]:
    """Converts errors that a folder's tokenizer raises in this context to UserErrors that name the folder."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except BaseException as error:  # the kind of error depends on the tokenizer's files
        # An error in Rust, such as a regular expression that backtracks without end, is not an Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"the tokenizer in {folder} fails: {_summary(error)}") from error


def _growth(step: Any) -> int:
    """Returns the largest factor by which a tokenizer's replacements may lengthen a text.

    `step` is the JSON of a step of the tokenizer, or a part of this JSON.
    """
    if isinstance(step, list):
        return math.prod(map(_growth, step))
    if not isinstance(step, dict):
        return 1
    inserted = len(str(step.get("content", step.get("prepend", ""))))
    return max(1, inserted) * _growth([*step.values()])


# Cached, since a plan checks the same tokenizer many times; `hashed` changes with its files.
@lru_cache(maxsize=256)
def _check_tokens(folder: Path, hashed: str, pads_by_end: bool, vocabulary: int) -> None:
    """Raises UserError if a folder's tokenizer makes tokens for which its model has no embeddings.

    `vocabulary` is the number of embeddings, and `hashed` the hash of the tokenizer's files. For
    `pads_by_end` see `load_tokenizer`. A missing or broken tokenizer passes this check. It raises UserError
    later, when texts are read.
    """
    try:
        tokenizer = load_tokenizer(folder, pads_by_end)
    except UserError:
        return
    with _blaming_tokenizer(folder):
        beyond = {number: token for token, number in tokenizer.get_vocab().items() if number >= vocabulary}
        used = {getattr(tokenizer, f"{role}_token_id") for role in _ROLES}
        # Other special tokens never occur in texts, and many converted tokenizers have one too many.
        idle = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special} - used
    if wrong := beyond.keys() - idle:
        raise UserError(
            f"the tokenizer in {folder} has the token {shown(beyond[max(wrong)])} with the id {max(wrong)}, "
            f"but the model has {vocabulary} tokens (vocab_size in config.json), from 0 on: put the "
            "tokenizer there that it was trained with, or give it more embeddings (resize_token_embeddings)"
        )


@contextmanager
def _config(folder: Path) -> Iterator[Any]:
    """Yields the configuration of a folder's model.

    For a composite model such as CLIP, yields the configuration of the encoder that is supported. Raises
    UserError for a configuration that cannot be read, and for any error raised in this context.
    """
    from transformers import AutoConfig

    file = folder / "config.json"
    if not file.is_file():
        raise UserError(f"{folder} is not a checkpoint folder: it has no config.json")
    settings = read_object(file)
    model_type = settings.get("model_type")
    if model_type not in tuple(MODEL_TYPES):
        reason = NO_KINDS.get(str(model_type).removesuffix("v2"))
        hint = did_you_mean(str(model_type), MODEL_TYPES)
        known = f"{hint and hint + ' '}there are {', '.join(MODEL_TYPES)}"
        raise UserError(
            f"{folder} holds a {shown(model_type)} model, which is no kind of backbone here"
            + (f": {reason}" if reason else f"; {known}. docs/guides/own-backbone.md says how to add one")
        )
    name, kind = MODEL_TYPES[model_type], KINDS[MODEL_TYPES[model_type]]
    for part in (settings, *(value for value in settings.values() if isinstance(value, dict))):
        check_shape(file, part)
        refuse_choices(file, part)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if model_type != name:
            config = getattr(config, kind.within[model_type])
        for field, required in kind.needs.items():
            if (value := getattr(config, field)) != required:
                raise UserError(
                    f"{file}: {field} should be {str(required).lower()}, got {shown(value)}: the head of a "
                    f"{name} reads {kind.pools}"
                )
        choose_attention(config, kind.attention)
        yield config
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{file} does not describe a {model_type} model: {_summary(error)}") from error


def _summary(error: BaseException) -> str:
    """Returns the type and message of an error in one short line."""
    return f"{type(error).__name__}: {cut(' '.join(str(error).split()), 300)}"


def _weight_files(folder: Path) -> list[Path]:
    gguf = [folder] if folder.suffix == ".gguf" else sorted(folder.glob("*.gguf"))
    weights = sorted(file for file in folder.glob("model*.safetensors") if file.is_file())
    if not weights and gguf:
        raise UserError(
            f"{gguf[0]} is a GGUF file, and `local:` takes a folder with model.safetensors. Write one with "
            '`python -c "from pathlib import Path; from tensorbench.backbones.gguf_files import convert_gguf;'
            f" convert_gguf(Path('{gguf[0]}'), Path('FOLDER'))\"` (docs/guides/decoders.md)"
        )
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; `local:` takes one written by save_pretrained")
    if not weights:
        raise UserError(
            f"{folder} has no model.safetensors (pickled weights are not read: load them once with "
            f"transformers and write them with save_pretrained)"
        )
    return weights


def _tokenizer_files(folder: Path) -> list[Path]:
    names = (
        *("tokenizer.*", "vocab.*", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"),
        *("added_tokens.json", "sentencepiece.bpe.model", "spiece.model", "spm.model"),
    )
    files = [file for name in names for file in sorted(folder.glob(name))]
    vocabularies = [file for file in files if file.name.startswith(("tokenizer.", "vocab."))]
    return files if vocabularies else []


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
    """Suppresses transformers' report of missing weights and its progress bars."""
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


def normalisation(folder: Path, usual: Normalisation) -> Normalisation:
    """Reads the mean and standard deviation of pixels from a folder's preprocessing file.

    Returns `usual` if there is no such file. Raises UserError for a file that does not rescale pixels to the
    range from 0 to 1, and for a mean or a standard deviation that is not three numbers.
    """
    # For models with a tokenizer (CLIP), transformers 5 writes one file for tokenizer and images.
    file = folder / "processor_config.json"
    settings = read_object(file).get("image_processor") if file.is_file() else None
    if not isinstance(settings, dict):
        file = folder / "preprocessor_config.json"
        if not file.is_file():
            return usual
        settings = read_object(file)
    if settings.get("do_rescale") is False:
        raise UserError(
            f"{file}: do_rescale is false, which is for pixels from 0 to 255; here they are from 0 to 1"
        )
    factor = settings.get("rescale_factor", 1 / 255)
    if not isinstance(factor, int | float) or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        raise UserError(
            f"{file}: rescale_factor should be 1/255, so that pixels are from 0 to 1 (got {shown(factor)})"
        )
    if settings.get("do_normalize") is False:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    numbers = []
    for field, default in zip(("image_mean", "image_std"), usual, strict=True):
        values = settings.get(field, default)
        try:
            numbers.append(channels(values))
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"{file}: {field} should be three numbers, for red, green and blue (got {shown(values)})"
            ) from error
    mean, std = numbers
    return mean, std
