"""Exports of stored trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from huggingface_hub import EvalResult

from tensorbench.export.write import Exported, write_export
from tensorbench.inputs import TextInput
from tensorbench.machine.outputs import output_folder
from tensorbench.records.measures import Measure
from tensorbench.records.words import Tag
from tensorbench.store.trained import stored_trial


def export_run(
    store: str, run: str, out: Path, *, merged: bool = False, force: bool = False, opened: Sequence[str] = ()
) -> Exported:
    """Writes the adapter and head of a finished trial into the folder `out`.

    `store` is the URI of the store. `run` is an MLflow run id or a trial id, or the beginning of one.
    `opened` matters only for a trial that came from a pack: it lists the folders that the trial may open, or
    "hub" for the Hugging Face hub. `force` replaces files of an earlier export.

    Raises UserError, and leaves `out` unchanged, for each of these:
    - the run is unknown, ambiguous or not finished
    - `out` is not empty
    - the backbone, the method or a stored file changed since the trial
    - the update cannot be written in this form
    - the export's logits differ from the harness's
    """
    target = output_folder(out, "export", force=force)
    with stored_trial(store, run, opened) as stored:
        record, trial, method, adapter = stored.record, stored.trial, stored.method, stored.adapter
        facts = {
            "run": record.run_id,
            "trial": record.trial_id,
            "method": method.label,
            "ranks": ", ".join(map(str, stored.ranks)) or "–",
            "adapter parameters": f"{adapter.parameter_count:,}",
            "task": trial.task.task,
            "score": f"{record.score:.4f} ({record.tag(Tag.METRIC)}, {trial.evaluate} split)",
            "seed": str(trial.seed),
            "precision in training": trial.recipe.precision,
        }
        task = trial.task.lookup()
        model_input = trial.task.input(stored.backbone.info.input, task)
        mean, sd = record.measure(Measure.TARGET_MEAN), record.measure(Measure.TARGET_SD)
        if mean is not None and sd is not None:
            facts["output"] = f"standardised; in {task.unit or 'units of the targets'} × {sd:g} + {mean:g}"
        if isinstance(model_input, TextInput):
            model_input = replace(model_input, max_tokens=min(model_input.max_tokens, trial.task.max_tokens))
        kind = "image" if task.modality == "vision" else "text"
        score = EvalResult(
            task_type="text-generation" if task.target == "generation" else f"{kind}-classification",
            dataset_type=trial.task.task,
            dataset_name=trial.task.task,
            dataset_split=trial.evaluate,
            metric_type=record.tag(Tag.METRIC),
            metric_value=record.score,
        )
        doubts = []
        if task.at_hand and task.identity_hash() != trial.data.get("task_identity"):
            doubts.append(
                f"The data of task '{task.name}' changed since the trial, so the names of the outputs may be "
                "wrong"
            )
        if not stored.verified:
            doubts.append("The trial's files are not verified: an older version stored them, without hashes")
        return write_export(
            stored.backbone,
            adapter,
            trial.backbone,
            target,
            task.classes or ("value",),
            facts,
            model_input=model_input,
            score=score,
            doubts=doubts,
            merged=merged,
            force=force,
        )
