"""Escapes invisible characters in untrusted text."""

from __future__ import annotations

import re

#: Control sequences of terminals, characters that reverse text or are invisible (which make one name look
#: like another), and lone surrogates, which cannot be written.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff"
    "\ufff9-\ufffb\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    r"""Writes control and invisible characters as `\u202e` and the like. Tabs and newlines stay."""
    return _HIDDEN.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def markdown_text(text: str) -> str:
    """Escapes a text so that it has no meaning in Markdown or HTML, on one line."""
    text = re.sub(r"([\\`*_\[\]|~])", r"\\\1", " ".join(visible(text).split()))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
