"""Addresses of stores as messages show them.

This module is not a part of `tensorbench.store.connect`, because that imports MLflow, which takes seconds.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

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
