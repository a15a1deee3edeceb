"""Answers question 6 of results/leaderboard.md, train or Tucker, from the trials of stage 2."""

from __future__ import annotations

from dataclasses import replace
from operator import attrgetter
from pathlib import Path

from tensorbench.reports.blocks import Block
from tensorbench.reports.reading import read
from tensorbench.reports.selection import Selection

from .answer import Answer
from .registered import at_ends_of_pilot, completed, nothing_compared, qualified
from .studies import LORA, QKV_DEPTH, Ruling, after_tuning, analysed, answered

#: Two tensor trains for all matrices, a train for each matrix, and a CP tensor for all of them.
TRAIN, METATT, TT_LORA, LORTA = f"{QKV_DEPTH} (factorization=tt)", "MetaTT-4D", "TT-LoRA", "LoRTA"
#: The smallest and the largest rate that the pilot tries, and those that it tries for LoRTA.
ENDS_OF_PILOT = (5e-4, 5e-2, 5e-3, 0.5)


def of_trains(study: Path, trains: Path) -> Answer:
    """Answers question 6: the tensor train against Tucker, one train against many, and all against LoRA.

    The pack `trains` has the trials of stage 2, and `study` those of Tucker and LoRA.
    """
    if reason := nothing_compared(read("", [str(trains)]).all_cells, (LORA, QKV_DEPTH)):
        return Answer(f"**Nothing is compared**: {reason}")
    families = {QKV_DEPTH: (TRAIN,), TT_LORA: (TRAIN, METATT), LORA: (TRAIN, METATT, TT_LORA, LORTA)}
    selections = [Selection(methods=methods, reference=against) for against, methods in families.items()]
    analyses = [analysed(study, trains, selection=selection) for selection in selections]
    given = answered([(analysis, compared_by_name) for analysis in analyses])
    name = attrgetter("method")
    sentences = [*qualified(analyses, name), *at_ends_of_pilot(analyses, ENDS_OF_PILOT, name)]
    return completed(given, analyses[-1], sentences)


def compared_by_name(block: Block) -> Ruling:
    """Each method's difference from the reference. The answer names the reference."""
    ruling = after_tuning(block)
    return replace(ruling, short=f"Compared with {block.against}: {ruling.short}")
