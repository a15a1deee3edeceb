"""The record that a finished trial gives: its numbers, tags and artifacts, in plain values and bytes."""

from __future__ import annotations

import io
import json
from typing import Any

import pandas as pd
from safetensors.torch import save

from bench.training.trial import Outcome
from bench.wire.measures import Measure
from bench.wire.predictions import a_class_each
from bench.wire.record import Record
from bench.wire.text import storable
from bench.wire.words import Artifact, Status, Tag


def finished(outcome: Outcome) -> Record:
    """The record of a trial that finished."""
    trained = outcome.trained
    values: dict[Measure, float | None] = {
        Measure.SCORE: outcome.final.metric,
        Measure.SCORE_LOSS: outcome.final.loss,
        Measure.SELECTED_EPOCH: trained.selected_epoch,
        Measure.SELECTED_VALIDATION: trained.validation_metric,
        Measure.SELECTED_LOSS: trained.validation_loss,
        Measure.GUESSING_LOSS: outcome.guessing_loss,
        Measure.ADAPTER_EFFECT: outcome.effect,
        Measure.ADAPTER_PARAMETERS: outcome.adapter_parameters,
        Measure.PEAK_PARAMETERS: outcome.peak_parameters,
        Measure.HEAD_PARAMETERS: outcome.head_parameters,
        Measure.HEAD_C: trained.head_c,
        Measure.HEAD_CONVERGED: trained.head_converged,
        Measure.STEPS: trained.steps,
        Measure.STEP_MS: trained.step_ms,
        Measure.SECONDS: outcome.seconds,
        Measure.PEAK_MIB: outcome.peak_mib,
        Measure.ADAPTER_BYTES: sum(tensor.nbytes for tensor in outcome.adapter.values()),
        Measure.FROZEN_BYTES: outcome.frozen_bytes,
    }
    if outcome.scale is not None:
        values |= zip((Measure.TARGET_MEAN, Measure.TARGET_SD), outcome.scale, strict=True)
    if (times := outcome.inference) is not None:
        values |= {
            Measure.BARE_MS: times.bare,
            Measure.ADAPTED_MS: times.adapted,
            Measure.MERGED_MS: times.merged,
            Measure.TIMED_EXAMPLES: times.examples,
        }
    if outcome.splits is not None:
        values |= outcome.splits.measures
    if outcome.prompts is not None:
        values |= zip((Measure.CUT_PROMPTS, Measure.PROMPTS), outcome.prompts, strict=True)
    tags: dict[str, str] = {}
    if outcome.capabilities is not None:
        tags[Tag.CAPABILITIES] = json.dumps(outcome.capabilities)
    if outcome.final_ranks:
        tags[Tag.FINAL_RANKS] = json.dumps(outcome.final_ranks, separators=(",", ":"))
    if (forgotten := outcome.forgetting) is not None:
        values |= {
            Measure.TEXT_LOSS_BARE: forgotten.before,
            Measure.TEXT_LOSS: forgotten.after,
            Measure.TEXT_TOKENS: forgotten.tokens,
        }
        tags[Tag.TEXT] = forgotten.text
    tensors = {f"adapter.{name}": value for name, value in outcome.adapter.items()}
    tensors |= {f"head.{name}": value for name, value in outcome.head.items()}
    return Record(
        status=Status.FINISHED,
        tags=tags,
        metrics={key: float(value) for key, value in values.items() if value is not None},
        files={Artifact.PREDICTIONS: _predictions(outcome), Artifact.ADAPTER: save(tensors)},
    )


def _predictions(outcome: Outcome) -> bytes:
    """As `bench.wire.predictions` says."""
    told = {"label": outcome.labels.numpy(), "prediction": outcome.final.answers}
    columns: dict[str, Any] = {"example": outcome.example_ids.numpy()}
    for name, values in told.items():
        columns |= {name: values} if values.ndim == 1 else a_class_each(name, values)
    if outcome.final.texts is not None:
        columns["text"] = list(map(storable, outcome.final.texts))
    frame = pd.DataFrame(columns | a_class_each("logit", outcome.final.logits.numpy()))
    file = io.BytesIO()
    frame.to_parquet(file, index=False)
    return file.getvalue()
