"""Converts the outcome of a finished trial to a record of plain values and bytes."""

from __future__ import annotations

import io
from typing import Any

import pandas as pd
from safetensors.torch import save

from tensorbench.records.predictions import a_class_each
from tensorbench.records.record import Record
from tensorbench.records.text import storable
from tensorbench.records.words import Artifact, Status
from tensorbench.training.trial import Outcome


def finished(outcome: Outcome) -> Record:
    """Makes the record of a finished trial."""
    tensors = {f"adapter.{name}": value for name, value in outcome.adapter.items()}
    tensors |= {f"head.{name}": value for name, value in outcome.head.items()}
    return Record(
        status=Status.FINISHED,
        tags=outcome.tags,
        metrics={key: float(value) for key, value in outcome.measures.items() if value is not None},
        files={Artifact.PREDICTIONS: _predictions(outcome), Artifact.ADAPTER: save(tensors)},
    )


def _predictions(outcome: Outcome) -> bytes:
    """Returns the predictions as a parquet file. `tensorbench.records.predictions` describes its columns."""
    answers = {"label": outcome.labels.numpy(), "prediction": outcome.final.answers}
    columns: dict[str, Any] = {"example": outcome.example_ids.numpy()}
    for name, values in answers.items():
        columns |= {name: values} if values.ndim == 1 else a_class_each(name, values)
    if outcome.final.texts is not None:
        columns["text"] = list(map(storable, outcome.final.texts))
    frame = pd.DataFrame(columns | a_class_each("logit", outcome.final.logits.numpy()))
    file = io.BytesIO()
    frame.to_parquet(file, index=False)
    return file.getvalue()
