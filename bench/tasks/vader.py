"""VADER's archive: sentences that 20 people rated each, -4 to 4 (Hutto and Gilbert, ICWSM 2014)."""

from __future__ import annotations

import html
import tarfile

from bench.sources.assets import fetch


def rows(member: str) -> list[tuple[str, float, str]]:
    """Source, mean rating and text of each row of a file of the archive. Raises UserError without it."""
    folder = fetch("vader-sentiment") / "vaderSentiment-3.3.2" / "additional_resources"
    with tarfile.open(folder / "hutto_ICWSM_2014.tar.gz") as archive:
        file = archive.extractfile(f"hutto_ICWSM_2014/{member}_GroundTruth.txt")
        assert file is not None  # a regular file of an archive whose hash is pinned
        lines = file.read().decode("utf-8").split("\n")
    fields = (line.rstrip("\r").split("\t", 2) for line in lines if line)
    return [(source, float(rating), html.unescape(text).strip()) for source, rating, text in fields]
