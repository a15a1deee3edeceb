"""Runs small searches by the command line, for the tests of searches."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna

from tensorbench.records.words import RunKind
from tensorbench.search.storage import default_storage
from tensorbench.store.store import Store

from ..toy_suites import VISION, write

Call = Callable[..., Any]
NewStore = Callable[[Path], str]

SEARCH: dict[str, Any] = {
    "methods": [{"method": "tenslora", "variant": "qkv_depth"}],
    "seeds": [0],
    "search": {"trials": 6},
}
DONE = ("COMPLETE", "PRUNED")


@dataclass
class Searched:
    """A search: its suite, its store and, once it has ended, its result."""

    folder: Path
    suite: Path
    uri: str
    ended: Any = None
    #: The trials and the artifact at the end of the search. They are kept here because a test continues the
    #: search.
    trials: Sequence[optuna.trial.FrozenTrial] = ()
    artifacts: dict[str, Any] = field(default_factory=dict)

    @property
    def storage(self) -> str:
        return default_storage(self.uri)

    @property
    def store(self) -> Store:
        return Store.existing(self.uri, "toy")

    def study(self) -> optuna.Study:
        (name,) = optuna.get_all_study_names(self.storage)
        return optuna.load_study(study_name=name, storage=self.storage)

    def states(self) -> Counter[str]:
        return Counter(trial.state.name for trial in self.study().trials)

    def artifact(self, kind: str = "search") -> dict[str, Any]:
        (record,) = self.store.records(RunKind(kind))
        path = self.store.client.download_artifacts(record.run_id, f"{kind}.json")
        content: dict[str, Any] = json.loads(Path(path).read_text())
        return content


def prepared(folder: Path, new_store: NewStore, **changes: Any) -> Searched:
    return Searched(folder, write(folder, VISION, **{**SEARCH, **changes}), new_store(folder))


def run(folder: Path, new_store: NewStore, call: Call, **changes: Any) -> Searched:
    made = prepared(folder, new_store, **changes)
    made.ended = call("search", made.suite, "--store", made.uri)
    return made
