"""Downloads everything that a suite needs, so that the suite can run on machines without a network.

Repositories of the Hugging Face hub are locked: a file beside the suite names the commit of each.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

from tensorbench.backbones import BackboneSpec, describe, load
from tensorbench.inputs import TextInput
from tensorbench.machine.files import sha256
from tensorbench.machine.hub import SMALL_FILES, WEIGHT_FILES, RepositoryKind, commit_of, snapshot
from tensorbench.plan.lock import Lock, Locked, at_revision, hub_task, lock_path, read_lock
from tensorbench.plan.make import make_plan
from tensorbench.plan.suite import Suite
from tensorbench.plan.suite_file import load_suite
from tensorbench.tasks import prepare
from tensorbench.tasks.hub import HubTask
from tensorbench.tasks.plain_text import plain_tokens


def fetch(path: Path, *, update: bool, notify: Callable[[str], None]) -> Path | None:
    """Downloads the backbones and data of a suite, and writes the commits of its hub repositories to a lock.

    A repository that is already in the lock stays at its commit, unless `update` is true or the suite now
    names another revision. Then it moves to the newest commit of the revision. Every backbone is loaded and
    every data set is prepared, so that errors show now.

    Args:
        path: The suite's file.
        update: Whether to replace the commits in the lock by the newest.
        notify: Called with the name of each step.

    Returns:
        The path of the lock, or None if the suite uses no hub repository.

    Raises:
        UserError: if something is not available or differs from the lock.
    """
    suite, lock_file = load_suite(path, locked=False), lock_path(path)
    old = read_lock(lock_file) if lock_file.exists() and not update else Lock()
    several = Counter(name for name, _ in {(spec.hub_name, spec.revision) for spec in suite.backbones})
    lock = Lock(
        backbones={
            (at_revision(spec) if several[spec.hub_name] > 1 else spec.hub_name): _lock_backbone(
                spec, old.of(spec), notify
            )
            for spec in suite.backbones
            if spec.hub_name is not None
        },
        tasks={
            row.task: _lock_task(task, old.tasks.get(row.task), notify)
            for row in suite.tasks
            if (task := hub_task(suite.placed(row))) is not None
        },
    )
    uses_hub = bool(lock.backbones or lock.tasks)
    if uses_hub:
        suite = lock.apply(suite, lock_file)
    _warm(suite, notify)
    if uses_hub:
        # Write the lock last, so that nothing is locked that does not load.
        lock.write(lock_file, path)
    return lock_file if uses_hub else None


def _lock_backbone(spec: BackboneSpec, old: Locked | None, notify: Callable[[str], None]) -> Locked:
    notify(f"backbone {spec.hub_name}")
    kept = old is not None and old.asked == spec.revision
    info = describe(spec.at(old.revision) if old and kept else spec)
    repository, _, commit = info.weights_hash.partition("hub:")[2].rpartition("@")
    return _locked(repository, spec.revision, commit, SMALL_FILES + WEIGHT_FILES, "model", old)


def _lock_task(task: HubTask, old: Locked | None, notify: Callable[[str], None]) -> Locked:
    notify(f"task {task.name}")
    revision = task.source.revision
    kept = old is not None and (old.asked, old.repository) == (revision, task.where)
    commit = old.revision if old and kept else commit_of(task.where, revision, "dataset")
    return _locked(task.where, revision, commit, task.patterns, "dataset", old)


def _locked(
    repository: str,
    requested: str | None,
    commit: str,
    patterns: tuple[str, ...],
    kind: RepositoryKind,
    old: Locked | None,
) -> Locked:
    # If `old` has the same commit, `snapshot` compares the hashes.
    same = old is not None and (old.repository, old.revision) == (repository, commit)
    folder = snapshot(repository, commit, patterns, kind, old.locked if old and same else ())
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    files = {
        name: sha256(folder / name) for name in names if any(fnmatch(name, pattern) for pattern in patterns)
    }
    return Locked(repository=repository, asked=requested, revision=commit, files=files)


def _warm(suite: Suite, notify: Callable[[str], None]) -> None:
    # Afterwards a run finds everything on disk.
    plan = make_plan(suite)
    infos = {}
    for spec in dict.fromkeys(trial.backbone for trial in plan.trials):
        infos[spec] = describe(spec)
        notify(f"weights of {infos[spec].name}")
        load(spec)
        gc.collect()
    pairs = {(trial.task.task, trial.backbone): trial for trial in plan.trials}
    for trial in pairs.values():
        row, info = trial.task, infos[trial.backbone]
        notify(f"data of {row.task} for {info.name}")
        task = row.lookup()
        model_input, split_seed = row.input(info.input, task), row.split_seed(trial.seed)
        if trial.forgetting is not None and isinstance(model_input, TextInput):
            plain_tokens(trial.forgetting, model_input)
        prepare(task, model_input, row.max_tokens, *row.sizes, split_seed=split_seed)
        gc.collect()
