"""Addresses of stores: hides secrets in them, and checks that a local store exists.

This module is not a part of `tensorbench.store.connect`, because that imports MLflow, which takes seconds.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from tensorbench.methods.errors import UserError
from tensorbench.records.pack_format import ENDING

#: The endings of suites' files.
SUITE_ENDINGS = (".yaml", ".yml")

#: Patterns of user names and secrets in an address: before the host, where a password may contain a slash,
#: and in the query.
_BEFORE_HOST = re.compile(r"://(?:[^/\s:@]*:\S*|[^/\s]*)@")
_IN_QUERY = re.compile(r"([?&;])([^=&;\s]+)=[^&\s]*")
#: The pattern of user names in messages of databases, such as `role "me" does not exist` or `Access denied
#: for user 'me'`.
_NAMED = re.compile(r"""\b(role|user) (["'])[^"']*\2""")
_SECRET = re.compile("user|pass|pwd|token|secret|key|auth|cred|sig|odbc_connect", re.IGNORECASE)


def shown_uri(text: str) -> str:
    """Removes user names, passwords and tokens from a store's address, or from an error that contains it."""

    def hidden(option: re.Match[str]) -> str:
        before, name = option.groups()
        return f"{before}{name}=***" if _SECRET.search(unquote(name)) else option[0]

    return _NAMED.sub(r"\1 ***", _IN_QUERY.sub(hidden, _BEFORE_HOST.sub("://", text)))


def check_places(uri: str, *names: str) -> None:
    """Raises UserError if a SQLite store is missing, or if a file in `names` is neither a pack nor a suite.

    If all `names` are packs, the store need not exist. Opening a store finds these mistakes too, but takes
    seconds.
    """
    for name in names:
        if name.endswith(".zip") and not name.endswith(ENDING):
            raise UserError(f"{name}: the name of a pack ends with {ENDING}; rename the file")
        endings = (ENDING, *SUITE_ENDINGS)
        if Path(name).suffix and Path(name).is_file() and not name.endswith(endings):
            raise UserError(
                f"{name} is neither a pack nor a suite, whose names end with {', '.join(endings)}"
            )
    file = uri.removeprefix("sqlite:///")
    packs = bool(names) and all(name.endswith(ENDING) for name in names)
    if file != uri and not packs and "?" not in file and not Path(file or ".").exists():
        folder = next((name for name in names if name and Path(name).is_dir()), "")
        hint = f", and {folder} is a folder without results of other programs; name a table by its file"
        raise UserError(
            f"there is no store at {file}{hint * bool(folder)}; run a suite first, or name it with --store"
        )
