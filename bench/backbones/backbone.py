"""The description and the classifier of a backbone, common to all libraries."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tensorbench.backbones.inputs import MAX_PIXELS, ModelInput
from tensorbench.methods.backbone import Geometry, Site
from tensorbench.methods.errors import UserError, shown
from tensorbench.methods.quantised import Quantisation, QuantisedLinear
from tensorbench.methods.torch_internals import hook_count

#: The standard deviation of a fresh head's weights. Biases start at zero.
HEAD_STD = 0.02

#: The largest number of weights that a message names.
MOST_KEYS = 6

#: The largest number of tensors in a checkpoint, and of entries in its configuration.
MOST_TENSORS = MOST_ENTRIES = 100_000

#: The number of classes of the head between loading and the first `reset`.
INITIAL_CLASSES = 2

#: The largest accepted sizes in a model's configuration, by field names of transformers and timm.
LARGEST = {
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layers", "n_layer", "depth"), 1000),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_heads", "n_head", "num_heads"), 1024),
    **dict.fromkeys(("hidden_size", "embedding_size", "dim", "embed_dim", "d_model", "d_kv"), 2**16),
    **dict.fromkeys(("intermediate_size", "hidden_dim", "d_ff", "max_position_embeddings"), 2**20),
    "vocab_size": 10**7,
    # transformers' configuration builds a dictionary with this many names.
    "num_labels": 10**5,
    "mlp_ratio": 64,
    **dict.fromkeys(("image_size", "img_size", "patch_size"), MAX_PIXELS),
}

#: The number of entries of a tensor that a fingerprint reads at once, so that their int64 copy takes 2 MiB.
_CHUNK = 1 << 18
#: The integer type in which a fingerprint reads a tensor's bits, by the number of bytes per entry.
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

#: The kind of a backbone, one of `tensorbench.backbones.kinds.NAMES`.
BackboneKind = str


@dataclass(frozen=True)
class BackboneInfo:
    """The description of a backbone, available before its weights are loaded.

    Backbones with equal `weights_hash` compute the same outputs: it identifies the weights and their
    conversion. `description` states origin and licence in words, as far as they are known.
    """

    name: str
    kind: BackboneKind
    geometry: Geometry
    projections: tuple[str, ...]
    input: ModelInput
    weights_hash: str
    description: str


class BackboneEntry(Protocol):
    """A source from which one backbone can be described and loaded.

    `image_size` is the side in pixels that a suite requests, or None for the backbone's own. Both methods
    raise UserError for an unsupported size. Text backbones accept only None.
    """

    def describe(self, image_size: int | None) -> BackboneInfo:
        """Describes the backbone without loading its weights."""
        ...

    def load(self, image_size: int | None) -> LoadedBackbone:
        """Loads the backbone on the CPU, frozen and in eval mode."""
        ...


class Classifier(nn.Module):
    """Encoder, pooling and head. `module(**batch)` returns logits of shape (batch, classes).

    A batch of texts has `input_ids` and `attention_mask` (batch, tokens). If the tokenizer makes
    `token_type_ids`, a batch of pairs of texts has them too. A batch of images has normalised `pixel_values`
    (batch, 3, size, size). `pool(encoder, **batch)` runs the encoder and returns features (batch, hidden).
    """

    def __init__(self, encoder: nn.Module, pool: Callable[..., Tensor], head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.pool, self.head = encoder, pool, head
        #: Replaces pooling and head of a language model that answers in words. None for other models.
        self.answers: Callable[..., Tensor] | None = None

    def forward(self, **batch: Tensor) -> Tensor:
        if self.answers is not None:
            return self.answers(self.encoder, **batch)
        return self.head(self.pool(self.encoder, **batch))


class FittedHead(nn.Linear):
    """A linear head that computes logits in the precision of its weights, even under autocast.

    The weights also standardise the features, so rounding them would distort the logits.
    """

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(features.to(self.weight.dtype))


class LoadedBackbone:
    """A frozen pretrained classifier: implements `tensorbench.methods.backbone.Backbone`.

    `paths` are candidate layouts of the encoder. Each maps projections to dotted paths with `{layer}`, such
    as `layers.{layer}.mlp.fc1`. Raises UserError if no layout fits all layers of the described geometry, or
    if the encoder's number of parameters differs from the description.
    """

    def __init__(
        self,
        info: BackboneInfo,
        encoder: nn.Module,
        pool: Callable[..., Tensor],
        make_head: Callable[[int], nn.Module],
        paths: Sequence[Mapping[str, str]],
        unembedding: Tensor | None = None,
    ) -> None:
        self.info = info
        self._make_head = make_head
        self._paths = locate(info.name, info.geometry, info.projections, encoder, paths)
        counted, real = info.geometry.encoder, sum(p.numel() for p in encoder.parameters())
        if counted is not None and counted != real:
            raise UserError(f"backbone '{info.name}' has {real:,} encoder parameters, {counted:,} described")
        encoder.requires_grad_(False)
        #: The weight (vocabulary, hidden) of a language model's output layer. None for other models, and for
        #: checkpoints without this weight. Most checkpoints whose output layer is tied to the input
        #: embeddings lack it.
        self.unembedding = unembedding
        self._module = Classifier(encoder, pool, nn.Identity())
        self._module.eval()
        self.reset(INITIAL_CLASSES, torch.Generator().manual_seed(0))

    @property
    def geometry(self) -> Geometry:
        return self.info.geometry

    @property
    def module(self) -> Classifier:
        return self._module

    @property
    def head(self) -> nn.Module:
        return self._module.head

    @property
    def encoder(self) -> nn.Module:
        return self._module.encoder

    @property
    def projections(self) -> tuple[str, ...]:
        return self.info.projections

    def path(self, site: Site) -> str:
        """Returns the dotted path of a site's linear layer in `module`.

        Raises UserError for an unknown site.
        """
        if site not in self._paths:
            raise UserError(f"backbone '{self.info.name}' has no site {site}")
        return self._paths[site]

    def reset(self, classes: int, generator: torch.Generator, *, fitted: bool = False) -> None:
        """Puts a fresh head for `classes` classes on the backbone.

        Weights of its linear layers are drawn by `generator` from a normal distribution with standard
        deviation 0.02, in float32. Biases are zero. If `fitted`, the head is one linear layer on the pooled
        features, a `FittedHead`. An earlier `Classifier.answers` is removed. Raises UserError for fewer than
        one class.
        """
        if classes < 1:
            raise UserError(f"a head needs at least 1 class, got {classes}")
        # On the meta device, torch's initialisation does not draw from the global generator.
        with torch.device("meta"):
            head = self._make_head(classes)
            if fitted:
                widths = (layer.in_features for layer in head.modules() if isinstance(layer, nn.Linear))
                head = FittedHead(next(widths, self.geometry.hidden), classes)
        head.to_empty(device=generator.device)
        with torch.no_grad():
            for layer in head.modules():
                if isinstance(layer, nn.Linear):
                    layer.weight.normal_(0.0, HEAD_STD, generator=generator)
                    if layer.bias is not None:
                        layer.bias.zero_()
        device = next(self._module.encoder.parameters()).device
        self._module.answers = None
        self._module.head = head.to(device).train(self._module.training)

    def round(self) -> None:
        """Converts the encoder's parameters and the unembedding to bfloat16.

        Buffers keep their precision: rounded rotary angles would change positions.
        """
        for parameter in self._module.encoder.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
        if self.unembedding is not None:
            self.unembedding = self.unembedding.to(torch.bfloat16)

    def quantise(self, quantisation: Quantisation) -> None:
        """Converts the weights of all sites to int8 or nf4. Raises UserError without bitsandbytes."""
        for path in self._paths.values():
            layer = self._module.get_submodule(path)
            assert isinstance(layer, nn.Linear)
            self._module.set_submodule(path, QuantisedLinear(layer, quantisation))
        # Copies, since a view of the checkpoint's file would keep all of it in memory.
        for parameter in self._module.encoder.parameters():
            parameter.data = parameter.data.clone()
        if self.unembedding is not None:
            self.unembedding = self.unembedding.clone()

    def fingerprint(self) -> str:
        """Returns a hash of the encoder: of its tensors (names, shapes, dtypes, bits) and its modules.

        The hash covers each module's name, class, number of forward hooks, and whether the instance overrides
        `forward`. So it reveals leftovers of an adapter even if no weight changed. It does not cover the head
        and the device. Each tensor is reduced to a number on its device, so little is transferred.
        """
        digest = hashlib.sha256(" ".join(name for name, _ in self._module.named_children()).encode())
        modules = [("", self._module), *self._module.encoder.named_modules(prefix="encoder")]
        for name, module in modules:
            kind = type(module)
            patched = "forward" in vars(module)
            digest.update(
                f"{name} {kind.__module__}.{kind.__qualname__} {hook_count(module)} {patched}\n".encode()
            )
        encoder = self._module.encoder
        tensors = [*encoder.named_parameters(), *encoder.named_buffers()]
        sums: dict[torch.device, list[Tensor]] = {}
        # Odd, so that multiplying modulo 2^64 is invertible: the change of any single element is noticed.
        weights = {
            device: torch.arange(_CHUNK, device=device, dtype=torch.int64) * 0x9E3779B97F4A7C2 + 1
            for device in {tensor.device for _, tensor in tensors}
        }
        for name, tensor in tensors:
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            # int64 arithmetic wraps modulo 2^64, is exact, and does not depend on the order of summation.
            bits = tensor.detach().contiguous().flatten().view(_INTEGERS[tensor.element_size()])
            total = torch.zeros((), dtype=torch.int64, device=tensor.device)
            for chunk in bits.split(_CHUNK):
                weighted = chunk.to(torch.int64) * weights[tensor.device][: len(chunk)]
                total = total * 0x2545F4914F6CDD1D + weighted.sum()
            sums.setdefault(tensor.device, []).append(total)
        for values in sums.values():
            digest.update(repr(torch.stack(values).tolist()).encode())
        return digest.hexdigest()


def pixel_size(name: str, native: int, requested: int | None, patch: int) -> int:
    """Returns the requested image size in pixels, or the native one if none is requested.

    Raises UserError for a requested size that is not a multiple of the patch size.
    """
    if requested is not None and requested % patch:
        lower = max(requested // patch, 1) * patch
        raise UserError(
            f"backbone '{name}': image_size {requested} is not a multiple of its patch size {patch}; "
            f"near are {lower} and {lower + patch}"
        )
    return native if requested is None else requested


def refuse_image_size(name: str, requested: int | None) -> None:
    """Raises UserError if an image size is requested of a text backbone."""
    if requested is not None:
        raise UserError(f"backbone '{name}' reads text and takes no image_size")


def channels(values: Sequence[float]) -> tuple[float, float, float]:
    """Converts the values for red, green and blue to floats. Raises ValueError unless there are three."""
    red, green, blue = values
    return float(red), float(green), float(blue)


def read_object(file: Path) -> dict[str, Any]:
    """Reads a JSON object. Raises UserError naming the file if it contains none."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read: {error}; it should contain a JSON object") from error
    if not isinstance(values, dict):
        raise UserError(f"{file} should contain a JSON object, got {shown(values)}")
    return values


