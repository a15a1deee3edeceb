"""Exports of stored trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.export.answers import Answers, stored_answers
from bench.export.write import Doubt, Exported, write_export
from bench.inputs import TextInput
from bench.process.outputs import output_folder
from bench.store.artifacts import ChangedError
from bench.store.trained import StoredTrial, stored_trial
from bench.wire.measures import Measure
from bench.wire.words import Tag
from methods import UserError


def export_run(
    store: str, run: str, out: Path, *, merged: bool = False, force: bool = False, opened: Sequence[str] = ()
) -> Exported:
    """Writes what a finished trial trained into the folder `out`.

    `run` is an MLflow run id or a trial id, or the beginning of one, in the store at that URI. `opened` is
    what a trial that came in a pack may open, folders or "hub". Raises
    UserError, and leaves `out` as it was, for a run that is unknown, ambiguous or not finished, a folder
    with something in it (`force` replaces files of that name), a backbone or method that is not the
    trial's any more, files that were changed since they were stored, an update without the asked-for form, or
    an export that gives other logits, or other predictions than are stored.
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
        wanted = trial.task.input(stored.backbone.info.input, task)
        mean, sd = record.measure(Measure.TARGET_MEAN), record.measure(Measure.TARGET_SD)
        if mean is not None and sd is not None:
            facts["output"] = f"standardised; in {task.unit or 'units of the targets'} × {sd:g} + {mean:g}"
        if isinstance(wanted, TextInput):
            wanted = replace(wanted, max_tokens=min(wanted.max_tokens, trial.task.max_tokens))
        answers, doubts = _to_hold_against(stored)
        return write_export(
            stored.backbone,
            adapter,
            trial.backbone,
            target,
            task.classes or ("value",),
            facts,
            wanted=wanted,
            answers=answers,
            doubts=doubts,
            merged=merged,
            force=force,
        )


def _to_hold_against(stored: StoredTrial) -> tuple[Answers | None, list[Doubt]]:
    """What the trial answered, and what cannot be checked. Raises ChangedError for changed predictions."""
    doubts = []
    if not stored.verified:
        doubts.append(
            Doubt(
                "The trial's files are not verified (stored by an older version)",
                "their run has no hashes of them",
            )
        )
    if by_batch := stored.method.depends_on_batch:
        told = "The trial's stored predictions were not compared"
        return None, [*doubts, Doubt(told, by_batch)]
    try:
        return stored_answers(stored), doubts
    except ChangedError:
        raise
    except UserError as error:
        return None, [*doubts, Doubt("The trial's stored predictions were not compared", str(error))]
