"""Cleans what is packed of local paths, users, hosts and processes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from bench.records.origin import SourceFile
from bench.records.words import PROVENANCE, Tag

#: Tags that stay behind: they name processes, machines and runs of the one store.
STAYS = {Tag.OWNER, Tag.DRIVER, Tag.PARENT, Tag.ORIGIN}
_KNOWN = {str(tag) for tag in Tag} - STAYS

#: A path from a root, a home or a drive, in a text; what stands after a scheme (`https://…`) is none.
_PATH = re.compile(
    r"(?:(?<![\w/:.~-])|(?<=file:)|(?<=file://))(?:~[\w.-]*|[A-Za-z]:)?[/\\](?:[^\s/\\'\"<>|:;,()]+[/\\])+"
)


def kept_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """The tags that travel, in the order of their keys. MLflow's own name users and files."""
    kept = {key: value for key, value in tags.items() if key in _KNOWN or key.startswith(PROVENANCE)}
    if Tag.FAILURE_MESSAGE in kept:
        kept[Tag.FAILURE_MESSAGE] = without_folders(_without_host(kept[Tag.FAILURE_MESSAGE], tags))
    return dict(sorted(kept.items()))


def _without_host(text: str, tags: Mapping[str, str]) -> str:
    """The text without the name of the run's machine. A run from a pack has none."""
    host = re.split("[/:]", tags.get(Tag.OWNER, ""))[0]
    return re.sub(rf"\b{re.escape(host)}\b", "…", text) if host and Tag.ORIGIN not in tags else text


def without_folders(text: str) -> str:
    """The text with `…/` for the folders of each path in it."""
    return _PATH.sub("…/", text)


def clean_json(content: bytes) -> bytes:
    """A JSON file with `./NAME` in place of local paths. The same bytes if it has none."""
    parsed = json.loads(content)
    cleaned = _cleaned(parsed)
    return content if cleaned == parsed else json.dumps(cleaned, indent=1).encode()


def _cleaned(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() >= SourceFile.model_fields.keys() - {"cleaned"} and isinstance(value["text"], str):
            return _cleaned_source(value)
        return {key: _cleaned(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_cleaned(inner) for inner in value]
    if isinstance(value, str) and re.match(r"(file://)?(~[\w.-]*|[A-Za-z]:)?[/\\]", value):
        return "./" + re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return value


def _cleaned_source(file: dict[str, Any]) -> dict[str, Any]:
    """The text of a suite or a lock without folders. Its stored hash is of the original."""
    text = without_folders(file["text"])
    return file if text == file["text"] else file | {"text": text, "cleaned": True}
