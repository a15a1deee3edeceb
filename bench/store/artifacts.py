"""The artifacts of runs: atomic writes, checks against hashes, and errors about damaged ones."""

from __future__ import annotations

import json
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlparse

from pydantic_core import to_json

from tensorbench.machine.alive import dead, owner
from tensorbench.machine.files import remove, sha256
from tensorbench.methods import UserError
from tensorbench.records import Wired
from tensorbench.records.record import Record
from tensorbench.records.words import Artifact, Tag

if TYPE_CHECKING:
    # It takes seconds to import, and reading packs needs none.
    from mlflow.tracking import MlflowClient


#: The prefix of the folder in which a process copies files, beside the artifacts of a run. The process's name
#: follows, so that others can tell whether it is dead.
UNFINISHED = ".unfinished-"


#: The name of the folder of all experiments' artifacts, beside a SQLite file.
ARTIFACTS = "mlartifacts"


class ChangedError(UserError):
    """An artifact differs from what was stored: its SHA-256 is `actual` instead of `stored`."""

    def __init__(self, message: str, stored: str, actual: str) -> None:
        super().__init__(message)
        self.stored, self.actual = stored, actual


def hashes(record: Record) -> dict[str, str]:
    """Returns the stored SHA-256 of each artifact of a run, by the artifact's name.

    Empty if there are none. Raises UserError for a malformed tag.
    """
    text = record.tag(Tag.HASHES)
    try:
        digests = json.loads(text) if text else {}
        return {str(name): str(digest) for name, digest in digests.items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"run {record.run_id}: its tag '{Tag.HASHES}' holds no hashes: {text:.60}") from error


def check_content(record: Record, name: Artifact, file: Path) -> None:
    """Raises ChangedError, naming run and file, unless `file` has the stored hash of this artifact.

    A file without a stored hash passes.
    """
    expected = hashes(record).get(name)
    if expected is not None and (actual := sha256(file)) != expected:
        raise ChangedError(
            f"{name} of run {record.run_id} ({record.name}) was changed after it was stored: its sha256 is "
            f"{actual}, stored was {expected}; {remedy(record)}",
            expected,
            actual,
        )


def remedy(record: Record) -> str:
    """Returns advice for the user about an artifact that was changed or cannot be read."""
    return f"delete that run (`mlflow runs delete --run-id {record.run_id}`) and start its suite again"


def broken(record: Record, name: Artifact, said: str) -> UserError:
    """Returns the error for an artifact that exists but cannot be read. `said` is the reason."""
    return UserError(
        f"{name} of run {record.run_id} ({record.name}) is broken, or of another version of the harness: "
        f"{said}; {remedy(record)}"
    )


def as_json(content: Wired) -> str:
    """Returns the text of a JSON artifact."""
    return to_json(content, indent=1, inf_nan_mode="constants").decode("utf-8")


def artifacts_of_run(uri: str) -> Path | None:
    """Returns the local folder of a run's artifacts, given their URI. None if they are on a server."""
    where = urlparse(uri)
    return Path(unquote(where.path)) if where.scheme in ("", "file") else None


def moved_to(database: Path, location: str) -> str | None:
    """Returns the URI of an experiment's artifacts if they were moved from `location` with the database.

    None if the artifacts are still at `location`, or not beside the database.
    """
    where = urlparse(location)
    _, folder, below = unquote(where.path).rpartition(f"/{ARTIFACTS}/")
    if where.scheme not in ("", "file") or not folder:
        return None
    stored, beside = Path(unquote(where.path)), database.parent.absolute() / ARTIFACTS / below
    if not beside.is_dir() or (stored.exists() and stored.samefile(beside)):
        return None
    return beside.as_uri()


def remove_unfinished(artifacts: Path, *, every: bool = False) -> None:
    """Removes the copies that dead processes left beside a run's artifacts, or with `every` all copies."""
    for aside in artifacts.parent.glob(f"{UNFINISHED}*"):
        if every or dead(unquote(aside.name.removeprefix(UNFINISHED).rpartition("-")[0])):
            with suppress(OSError):
                remove(aside)


def keep_files(client: MlflowClient, run_id: str, folder: Path, uri: str = "") -> None:
    """Stores the files of a folder as artifacts of a run.

    `uri` is the location of the run's artifacts. If it is empty, the store is asked for it.

    On a local disk, each file appears completely or not at all. MLflow itself would leave a partial file if
    the process is killed while MLflow copies the folder. Several processes may store a file at once; the last
    one counts.
    """
    artifacts = artifacts_of_run(uri or client.get_run(run_id).info.artifact_uri)
    if artifacts is None:
        client.log_artifacts(run_id, str(folder))
        return
    artifacts.mkdir(parents=True, exist_ok=True)
    remove_unfinished(artifacts)
    # Beside the artifacts, since MLflow shows every file among them, even one that a killed process left.
    prefix = f"{UNFINISHED}{quote(owner(), safe='')}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=artifacts.parent) as aside:
        for file in folder.iterdir():
            unfinished = Path(aside) / file.name
            shutil.copyfile(file, unfinished)
            unfinished.replace(artifacts / file.name)
