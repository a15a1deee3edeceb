"""How a trial ended, in plain values and bytes: what crosses processes, machines and the outbox."""

from __future__ import annotations

import io

import pandas as pd
from safetensors.torch import save

from bench.training.trial import Outcome
from bench.wire import Ending


def finished(outcome: Outcome) -> Ending:
    trained = outcome.trained
    values: dict[str, float | None] = {
        # One key for every metric and split; the tags `metric` and `evaluated` say which it is.
        "score": outcome.final.metric,
        "score_loss": outcome.final.loss,
        "selected/epoch": trained.selected_epoch,
        "selected/validation": trained.validation_metric,
        "parameters/adapter": outcome.adapter_parameters,
        "parameters/head": outcome.head_parameters,
        "cost/steps": trained.steps,
        "cost/step_ms": trained.step_ms,
        "cost/seconds": outcome.seconds,
        "cost/peak_mib": outcome.peak_mib,
    }
    tensors = {f"adapter.{name}": value for name, value in outcome.adapter.items()}
    tensors |= {f"head.{name}": value for name, value in outcome.head.items()}
    return Ending(
        "finished",
        {key: float(value) for key, value in values.items() if value is not None},
        {"predictions.parquet": _predictions(outcome), "adapter.safetensors": save(tensors)},
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
