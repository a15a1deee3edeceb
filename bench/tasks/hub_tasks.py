"""Tasks from the hub: GLUE, textures and satellite images."""

from __future__ import annotations

from bench.tasks.hub import HubImages, HubTexts


class _Glue(HubTexts):
    """A GLUE task (Wang et al., 2019). Test labels are hidden, so the development set is the test."""

    repository = "nyu-mll/glue"
    parts = {"train": "train", "validation": "test"}
    fractions = (90, 10, 0)


class Cola(_Glue):
    """CoLA (Warstadt et al., 2019): 8,551 sentences from linguistics literature, 1,043 for testing."""

    name = config = "cola"
    columns = ("sentence",)
    classes = ("unacceptable", "acceptable")
    metric = "matthews"
    description = "English sentences, grammatically acceptable or not"
    license = "not stated; the sentences are quoted from published literature"


class Mrpc(_Glue):
    """MRPC (Dolan and Brockett, 2005): 3,668 pairs of sentences from news, 408 for testing."""

    name = config = "mrpc"
    columns = ("sentence1", "sentence2")
    classes = ("not_equivalent", "equivalent")
    description = "pairs of sentences from the news, the second a paraphrase of the first or not"
    license = "Microsoft Research's, for research"


class Sst2(_Glue):
    """SST-2 (Socher et al., 2013): 67,349 phrases from film reviews, 872 sentences for testing."""

    name = config = "sst2"
    columns = ("sentence",)
    classes = ("negative", "positive")
    description = "phrases from film reviews, negative or positive"
    license = "not stated; the sentences are quoted from film reviews"


class Stsb(_Glue):
    """STS-B (Cer et al., 2017): 5,749 pairs of sentences, 1,500 for testing.

    The paper reports Pearson's and Spearman's correlation. The metric here is Pearson's.
    """

    name = config = "stsb"
    columns = ("sentence1", "sentence2")
    target = "regression"
    metric = "pearson"
    unit = "points from 0 to 5"
    description = "pairs of sentences, by how similar people found them"
    license = "CC-BY-SA-4.0"


class Qqp(_Glue):
    """QQP (Quora, 2017): 363,846 pairs of questions, 40,430 for testing. The paper also reports F1."""

    name = config = "qqp"
    columns = ("question1", "question2")
    classes = ("not_duplicate", "duplicate")
    description = "pairs of questions, the second asking what the first asks or not"
    license = "Quora's, for non-commercial use"


class Mnli(_Glue):
    """MNLI matched (Williams et al., 2018): 392,702 pairs, 9,815 for testing, in the genres of train."""

    name = "mnli"
    config = "mnli"
    columns = ("premise", "hypothesis")
    parts = {"train": "train", "validation_matched": "test"}
    classes = ("entailment", "neutral", "contradiction")
    description = "pairs of sentences, the second following from the first, contradicting it, or neither"
    license = "OANC's, free to use"


class MnliMismatched(Mnli):
    """MNLI mismatched: the same training pairs, 9,832 for testing in other genres."""

    name = "mnli-mm"
    parts = {"train": "train", "validation_mismatched": "test"}
    description = f"{Mnli.description}; tested on other genres"


class Qnli(_Glue):
    """QNLI (Rajpurkar et al., 2016, in GLUE's form): 104,743 pairs, 5,463 for testing."""

    name = config = "qnli"
    columns = ("question", "sentence")
    classes = ("entailment", "not_entailment")
    description = "questions with a sentence from Wikipedia that answers them or does not"
    license = "CC-BY-SA-4.0"


class Rte(_Glue):
    """RTE (Dagan et al., 2006, and its successors): 2,490 pairs, 277 for testing."""

    name = config = "rte"
    columns = ("sentence1", "sentence2")
    classes = ("entailment", "not_entailment")
    description = "pairs of sentences, the second following from the first or not"
    license = "not stated; the sentences are from news and Wikipedia"


COLA, MRPC, SST2, STSB, QQP = Cola(), Mrpc(), Sst2(), Stsb(), Qqp()
MNLI, MNLI_MISMATCHED, QNLI, RTE = Mnli(), MnliMismatched(), Qnli(), Rte()


_TEXTURES = """
banded blotchy braided bubbly bumpy chequered cobwebbed cracked crosshatched crystalline dotted fibrous
flecked freckled frilly gauzy grid grooved honeycombed interlaced knitted lacelike lined marbled matted meshed
paisley perforated pitted pleated polka-dotted porous potholed scaly smeared spiralled sprinkled stained
stratified striped studded swirly veined waffled woven wrinkled zigzagged
"""


class Dtd(HubImages):
    """Partition 1 of DTD's ten official ones: 1,880 photographs each for train, validation and test."""

    name = "dtd"
    repository = "HuggingFaceM4/DTD_Describable-Textures-Dataset"
    config = "partition_1"
    parts = {"train": "train", "validation": "validation", "test": "test"}
    classes = tuple(_TEXTURES.split())
    fractions = (100, 0, 0)
    description = "photographs of 47 textures, partition 1"
    license = "for research, by its page"


class DtdMerged(Dtd):
    """DTD's partition 1 with train and validation merged: 3,760, from which validation is dealt."""

    name = "dtd-merged"
    repository = "tanganke/dtd"
    config = ""
    parts = {"train": "train", "validation": "train", "test": "test"}
    #: In this repository, train and validation are one file already.
    optional = frozenset({"validation"})
    fractions = (90, 10, 0)
    description = "photographs of 47 textures, partition 1, its train and validation merged"


DTD, DTD_MERGED = Dtd(), DtdMerged()


class EuroSat(HubImages):
    """EuroSAT: 27,000 patches of 64×64 pixels. No split was published, so all patches are dealt."""

    name = "eurosat"
    repository = "timm/eurosat-rgb"
    parts = {"train": None, "validation": None, "test": None}
    optional = frozenset({"validation", "test"})
    classes = (
        *("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial"),
        *("Pasture", "PermanentCrop", "Residential", "River", "SeaLake"),
    )
    #: The usual 80 / 20, with a tenth of the 80 for validation.
    fractions = (72, 8, 20)
    description = "satellite images of 640 m of land, by what covers it"
    license = "MIT, by its repository; Sentinel-2 data are free to use"


EUROSAT = EuroSat()
