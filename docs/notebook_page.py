"""Writes docs/notebook.md, which is not committed, from docs/start.ipynb: `python docs/notebook_page.py`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parent / "start.ipynb"
PAGE = NOTEBOOK.with_name("notebook.md")


def page() -> str:
    """The cells of the notebook with their stored outputs, in Markdown."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join(part for cell in cells for part in _parts(cell)) + "\n"


def _parts(cell: dict[str, Any]) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
        return
    yield f"```python\n{source}\n```"
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "text/html" in data:
            # In Markdown a blank line ends an HTML element.
            element = re.sub(r"\n\s*", " ", "".join(data["text/html"]))
            yield f"<div>{element}</div>"
        else:
            text = "".join(output.get("text") or data.get("text/plain", ""))
            yield f"```text\n{text.rstrip()}\n```"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
