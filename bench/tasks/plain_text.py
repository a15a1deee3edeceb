"""Texts on which forgetting is measured. No task trains on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from tensorbench.backbones.inputs import TextInput
from tensorbench.machine.assets import ASSETS
from tensorbench.machine.cache import prepared
from tensorbench.methods.errors import UserError
from tensorbench.tasks.rated_sentences import rows
from tensorbench.tasks.tokens import beginning

TextName = Literal["newspapers", "finewiki"]


@dataclass(frozen=True)
class PlainText:
    """The first `documents` documents of a source, each cut to `tokens` tokens.

    `source` identifies the content permanently. `read(count)` returns the texts of the first documents.
    """

    documents: int
    tokens: int
    source: str
    read: Callable[[int], Sequence[str]]


def editorials(count: int) -> list[str]:
    """Returns the first `count` editorials of the New York Times in VADER's archive.

    Each is joined from its sentences.
    """
    sentences = ((source.partition("_")[0], text) for source, _, text in rows("nytEditorialSnippets"))
    documents = [" ".join(text for _, text in group) for _, group in groupby(sentences, lambda pair: pair[0])]
    return documents[:count]


REPOSITORY, REVISION = "HuggingFaceFW/finewiki", "8bd13e72e6a002407649b3e898535f42ceb1aeb9"

#: The first file of FineWiki's default configuration.
FILE = "data/enwiki/000_00000.parquet"


def articles(count: int) -> list[str]:
    """Returns the texts of FineWiki's first `count` articles, without downloading its whole file of 2.5 GB.

    Raises UserError if the file can be neither reached nor found in the hub's cache.
    """
    import pyarrow
    from huggingface_hub import HfFileSystem, try_to_load_from_cache
    from huggingface_hub.errors import HTTPError
    from pyarrow import parquet

    place = f"datasets/{REPOSITORY}@{REVISION}/{FILE}"
    try:
        cached = try_to_load_from_cache(REPOSITORY, FILE, revision=REVISION, repo_type="dataset")
        with open(cached, "rb") if isinstance(cached, str) else HfFileSystem().open(place) as file:
            batch = next(parquet.ParquetFile(file).iter_batches(batch_size=count, columns=["text"]))
    except (HTTPError, OSError, ValueError, StopIteration, pyarrow.ArrowException) as error:
        raise UserError(
            f"{FILE} of the hub data set {REPOSITORY} cannot be read: {error}. Where there is a network run "
            f"`hf download {REPOSITORY} {FILE} --repo-type dataset --revision {REVISION}`, then copy the "
            "hub's cache here (HF_HOME says where)"
        ) from error
    return [str(text) for text in batch.column("text").to_pylist()]


TEXTS: dict[TextName, PlainText] = {
    "newspapers": PlainText(32, 128, f"sha256:{ASSETS['vader-sentiment'].sha256}", editorials),
    # These numbers are those of peft's comparison of methods.
    "finewiki": PlainText(100, 768, f"hub:{REPOSITORY}@{REVISION}/{FILE}", articles),
}


def plain_tokens(name: TextName, model_input: TextInput) -> tuple[Tensor, ...]:
    """Returns the token ids of each document, int64 (tokens,). They are cached.

    Raises UserError if the text is not available, or if the tokens cannot be stored.
    """
    text = TEXTS[name]
    key: dict[str, Any] = {
        "source": text.source,
        "documents": text.documents,
        "tokens": min(text.tokens, model_input.max_tokens),
        "tokenizer_hash": model_input.tokenizer_hash,
        "model_type": model_input.model_type,
    }

    def build(folder: Path) -> None:
        documents = text.read(text.documents)
        with model_input.blaming():
            tokenizer = model_input.load_tokenizer()
            begin = beginning(tokenizer)
            rows = [
                begin + tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"]
                for document in documents
            ]
        cut = {f"{number:03}": torch.tensor(row[: key["tokens"]]) for number, row in enumerate(rows)}
        (folder / "text.safetensors").write_bytes(save(cut))

    try:
        tokens = load_file(prepared(f"text-{name}", key, build) / "text.safetensors")
    except UserError as error:
        raise UserError(
            f"forgetting is measured on the text '{name}', which is not there: {error}. With "
            "`forgetting: none` a suite goes without"
        ) from error
    return tuple(tokens[number] for number in sorted(tokens))
