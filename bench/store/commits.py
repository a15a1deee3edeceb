"""The commits of a suite's hub repositories: each experiment keeps those of its first start."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial

from tensorbench.backbones import BackboneSpec, describe
from tensorbench.methods import UserError
from tensorbench.plan.pairs import hub_revision
from tensorbench.plan.suite import Suite
from tensorbench.tasks import Task


def held(suite: Suite, store: str) -> tuple[Suite, list[str]]:
    """Returns the suite at the commits that its experiment in a store has, so that a branch cannot move.

    Also returns a note for each branch or tag that has moved on the hub since. A store that cannot be read
    and a hub that cannot be reached are passed over: what needs them says so.
    """
    revisions = _revisions(suite)
    if not revisions:
        return suite, []
    # Imported late: most suites name no repository, and MLflow takes seconds.
    from tensorbench.store.store import Store

    try:
        opened = Store.there(store, suite.name)
        commits = opened.commits() if opened else {}
    except UserError:
        return suite, []
    notes = []
    for revision, resolve in revisions.items():
        try:
            current = resolve() if revision in commits else None
        except UserError:
            continue
        if current not in (None, commits.get(revision)):
            notes.append(
                f"{revision} has moved to {current}. '{suite.name}' stays at {commits[revision]}, which its "
                "trials have; a suite with another name takes the new commit."
            )
    known = {revision: commits[revision] for revision in revisions if revision in commits}
    return suite.held_at(known), notes


def _revisions(suite: Suite) -> dict[str, Callable[[], str | None]]:
    """The branches and tags of the hub that a suite names, each with a function that finds its commit now."""
    revisions: dict[str, Callable[[], str | None]] = {}
    for spec in suite.backbones:
        if revision := hub_revision(spec):
            revisions[revision] = partial(_commit_of_model, spec)
    for row in suite.tasks:
        with suppress(UserError):  # planning says it, if this task is to be planned
            task = suite.placed(row).lookup()
            if revision := hub_revision(task):
                revisions[revision] = partial(_commit_of_data, task)
    return revisions


def _commit_of_model(spec: BackboneSpec) -> str | None:
    return spec.pinned(describe(spec)).revision


def _commit_of_data(task: Task) -> str | None:
    source = task.pinned()
    return source.revision if source else None
