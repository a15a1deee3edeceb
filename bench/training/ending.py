"""Converts the outcome of a finished trial to a record of plain values and bytes."""

from __future__ import annotations

from safetensors.torch import save

from tensorbench.records.predictions import Predictions
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
    texts, logits = outcome.final.texts, outcome.final.logits.numpy()
    return Predictions(
        outcome.example_ids.numpy(),
        outcome.labels.numpy(),
        outcome.final.answers,
        logits,
        logits.shape[1],
        text=None if texts is None else tuple(map(storable, texts)),
    ).file()
