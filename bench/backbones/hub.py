"""Hub repositories, resolved to a commit."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from methods.errors import UserError

#: What a description needs: configuration, preprocessing and tokenizer, no weights.
SMALL_FILES = ("*.json", "*.txt", "*.model")

WEIGHT_FILES = ("model*.safetensors",)


@lru_cache(maxsize=64)
def snapshot(repository: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    """Folder with the files of a hub repository that match `patterns`; its name is the commit hash.

    Kept for the life of the process, so that a moving branch cannot change under a running suite.
    `HF_HUB_OFFLINE=1` and a missing network fall back to the hub's cache. Raises UserError if there
    is no such repository or revision, or it can be neither reached nor found in the cache.
    """
    from huggingface_hub import errors as hub_errors
    from huggingface_hub import snapshot_download

    where = repository if revision is None else f"{repository} at revision {revision}"
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))
    except hub_errors.HFValidationError as error:
        raise UserError(f"'{repository}' is not a hub id (owner/model): {error}") from error
    except hub_errors.GatedRepoError as error:
        raise UserError(f"hub model {where} is gated: accept its terms and log in to the hub") from error
    except hub_errors.RevisionNotFoundError as error:
        raise UserError(f"hub model {repository} has no revision {revision}") from error
    except hub_errors.RepositoryNotFoundError as error:
        raise UserError(f"there is no hub model {repository}, or it is private") from error
    except (hub_errors.LocalEntryNotFoundError, hub_errors.HfHubHTTPError, OSError) as error:
        raise UserError(
            f"hub model {where} can be neither reached nor found in the cache. On a machine with a "
            f"network run `hf download {repository}`, then copy its cache here (HF_HOME says where). Or "
            f"name files of your own as `local:`, a folder with config.json, model.safetensors and, for "
            f"text, the tokenizer (beside `timm:` only the safetensors file)"
        ) from error
