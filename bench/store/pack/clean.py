"""Removes local paths and the names of users, machines and processes from data that are packed."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from tensorbench.records.origin import SourceFile
from tensorbench.records.words import PROVENANCE, Tag

#: Tags that are not packed. They name processes, machines or runs of one store, or repeat what suite.json
#: has.
STAYS = {Tag.OWNER, Tag.DRIVER, Tag.PARENT, Tag.ORIGIN, Tag.COMMITS}
_OWN_TAGS = {str(tag) for tag in Tag} - STAYS

#: A path in a text, from a root, a home or a drive. A URL such as `https://…` does not count.
_PATH = re.compile(
    r"(?:(?<![\w/:.~-])|(?<=file:)|(?<=file://))(?:~[\w.-]*|[A-Za-z]:)?[/\\](?:[^\s/\\'\"<>|:;,()]+[/\\])+"
)

#: The fields of a task's data and of its verbalizer that hold the user's words. They enter trials' ids, and
#: are no paths even if they begin like one: "/no_think {text}".
_WORDS = {
    "data": {
        *("prompt", "template", "answer_after", "classes", "separator", "unit"),
        *("text", "image", "label", "group", "split_by"),
    },
    "verbalizer": {"prompt", "words"},
}


def kept_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Selects the tags to pack and sorts them by key.

    The tags of provenance and the tags in `Tag` are packed, except those in `STAYS`. MLflow's other tags name
    users and files. Folders and the machine's name are removed from the message of a failure.
    """
    kept = {key: value for key, value in tags.items() if key in _OWN_TAGS or key.startswith(PROVENANCE)}
    if Tag.FAILURE_MESSAGE in kept:
        message, host = kept[Tag.FAILURE_MESSAGE], re.split("[/:]", tags.get(Tag.OWNER, ""))[0]
        # The name of an unpacked run's machine was removed when the run was packed.
        if host and Tag.ORIGIN not in tags:
            message = re.sub(rf"\b{re.escape(host)}\b", "…", message)
        kept[Tag.FAILURE_MESSAGE] = without_folders(message)
    return dict(sorted(kept.items()))


def without_folders(text: str) -> str:
    """Replaces the folders of each path in a text by `…/`."""
    return _PATH.sub("…/", text)


def clean_json(content: bytes) -> bytes:
    """Replaces local paths in a JSON file's content by `./NAME`. Returns it unchanged if there are none."""
    parsed = json.loads(content.decode())
    cleaned = _cleaned(parsed)
    return content if cleaned == parsed else json.dumps(cleaned, indent=1).encode()


def _cleaned(value: Any, words: Collection[str] = ()) -> Any:
    """Cleans a value and all that it holds, except the values of the keys in `words`."""
    if isinstance(value, dict):
        if value.keys() >= SourceFile.model_fields.keys() - {"cleaned"} and isinstance(value["text"], str):
            # The stored hash of a suite stays that of the original text.
            text = without_folders(value["text"])
            return value if text == value["text"] else value | {"text": text, "cleaned": True}
        return {
            key: inner if key in words else _cleaned(inner, _WORDS.get(key, ()))
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [_cleaned(inner) for inner in value]
    if isinstance(value, str) and re.match(r"(file://)?(~[\w.-]*|[A-Za-z]:)?[/\\]", value):
        return "./" + re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return value
