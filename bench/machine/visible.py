"""Escapes untrusted text, so that it cannot deceive in a terminal or on a page."""

from __future__ import annotations

import re

#: Matches characters that control a terminal, characters that reverse text or are invisible (so that a name
#: can look like another), and lone surrogates, which cannot be written.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff"
    "\ufff9-\ufffb\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    r"""Replaces control characters and invisible ones by codes such as `\u202e`. Tabs and newlines stay."""

    def escaped(match: re.Match[str]) -> str:
        code = ord(match[0])
        return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

    return _HIDDEN.sub(escaped, text)


#: Matches the beginnings of mentions, references and addresses, which GitHub turns into links.
_LINKED = re.compile(r"(@(?=\w)|#(?=\d)|\bGH-(?=\d)|:(?=//)|\bwww(?=\.))", re.IGNORECASE)

#: Matches the beginning of a line that Markdown would show as a heading or a list item.
_BEGINNING = re.compile(r"^(\d*)([#+.)-])(?=[ #-]|$)")


def markdown_text(text: str) -> str:
    """Escapes all characters of a text that mean something in Markdown or HTML, and puts it on one line.

    Zero-width spaces keep GitHub from making links of the text and from notifying people it names.
    """
    text = re.sub(r"([\\`*_\[\]|~])", r"\\\1", " ".join(visible(text).split()))
    text = _BEGINNING.sub(r"\1\\\2", text)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _LINKED.sub(r"\1&#8203;", text)
