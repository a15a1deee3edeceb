"""CoLA and MRPC of GLUE (Wang et al., 2019). Its test labels are hidden: the development set is the test."""

from __future__ import annotations

from bench.tasks.hub import HubTexts


class _Glue(HubTexts):
    repository = "nyu-mll/glue"
    parts = {"train": "train", "validation": "test"}
    fractions = (90, 10, 0)


class Cola(_Glue):
    """Warstadt et al., 2019: 8,551 sentences from the linguistics literature, 1,043 to test on."""

    name = config = "cola"
    columns = ("sentence",)
    classes = ("unacceptable", "acceptable")
    metric = "matthews"
    description = "English sentences, grammatically acceptable or not"
    license = "not stated; the sentences are quoted from published literature"


class Mrpc(_Glue):
    """Dolan and Brockett, 2005: 3,668 pairs of sentences from the news, 408 to test on."""

    name = config = "mrpc"
    columns = ("sentence1", "sentence2")
    classes = ("not_equivalent", "equivalent")
    description = "pairs of sentences from the news, the second a paraphrase of the first or not"
    license = "Microsoft Research's, for research"


COLA, MRPC = Cola(), Mrpc()