def check_shape(file: Path, values: Mapping[str, Any]) -> None:
    """Raises UserError for an implausible size in a model's configuration, and for too many entries.

    Otherwise a model of ten million layers would be built before its missing weights are noticed.
    """
    if len(values) > MOST_ENTRIES:
        raise UserError(f"{file} has {len(values):,} entries; accepted are at most {MOST_ENTRIES:,}")
    for name, most in LARGEST.items():
        value = values.get(name)
        for size in value if isinstance(value, list) else (value,):
            if isinstance(size, bool) or (isinstance(size, int | float) and not 1 <= size <= most):
                raise UserError(f"{file}: {name} should be a number from 1 to {most:,} (got {shown(value)})")


def check_safetensors(name: str, *files: Path) -> None:
    """Raises UserError for a file that is incomplete or not safetensors, and for too many tensors.

    Reads no weights.
    """
    from safetensors import SafetensorError, safe_open

    for file in files:
        try:
            with safe_open(file, framework="pt") as weights:
                tensors = len(weights.keys())
            if tensors > MOST_TENSORS:
                raise UserError(
                    f"backbone '{name}': {file} has {tensors:,} tensors; accepted are at most "
                    f"{MOST_TENSORS:,}"
                )
        except (SafetensorError, OSError) as error:
            raise UserError(f"backbone '{name}': {file} is not a safetensors file: {error}") from error


