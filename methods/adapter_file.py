"""Reads and writes adapter files, which hold adapter, head, and a description of method and backbone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tensorbench.methods.errors import UserError, cut, first_few, shown

#: The name of an adapter file, and the key in its metadata under which the description is stored as JSON.
FILE, KEY = "adapter.safetensors", "tensorbench"


def write(folder: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Writes tensors and description to an adapter file in `folder`, which is created if it is missing.

    Raises UserError if the file cannot be written.
    """
    file, unfinished = folder / FILE, folder / f".{FILE}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(dict(tensors), unfinished, {"format": "pt", KEY: json.dumps(description)})
        unfinished.replace(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be written: {error}") from error


def read(folder: Path, description: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns the tensors of the adapter file in `folder`.

    Raises UserError if the file is missing, corrupt or not from `save_adapter`, or if its description is not
    `description`.
    """
    file = folder / FILE
    if not file.is_file():
        raise UserError(f"there is no {file}, which save_adapter writes")
    try:
        with safe_open(file, "pt") as opened:
            stored = json.loads((opened.metadata() or {}).get(KEY, "null"))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read, it is corrupt: {error}") from error
    if not isinstance(stored, dict):
        raise UserError(f"{file} was not written by save_adapter: it does not say which method it is of")
    for what in description:
        # Files of earlier versions with a head alone say nothing about weights.
        if stored.get(what) != description[what] and (what != "weights" or stored.get(what)):
            raise UserError(_mismatch(file, what, stored.get(what), description[what]))
    return tensors


def _mismatch(file: Path, what: str, stored: Any, own: Any) -> str:
    if what == "method" and isinstance(stored, dict):
        differing = [name for name in {**own, **stored} if stored.get(name) != own.get(name)]
        sides = (
            first_few([f"{cut(name)} {shown(side[name])}" for name in differing if name in side], 5)
            for side in (stored, own)
        )
        return f"{file} holds another method: {'; the model is wrapped with '.join(sides)}"
    if what == "weights":
        return f"{file} was trained on another backbone: of the same shape, but with other weights"
    return f"{file} was trained on another backbone: {shown(stored)}; this one is {shown(own)}"


def check_fit(part: str, stored: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Raises UserError unless the stored tensors fit a part's own tensors.

    They fit if names and shapes are equal, and if no integers are stored for floating-point numbers or vice
    versa. `part` is the part's name in the message.
    """
    wrong = [shown(name) for name in sorted(stored.keys() ^ own.keys())] or [
        f"{name} {_form(stored[name])} for {_form(own[name])}"
        for name in own
        if stored[name].shape != own[name].shape
        or stored[name].is_floating_point() != own[name].is_floating_point()
    ]
    if wrong:
        raise UserError(f"the stored {part} does not fit: {first_few(wrong, 5)}")


def _form(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"


def fingerprint(weight: Tensor) -> str:
    """Returns a hash of a frozen weight, which is the same whether it was loaded in float32 or bfloat16."""
    rounded = weight.detach().to("cpu", torch.bfloat16).contiguous()
    return sha256(rounded.view(torch.uint8).numpy().tobytes()).hexdigest()
