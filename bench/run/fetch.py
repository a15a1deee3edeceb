"""Downloads everything that a suite needs, so that it can run on machines without a network."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from pathlib import Path

from tensorbench.backbones import describe, load
from tensorbench.backbones.inputs import TextInput
from tensorbench.plan.make import make_plan
from tensorbench.plan.suite import load_suite
from tensorbench.tasks import prepare
from tensorbench.tasks.plain_text import plain_tokens


def fetch(path: Path, notify: Callable[[str], None]) -> Mapping[str, str]:
    """Downloads everything that a suite needs.

    Every backbone is loaded and every data set is prepared, so that errors show now. `notify` is called with
    the name of each step. Returns the commits of the suite's hub repositories, as in `Suite.commits`. Raises
    UserError if something is not available.
    """
    suite = load_suite(path)
    notify("its plan")
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
    return suite.commits