def locate(
    name: str,
    geometry: Geometry,
    projections: Sequence[str],
    encoder: nn.Module,
    layouts: Sequence[Mapping[str, str]],
    prefix: str = "encoder",
) -> dict[Site, str]:
    """Returns the dotted path of every site, by the first layout that fits the encoder.

    A layout fits if every site is a Linear of the geometry's shape. Paths begin with `prefix`, which is the
    encoder's own path in the module around it. Raises UserError if no layout fits.
    """
    faults = []
    for layout in layouts:
        paths = {}
        for layer in range(geometry.layers):
            for projection in projections:
                path = layout[projection].format(layer=layer)
                fault = _fault(encoder, path, geometry.shape(projection))
                if fault:
                    faults.append(fault)
                    break
                paths[Site(layer, projection)] = f"{prefix}.{path}"
        if len(paths) == geometry.layers * len(projections):
            return paths
    raise UserError(
        f"backbone '{name}' is not laid out as {', '.join(projections)} in "
        f"{geometry.layers} layers ({geometry}): {'; '.join(faults[:4])}"
    )


def _fault(encoder: nn.Module, path: str, shape: tuple[int, int]) -> str | None:
    try:
        module = encoder.get_submodule(path)
    except AttributeError:
        return f"no module {path}"
    if not isinstance(module, nn.Linear):
        return f"{path} is a {type(module).__name__}, not a Linear"
    if tuple(module.weight.shape) != shape:
        return f"{path} has shape {tuple(module.weight.shape)}, expected {shape}"
    return None
