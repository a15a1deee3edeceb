"""The commits of a suite's hub repositories: each experiment keeps those of its first start."""

from __future__ import annotations

from contextlib import suppress

from tensorbench.backbones import BackboneSpec, describe
from tensorbench.methods import UserError
from tensorbench.plan.pairs import hub_revision
from tensorbench.plan.suite import Suite
from tensorbench.store.opening import lacks_file
from tensorbench.tasks import Task


def held(suite: Suite, store: str) -> tuple[Suite, list[str]]:
    """Pins a suite's hub repositories to the commits that its experiment in a store already uses.

    Returns the pinned suite, and a note for each branch or tag that has moved on the hub since. Ignores a
    store that cannot be read and a hub that cannot be reached, since later steps that need them raise the
    error.
    """
    places: list[BackboneSpec | Task] = [*suite.backbones]
    for row in suite.tasks:
        with suppress(UserError):  # planning says it, if this task is to be planned
            places.append(suite.placed(row).lookup())
    revisions = {revision: place for place in places if (revision := hub_revision(place))}
    # Before an experiment's first start, nothing has to be asked. MLflow takes seconds to import.
    if not revisions or lacks_file(store):
        return suite, []
    from tensorbench.store.store import Store

    try:
        opened = Store.there(store, suite.name)
        commits = opened.commits() if opened else {}
    except UserError:
        return suite, []
    notes = []
    for revision, place in revisions.items():
        if revision not in commits:
            continue
        try:
            source = place.pinned(describe(place)) if isinstance(place, BackboneSpec) else place.pinned()
        except UserError:
            continue
        current = source and source.revision
        if current not in (None, commits.get(revision)):
            notes.append(
                f"{revision} has moved to {current}. '{suite.name}' stays at {commits[revision]}, which its "
                "trials have; a suite with another name takes the new commit."
            )
    known = {revision: commits[revision] for revision in revisions if revision in commits}
    return suite.held_at(known), notes
