"""Converts files of predictions to frames and back, so that tests can change them by column."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import load, save

from tensorbench.records.predictions import STEP


def frame_of(content: bytes) -> pd.DataFrame:
    """A column per class for labels, answers and outputs, such as `logit_0`.

    Compact predictions have `classes` and `log_probability` in place of logits.
    """
    tensors, columns = load(content), {}
    if "text" in tensors:
        ends = tensors.pop("text_ends").tolist()
        text = tensors.pop("text").tobytes()
        columns["text"] = [text[begin:end].decode() for begin, end in zip([0, *ends], ends, strict=False)]
    if "steps" in tensors:
        columns["classes"] = tensors.pop("classes").repeat(len(tensors["example"]))
        columns["log_probability"] = tensors.pop("steps") * -STEP
    for name in sorted(tensors, key=["example", "label", "prediction", "logit"].index):
        values = tensors[name]
        if values.ndim == 1:
            columns[name] = values
        else:
            columns |= {f"{name}_{number}": values[:, number] for number in range(values.shape[1])}
    return pd.DataFrame({name: columns[name] for name in columns})


def file_of(frame: pd.DataFrame) -> bytes:
    """The inverse of `frame_of`. A frame without outputs gives logits of no class."""
    tensors: dict[str, Any] = {}
    for name in ("example", "label", "prediction", "logit"):
        columns = [column for column in frame if re.fullmatch(rf"{name}(_\d+)?", str(column))]
        if columns == [name]:
            tensors[name] = frame[name].to_numpy()
        elif columns:
            tensors[name] = np.stack([frame[column].to_numpy() for column in columns], axis=1)
    if "log_probability" in frame:
        tensors["classes"] = frame["classes"].to_numpy()[:1]
        tensors["steps"] = np.round(frame["log_probability"] / -STEP).to_numpy().astype(np.uint32)
    elif "logit" not in tensors:
        tensors["logit"] = np.zeros((len(frame), 0), np.float32)
    if "text" in frame:
        texts = [text.encode() for text in frame["text"]]
        tensors["text"] = np.frombuffer(b"".join(texts), np.uint8)
        tensors["text_ends"] = np.cumsum([len(text) for text in texts])
    return save({name: np.ascontiguousarray(values) for name, values in tensors.items()})
