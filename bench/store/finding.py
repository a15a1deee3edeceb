"""Finds the run of a trial by the start of an id. Needs no torch, which takes a second to import."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher

from tensorbench.methods import UserError
from tensorbench.records.pack_format import ENDING
from tensorbench.records.record import Record, latest
from tensorbench.records.words import RunKind, Status, Tag
from tensorbench.store.addresses import shown_uri
from tensorbench.store.connect import BROKEN_STORE, connect
from tensorbench.store.queries import experiments, find_runs
from tensorbench.store.store import Store


def find_finished(store: str, run: str) -> tuple[Store, Record]:
    """Finds a trial as `find_trial` does, but also raises UserError if it has not finished."""
    try:
        opened, record = find_trial(store, run)
    except BROKEN_STORE as error:
        raise UserError(shown_uri(f"run {run} cannot be read from {store}: {error}")) from error
    if record.status == Status.FINISHED:
        return opened, record
    name = f"run {record.run_id} ({record.name})"
    if record.status == Status.FAILED:
        reason, message = record.tag(Tag.FAILURE, "error"), record.tag(Tag.FAILURE_MESSAGE)
        raise UserError(f"{name} failed, {reason}: {message}; it left no adapter")
    if record.status == Status.DUPLICATE:
        raise UserError(
            f"{name} is a duplicate: another run of trial {record.trial_id} counts; give the trial's id"
        )
    reasons = {Status.RUNNING: "is not finished yet", Status.KILLED: "was stopped before it finished"}
    raise UserError(f"{name} {reasons.get(record.status, record.status.lower())}; run its suite again")


def find_trial(store: str, run: str) -> tuple[Store, Record]:
    """Finds the run whose run id or trial id begins with `run`, and returns it with its experiment.

    For a trial id, returns the run that counts for the trial (see `latest`). Of several copies of a run from
    a pack, returns the one in an experiment with trials that ran here, if there is one. Raises UserError if
    no run or several runs match, and for a pack.
    """
    if run.endswith(ENDING):
        raise UserError(
            f"{run} is a pack, and this takes the id of one trial: `tensorbench unpack {run}` puts its "
            "trials into a store; `tensorbench show --cell N` takes packs"
        )
    client = connect(store, create=False)
    every = [experiment.experiment_id for experiment in experiments(client)]
    records = find_runs(client, every, f"tags.{Tag.KIND} = '{RunKind.TRIAL}'")
    start = run.strip().lower()
    of_trial = [record for record in records if start and record.trial_id.startswith(start)]
    # Trials that ran here, and copies from packs beside them, come first.
    own = {record.tag(Tag.PARENT) for record in records if not record.tag(Tag.ORIGIN)}
    trials = latest(of_trial) | latest(r for r in of_trial if r.tag(Tag.PARENT) in own)
    records.sort(key=lambda record: record.tag(Tag.PARENT) not in own)
    by_run = [r for r in records if start and (r.run_id.startswith(start) or r.origin.startswith(start))]
    matches: dict[str, Record] = {}
    for record in (*trials.values(), *by_run):
        matches.setdefault(record.origin, record)
    if len(matches) == 1:
        (record,) = matches.values()
        experiment = client.get_run(record.run_id).info.experiment_id
        return Store(client, client.get_experiment(experiment), store), record
    if matches:
        raise UserError(f"'{run}' is the beginning of several:\n{_listed(matches.values())}")
    if not records:
        raise UserError(f"there is no run '{run}': the store holds no trial yet")
    finished = [record for record in latest(records).values() if record.status == Status.FINISHED]

    def distance(record: Record) -> float:
        ids = (record.trial_id, record.run_id)
        return -max(SequenceMatcher(None, start, id_[: len(start)]).ratio() for id_ in ids)

    listed = _listed(sorted(finished, key=distance))
    raise UserError(f"there is no run or trial '{run}'; finished are, nearest first:\n{listed}")


def _listed(records: Iterable[Record]) -> str:
    listed = list(records)
    shown, left_out = listed[:6], len(listed[6:])
    lines = [f"  trial {r.trial_id}, run {r.run_id}: {r.name} ({r.status.lower()})" for r in shown]
    if left_out:
        lines.append(f"  and {left_out} more")
    return "\n".join(lines) or "  none"
