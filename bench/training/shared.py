"""One frozen encoder through which the batches of several trials go together, each with its own adapter."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from baselines.peft_adapter import plain_lora
from bench.backbones import LoadedBackbone
from bench.backbones.base import Classifier
from bench.training.seeding import Streams
from methods.lowrank import AdaptedLinear
from methods.lowrank.contracted import Diagonal, Matrix, Middle

#: What turns an encoder and a batch to features, or to the answers of a language model.
Reader = Callable[..., Tensor]

#: The functions by which backbones drop entries. Of each its probability: name, place, and what it is unsaid.
DROPPING: dict[Any, tuple[str, int, float]] = {
    F.dropout: ("p", 1, 0.5),
    F.scaled_dot_product_attention: ("dropout_p", 4, 0.0),
}


class View(LoadedBackbone):
    """A backbone with modules of its own around the weights of another one.

    It has parameters of its own too, since freezing those of one view would freeze those of all; the memory
    is shared. `read`, where it is given, takes the place of the encoder: it has the reader and the batch.
    """

    def __init__(
        self, backbone: LoadedBackbone, read: Callable[[Reader, dict[str, Tensor]], Tensor] | None = None
    ) -> None:
        vars(self).update(vars(backbone))
        encoder = backbone.module.encoder
        known: dict[int, Any] = {id(p): nn.Parameter(p.data, False) for p in encoder.parameters()}
        known |= {id(buffer): buffer for buffer in encoder.buffers()}
        self._module = _Classifier(copy.deepcopy(encoder, known), backbone.module.pool, read).eval()


class _Classifier(Classifier):
    def __init__(
        self,
        encoder: nn.Module,
        pool: Reader,
        read: Callable[[Reader, dict[str, Tensor]], Tensor] | None,
    ) -> None:
        super().__init__(encoder, pool, nn.Identity())
        self._read = read

    def forward(self, **batch: Tensor) -> Tensor:
        if self._read is None:
            return super().forward(**batch)
        if self.answers is not None:
            return self._read(self.answers, batch)
        logits: Tensor = self.head(self._read(self.pool, batch))
        return logits


@dataclass
class Share:
    """What one trial has of a forward: its batch, its layers by the path of their site, its streams."""

    batch: Mapping[str, Tensor]
    layers: Mapping[str, nn.Module]
    streams: Streams
    #: Whether its layers draw from torch's streams.
    draws: bool

    def __len__(self) -> int:
        return len(next(iter(self.batch.values())))


class SharedEncoder:
    """The encoder of a backbone with rows of several trials in it."""

    def __init__(self, backbone: LoadedBackbone) -> None:
        self.backbone = backbone
        self.view = View(backbone)
        self.sites = [backbone.path(site) for site in backbone.geometry.sites(backbone.projections)]
        for path in self.sites:
            module = self.view.module
            module.set_submodule(path, _Rows(path, module.get_submodule(path), self))
        self._streams = Streams(next(backbone.module.parameters()).device)
        self.shares: Sequence[Share] = ()
        #: Whether what runs is the backbone, and no adapter, which has the rows of one trial already.
        self.of_backbone = True
        self._latest: tuple[object, Tensor, Any] | None = None

    def layers(self, view: LoadedBackbone) -> dict[str, nn.Module]:
        """A view's own layers, by the path of their site."""
        return {path: view.module.get_submodule(path) for path in self.sites}

    def refusal(self, view: LoadedBackbone) -> str:
        """Why a view's adapter cannot be one of several; empty where it can."""
        if self._outside(view) != self._outside(self.backbone):
            return "its method changes the backbone elsewhere than at the linear layers of its sites"
        weights = {parameter.data_ptr() for parameter in self.backbone.module.encoder.parameters()}
        trained = (p.data_ptr() for p in view.module.encoder.parameters() if p.requires_grad)
        return "its method trains the backbone's own weights" if weights.intersection(trained) else ""

    def _outside(self, backbone: LoadedBackbone) -> tuple[Any, ...]:
        """Modules and weights of an encoder that are at no site."""
        sites = tuple(f"{path}." for path in self.sites)

        def at_site(name: str) -> bool:
            return f"{name}.".startswith(sites)

        encoder = backbone.module.encoder
        modules = [
            (
                name,
                type(part),
                len(part._forward_hooks),
                len(part._forward_pre_hooks),
                "forward" in vars(part),
            )
            for name, part in encoder.named_modules(prefix="encoder")
            if not at_site(name)
        ]
        weights = [
            (name, weight.data_ptr())
            for name, weight in encoder.named_parameters(prefix="encoder")
            if not at_site(name)
        ]
        return modules, weights

    def read(self, reader: Reader, shares: Sequence[Share], *, learns: bool) -> Tensor:
        """What the reader makes of the batches, one below the other; with `learns` as in training.

        Raises RuntimeError for a backbone that draws in a way in which trials cannot each draw their own.
        """
        self.shares = shares
        batch = {name: torch.cat([share.batch[name] for share in shares]) for name in shares[0].batch}
        before = self._streams.now()
        self.view.module.train(learns)
        dropping: AbstractContextManager[Any] = _OwnMasks(self) if learns else nullcontext()
        try:
            with dropping:
                features = reader(self.view.module.encoder, **batch)
        finally:
            self.shares, self._latest = (), None
        if not all(map(torch.equal, before, self._streams.now())):
            raise RuntimeError("the backbone draws random numbers in which trials cannot each have their own")
        return features

    def once(self, x: Tensor, key: object, make: Callable[[], Any]) -> Any:
        """What `make` makes of an activation, once for all sites that read it one after the other."""
        if self._latest is None or self._latest[1] is not x or self._latest[0] != key:
            self._latest = (key, x, make())
        return self._latest[2]

    def parts(self, whole: Tensor) -> list[slice]:
        """The rows of each trial in an activation, which has a number of rows for each example."""
        sizes = list(map(len, self.shares))
        rows, left = divmod(len(whole), sum(sizes))
        if left:
            raise RuntimeError(f"{len(whole)} rows of {sum(sizes)} examples cannot be told apart by trial")
        return [slice(*ends) for ends in pairwise(accumulate((rows * size for size in sizes), initial=0))]

    def by_trial(self, call: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Calls a function for each trial, with that trial's rows of all tensors and with its streams."""
        whole = next(value for value in chain(args, kwargs.values()) if isinstance(value, Tensor))

        def cut(value: Any, rows: slice) -> Any:
            split = isinstance(value, Tensor) and value.dim() == whole.dim() and len(value) == len(whole)
            return value[rows] if split else value

        outputs = []
        for share, rows in zip(self.shares, self.parts(whole), strict=True):
            own = {name: cut(value, rows) for name, value in kwargs.items()}
            with share.streams.lent():
                outputs.append(call(*(cut(value, rows) for value in args), **own))
        return torch.cat(outputs)


class _OwnMasks(TorchFunctionMode):
    """Where the backbone drops entries, each trial's rows have a mask of that trial's stream."""

    def __init__(self, shared: SharedEncoder) -> None:
        super().__init__()
        self._shared = shared

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in DROPPING and self._shared.of_backbone and _drops(func, args, kwargs):
            return self._shared.by_trial(func, *args, **kwargs)
        return func(*args, **kwargs)


def _drops(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    name, place, unsaid = DROPPING[func]
    probability = args[place] if len(args) > place else kwargs.get(name, unsaid)
    training = args[2] if len(args) > 2 else kwargs.get("training", True)
    return bool(probability) and (func is not F.dropout or training)


class _Rows(nn.Module):
    """A site of a shared encoder: the rows of each trial go through that trial's own layer."""

    def __init__(self, path: str, base: nn.Module, shared: SharedEncoder) -> None:
        super().__init__()
        self.path, self.base, self.shared = path, base, shared

    def forward(self, x: Tensor) -> Tensor:
        layers = [share.layers[self.path] for share in self.shared.shares]
        if all(_untouched(layer, self.base) for layer in layers):
            y: Tensor = self.base(x)
            return y
        stacked = self._stacked(x, [_pair(layer) for layer in layers])
        return self._one_by_one(x, layers) if stacked is None else stacked

    def _one_by_one(self, x: Tensor, layers: Sequence[nn.Module]) -> Tensor:
        # Sites that read one activation find the same parts of it, as they would alone.
        parts = self.shared.once(x, "parts", lambda: [x[rows] for rows in self.shared.parts(x)])
        outputs = []
        self.shared.of_backbone = False
        try:
            for share, layer, part in zip(self.shared.shares, layers, parts, strict=True):
                with share.streams.lent() if share.draws and self.training else nullcontext():
                    outputs.append(layer(part))
        finally:
            self.shared.of_backbone = True
        return torch.cat(outputs)

    def _stacked(self, x: Tensor, pairs: Sequence[_Pair | None]) -> Tensor | None:
        """The layer once for all rows, and the low-rank updates by batched products over the trials.

        None where layers are others or of several kinds, or the trials differ in how many rows they have.
        """
        known = [pair for pair in pairs if pair is not None]
        kinds = {(type(pair.middle), pair.bias is None) for pair in known}
        if len(known) < len(pairs) or len(kinds) > 1 or len(set(map(len, self.shared.shares))) > 1:
            return None
        y: Tensor = self.base(x)
        narrow = self._narrow(x, known)
        if isinstance(known[0].middle, Matrix):
            narrow = narrow @ _stack([pair.middle.entries for pair in known]).mT  # type: ignore[union-attr]
        elif isinstance(known[0].middle, Diagonal):
            narrow = narrow * _stack([pair.middle.entries for pair in known])  # type: ignore[union-attr]
        ups = _stack([pair.up for pair in known]).mT
        rows = y.reshape(len(known), -1, y.shape[-1])
        updated = torch.baddbmm(rows, narrow.to(rows.dtype), ups.to(rows.dtype))
        if known[0].bias is not None:
            updated = updated + torch.stack([pair.bias for pair in known]).unsqueeze(1)  # type: ignore[misc]
        return updated.view(y.shape)

    def _narrow(self, x: Tensor, pairs: Sequence[_Pair]) -> Tensor:
        """The projections (trials, rows, r) of an activation by the downs."""

        def project(downs: Sequence[Tensor]) -> Tensor:
            # A down that is wider than what it reads takes its first columns.
            rows = x.reshape(len(pairs), -1, x.shape[-1])
            return rows @ _stack(downs)[..., : x.shape[-1]].mT

        if len({(pair.widths, pair.position) for pair in pairs}) > 1:
            return project([pair.down for pair in pairs])
        key = tuple(id(pair.downs) for pair in pairs)
        narrow: Tensor = self.shared.once(x, key, lambda: project([pair.downs for pair in pairs]))
        return narrow.split(pairs[0].widths, -1)[pairs[0].position]


def _untouched(layer: nn.Module, base: Any) -> bool:
    """Whether a layer computes just what its base does, of which it has the weights."""
    if type(layer) is not nn.Linear or layer._forward_hooks or layer._forward_pre_hooks:
        return False
    weights = [
        [None if weight is None else weight.data_ptr() for weight in (one.weight, one.bias)]
        for one in (layer, base)
    ]
    return "forward" not in vars(layer) and weights[0] == weights[1]


class _Pair(NamedTuple):
    """What a layer adds: up · middle · down, and a bias."""

    #: The downs of all sites that read the same activation, one below the other, how wide each is, and which
    #: of them is this one's.
    downs: Tensor
    widths: tuple[int, ...]
    position: int
    middle: Middle | None
    up: Tensor
    bias: Tensor | None = None

    @property
    def down(self) -> Tensor:
        return self.downs.split(self.widths)[self.position]


def _pair(layer: nn.Module) -> _Pair | None:
    """What a layer adds to its base; None where that is no single pair, or it drops entries."""
    if type(layer) is AdaptedLinear:
        shared = layer.shared
        sliced = layer.output_slices > 1 or shared.input_slices > 1
        if layer.dropout or shared.dropout or sliced or layer.up is None or shared.down is None:
            return None
        up, widths = layer.up[: layer.base.out_features], tuple(shared.widths)
        return _Pair(shared.down, widths, layer.position, layer.middle, up, layer.bias_update)
    if (found := plain_lora(layer)) is None:
        return None
    down, up = found
    return _Pair(down, (len(down),), 0, None, up)


def _stack(factors: Sequence[Tensor]) -> Tensor:
    """One below the other, smaller ones filled up with zeros."""
    rows, columns = (max(factor.shape[axis] for factor in factors) for axis in (0, 1))
    return torch.stack(
        [F.pad(one, (0, columns - one.shape[1], 0, rows - one.shape[0])) for one in factors]
        if any(one.shape != (rows, columns) for one in factors)
        else list(factors)
    )
