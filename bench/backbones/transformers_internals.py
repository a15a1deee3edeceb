"""What transformers has no public interface for. No other module uses private parts of transformers.

`tests/test_internals.py` checks each part against the installed transformers.
"""

from __future__ import annotations

from typing import Any


def attention_of(config: Any) -> str | None:
    """Returns the name of the attention implementation that a model's configuration has chosen."""
    name: str | None = getattr(config, "_attn_implementation", None)
    return name


def choose_attention(config: Any, name: str) -> None:
    """Makes a configuration choose an attention implementation, also that of a part of a composite model.

    `AutoConfig.from_pretrained` takes no such argument for a part, and `from_pretrained` of a model, which
    takes it, also loads weights.
    """
    config._attn_implementation = name
