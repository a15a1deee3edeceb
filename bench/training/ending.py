"""How a trial ended, in plain values and bytes: what crosses processes, machines and the outbox."""

from __future__ import annotations

import io
import json

import pandas as pd
from safetensors.torch import save

from bench.training.trial import Outcome
from bench.wire.trial import Ending
from bench.wire.words import Artifact, Measure, Tag


def finished(outcome: Outcome) -> Ending:
    trained = outcome.trained
    values: dict[Measure, float | None] = {
        Measure.SCORE: outcome.final.metric,
        Measure.SCORE_LOSS: outcome.final.loss,
        Measure.SELECTED_EPOCH: trained.selected_epoch,
        Measure.SELECTED_VALIDATION: trained.validation_metric,
        Measure.ADAPTER_PARAMETERS: outcome.adapter_parameters,
        Measure.HEAD_PARAMETERS: outcome.head_parameters,
        Measure.STEPS: trained.steps,
        Measure.STEP_MS: trained.step_ms,
        Measure.SECONDS: outcome.seconds,
        Measure.PEAK_MIB: outcome.peak_mib,
    }
    tensors = {f"adapter.{name}": value for name, value in outcome.adapter.items()}
    tensors |= {f"head.{name}": value for name, value in outcome.head.items()}
    return Ending(
        "finished",
        {key: float(value) for key, value in values.items() if value is not None},
        {Artifact.PREDICTIONS: _predictions(outcome), Artifact.ADAPTER: save(tensors)},
        {Tag.CAPABILITIES: json.dumps(known)} if (known := outcome.capabilities) is not None else {},
    )


def _predictions(outcome: Outcome) -> bytes:
    logits = outcome.final.logits
    frame = pd.DataFrame(logits.numpy(), columns=[f"logit_{i}" for i in range(logits.shape[1])])
    frame.insert(0, "example", outcome.example_ids.numpy())
    frame.insert(1, "label", outcome.labels.numpy())
    frame.insert(2, "prediction", logits.argmax(1).numpy())
    file = io.BytesIO()
    frame.to_parquet(file, index=False)
    return file.getvalue()
