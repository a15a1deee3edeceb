"""Articles of the English Wikipedia, from the hub's data set FineWiki, of which little is read."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from methods.errors import UserError

REPOSITORY, REVISION = "HuggingFaceFW/finewiki", "8bd13e72e6a002407649b3e898535f42ceb1aeb9"

#: The first file of the configuration that the data set has by default.
FILE = "data/enwiki/000_00000.parquet"


def articles(count: int) -> list[str]:
    """The texts of the first articles. Only their part of the file, which has 2.5 GB, is read from the hub.

    Raises UserError if it can be neither reached nor found in the hub's cache.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        with closing(_opened()) as file:
            batch = next(parquet.ParquetFile(file).iter_batches(batch_size=count, columns=["text"]))
    except (OSError, ValueError, StopIteration, pyarrow.ArrowException) as error:
        raise UserError(
            f"{FILE} of the hub data set {REPOSITORY} cannot be read: {error}. Where there is a network run "
            f"`hf download {REPOSITORY} {FILE} --repo-type dataset --revision {REVISION}`, then copy the "
            "hub's cache here (HF_HOME says where)"
        ) from error
    return [str(text) for text in batch.column("text").to_pylist()]


def _opened() -> Any:
    import huggingface_hub

    cached = huggingface_hub.try_to_load_from_cache(REPOSITORY, FILE, revision=REVISION, repo_type="dataset")
    if isinstance(cached, str):
        return open(cached, "rb")
    return huggingface_hub.HfFileSystem().open(f"datasets/{REPOSITORY}@{REVISION}/{FILE}")
