"""Text that no task trains on, by which forgetting is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from bench.inputs import TextInput
from bench.sources.assets import prepared
from bench.sources.pinned import ASSETS
from bench.sources.wiki import FILE, REPOSITORY, REVISION, articles
from bench.tasks.prompts import beginning
from bench.tasks.vader import rows
from methods.errors import UserError

TextName = Literal["newspapers", "finewiki"]


@dataclass(frozen=True)
class PlainText:
    """The beginnings of the first `documents` documents of a source, each of at most `tokens` tokens.

    `source` names the content for good.
    """

    documents: int
    tokens: int
    source: str
    read: Callable[[int], Sequence[str]]


def editorials(count: int) -> list[str]:
    """The first editorials of the New York Times in VADER's archive, their sentences put together again."""
    sentences = ((source.partition("_")[0], text) for source, _, text in rows("nytEditorialSnippets"))
    whole = [" ".join(text for _, text in some) for _, some in groupby(sentences, lambda pair: pair[0])]
    return whole[:count]


TEXTS: dict[TextName, PlainText] = {
    "newspapers": PlainText(32, 128, f"sha256:{ASSETS['vader-sentiment'].sha256}", editorials),
    # As in the comparison of methods that peft publishes.
    "finewiki": PlainText(100, 768, f"hub:{REPOSITORY}@{REVISION}/{FILE}", articles),
}


def plain_tokens(name: TextName, wanted: TextInput) -> tuple[Tensor, ...]:
    """The token ids of each document, (tokens,), begun as the tokenizer begins a text; kept in the cache.

    Raises UserError where the text cannot be had or stored.
    """
    text = TEXTS[name]
    key: dict[str, Any] = {
        "source": text.source,
        "documents": text.documents,
        "tokens": min(text.tokens, wanted.max_tokens),
        "tokenizer_hash": wanted.tokenizer_hash,
    }

    def build(folder: Path) -> None:
        documents = text.read(text.documents)
        with wanted.blaming():
            tokenizer = wanted.load_tokenizer()
            begin = beginning(tokenizer)
            found = [
                begin + tokenizer(one, add_special_tokens=False, verbose=False)["input_ids"]
                for one in documents
            ]
        cut = {f"{number:03}": torch.tensor(row[: key["tokens"]]) for number, row in enumerate(found)}
        (folder / "text.safetensors").write_bytes(save(cut))

    try:
        found = load_file(prepared(f"text-{name}", key, build) / "text.safetensors")
    except UserError as error:
        raise UserError(
            f"forgetting is measured on the text '{name}', which is not there: {error}. With "
            "`forgetting: none` a suite goes without"
        ) from error
    return tuple(found[number] for number in sorted(found))
