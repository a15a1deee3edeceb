"""Text that somebody else wrote, with the characters that nobody sees spelled out."""

from __future__ import annotations

import re

#: What moves a terminal's cursor or colours it, and what turns the direction of text around, so that a name
#: reads as another one.
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    r"""The text with controls as `\u202e`; tabs and ends of lines stay."""
    return _HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def markdown_text(text: str) -> str:
    """Text without meaning to Markdown or HTML, on one line."""
    text = re.sub(r"([\\`*_\[\]|~])", r"\\\1", " ".join(visible(text).split()))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
