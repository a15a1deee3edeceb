"""Exports of stored trials."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bench.export.write import Exported, write_export
from bench.inputs import TextInput
from bench.process.outputs import output_folder
from bench.store.trained import stored_trial
from bench.wire.words import Tag


def export_run(store: str, run: str, out: Path, *, merged: bool = False, force: bool = False) -> Exported:
    """Writes what a finished trial trained into the folder `out`.

    `run` is an MLflow run id or a trial id, or the beginning of one, in the store at that URI. Raises
    UserError, and leaves `out` as it was, for a run that is unknown, ambiguous or not finished, a folder
    with something in it (`force` replaces files of that name), a backbone or method that is not the
    trial's any more, an update without the asked-for form, or an export that gives other logits.
    """
    target = output_folder(out, "export", force=force)
    with stored_trial(store, run) as stored:
        record, trial, method, adapter = stored.record, stored.trial, stored.method, stored.adapter
        facts = {
            "run": record.run_id,
            "trial": record.trial_id,
            "method": method.label,
            "ranks": ", ".join(map(str, method.size or ())) or "–",
            "adapter parameters": f"{adapter.parameter_count:,}",
            "task": trial.task.task,
            "score": f"{record.score:.4f} ({record.tag(Tag.METRIC)}, {trial.evaluate} split)",
            "seed": str(trial.seed),
            "precision in training": trial.recipe.precision,
        }
        classes, wanted = trial.task.lookup().classes, trial.task.input(stored.backbone.info.input)
        if isinstance(wanted, TextInput):
            wanted = replace(wanted, max_tokens=min(wanted.max_tokens, trial.task.max_tokens))
        return write_export(
            stored.backbone,
            adapter,
            trial.backbone,
            target,
            classes,
            facts,
            wanted=wanted,
            merged=merged,
            force=force,
        )
