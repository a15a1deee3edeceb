"""What every use of MLflow's client shares: all pages of an answer, experiments, runs, artifacts."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from mlflow.entities import Experiment, Run, ViewType
from mlflow.tracking import MlflowClient

from bench.process.files import written_whole
from bench.store.connect import insisting
from bench.store.records import Record
from bench.wire import Wired
from bench.wire.words import Artifact
from methods import UserError

#: What one request of a search asks for at most.
PAGE = 1000


def every_page(ask: Callable[[str | None], Any]) -> Iterator[Any]:
    """All that a search finds. `ask` asks MLflow for the page that a token names, or for the first: None."""
    page = ask(None)
    yield from page
    while page.token:
        page = ask(page.token)
        yield from page


def experiments(client: MlflowClient) -> Iterator[Experiment]:
    """The experiments of a store that are not deleted, the newest first. MLflow has one named Default."""
    return every_page(lambda token: client.search_experiments(max_results=PAGE, page_token=token))


def find_runs(client: MlflowClient, experiments: Sequence[str], condition: str) -> Iterator[Run]:
    """The runs of these experiments that are not deleted and meet a condition in MLflow's search language."""
    if not experiments:
        return iter(())
    return every_page(
        lambda token: client.search_runs(
            list(experiments),
            condition,
            ViewType.ACTIVE_ONLY,
            max_results=PAGE,
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
    )


def remedy(record: Record, name: Artifact) -> str:
    """What to do about an artifact that is not what was stored."""
    if name == Artifact.REDUNDANCY:
        return f"`tensorbench tools redundancy {record.run_id}` writes it anew"
    return f"delete that run (`mlflow runs delete --run-id {record.run_id}`) and start its suite again"


def broken(record: Record, name: Artifact, said: str) -> UserError:
    """The error for an artifact that is there and is not what was stored."""
    return UserError(
        f"{name} of run {record.run_id} ({record.name}) is broken, or of another version of the harness: "
        f"{said}; {remedy(record, name)}"
    )


def as_json(content: Wired) -> str:
    """The text of a JSON artifact."""
    return json.dumps(content.model_dump(mode="json"), indent=1)


@insisting
def keep_json(client: MlflowClient, run_id: str, name: Artifact, content: Wired) -> None:
    """Stores a JSON artifact."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_text(as_json(content), encoding="utf-8")
        keep_files(client, run_id, Path(folder))


def keep_files(client: MlflowClient, run_id: str, folder: Path) -> None:
    """Stores the files of a folder. On this machine's disk each is there whole or not at all.

    MLflow itself, killed while it copies a folder, leaves half of a file there.
    """
    where = urlparse(client.get_run(run_id).info.artifact_uri)
    if where.scheme not in ("", "file"):
        client.log_artifacts(run_id, str(folder))
        return
    artifacts = Path(unquote(where.path))
    artifacts.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        with written_whole(artifacts / file.name) as unfinished:
            shutil.copyfile(file, unfinished)
