"""Downloads repositories of the Hugging Face hub at fixed commits."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Literal

from tensorbench.methods.errors import UserError

RepositoryKind = Literal["model", "dataset"]

#: The files that describe a model: configuration, preprocessing and tokenizer.
SMALL_FILES = ("*.json", "*.txt", "*.model")

WEIGHT_FILES = ("model*.safetensors",)

#: A repository's card, downloaded to find the commit.
CARD = ("README.md",)


def is_commit(revision: str | None) -> bool:
    """Whether a revision is the full hash of a commit."""
    return revision is not None and re.fullmatch("[0-9a-f]{40}", revision) is not None


def commit_of(repository: str, revision: str | None, kind: RepositoryKind) -> str:
    """Returns the current commit of a revision: a branch, tag or commit. None means the main branch.

    Raises the same errors as `snapshot`.
    """
    if revision is not None and is_commit(revision):
        return revision
    return snapshot(repository, revision, CARD, kind).name


@lru_cache(maxsize=64)
def snapshot(
    repository: str,
    revision: str | None,
    patterns: tuple[str, ...],
    kind: RepositoryKind = "model",
) -> Path:
    """Downloads the files of a hub repository that match the glob `patterns`, and returns their folder.

    The folder's name is the commit. The result is remembered in this process, so that a branch cannot move
    during a suite. `HF_ENDPOINT` names a mirror. With `HF_HUB_OFFLINE=1` or without a network, the hub's
    cache is used. Raises UserError for a malformed repository id, for an unknown, private or gated
    repository, for an unknown revision, and for files that can be neither reached nor found in the cache.
    """
    from huggingface_hub import errors as hub_errors
    from huggingface_hub import snapshot_download

    what = "model" if kind == "model" else "data set"
    where = repository if revision is None else f"{repository} at revision {revision}"
    try:
        with _bars(shown=patterns not in (CARD, SMALL_FILES)):
            folder = Path(
                snapshot_download(
                    repository, repo_type=kind, revision=revision, allow_patterns=list(patterns)
                )
            )
    except hub_errors.HFValidationError as error:
        raise UserError(f"'{repository}' is not a hub id (owner/{kind}): {error}") from error
    except hub_errors.GatedRepoError as error:
        raise UserError(f"hub {what} {where} is gated: accept its terms and log in to the hub") from error
    except hub_errors.RevisionNotFoundError as error:
        raise UserError(f"hub {what} {repository} has no revision {revision}") from error
    except hub_errors.RepositoryNotFoundError as error:
        raise UserError(f"there is no hub {what} {repository}, or it is private") from error
    # The HTTP library reports a broken connection by its own error, not an OSError.
    except (hub_errors.LocalEntryNotFoundError, hub_errors.HTTPError, OSError) as error:
        raise UserError(
            f"hub {what} {where} can be neither reached nor found whole in the cache. On a machine with a "
            f"network run `tensorbench tools fetch SUITE.yaml` for all that a suite needs, or "
            f"`hf download {repository}{_options(revision, patterns, kind)}`, then copy the hub's cache here "
            f"(HF_HOME says where). {_OWN_FILES[kind]}"
        ) from error
    return folder


@contextmanager
def _bars(*, shown: bool) -> Iterator[None]:
    """A context in which the hub's progress bars are shown only if `shown`, and only on a terminal."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if are_progress_bars_disabled() or (shown and sys.stderr.isatty()):
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


_OWN_FILES = {
    "model": "Or name files of your own as `local:`, a folder with config.json, model.safetensors and, for "
    "text, the tokenizer (beside `timm:` only the safetensors file)",
    "dataset": "Or put its parquet files into a folder, under their names there, and name that in the "
    "task's row as `source: {local: FOLDER}`",
}


def _options(revision: str | None, patterns: tuple[str, ...], kind: RepositoryKind) -> str:
    options = "" if kind == "model" else " --repo-type dataset"
    options += "" if revision is None else f" --revision {revision}"
    includes = "" if kind == "model" or patterns == CARD else "".join(f" --include '{p}'" for p in patterns)
    return options + includes
