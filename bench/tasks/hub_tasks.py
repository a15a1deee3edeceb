"""Tasks from the hub: GLUE, textures and satellite images."""

from __future__ import annotations

from tensorbench.tasks.hub import HubImages, HubTexts


class _Glue(HubTexts):
    """A GLUE task (Wang et al., 2019). Test labels are hidden, so the development set is the test split."""

    repository = "nyu-mll/glue"
    parts = {"train": "train", "validation": "test"}
    fractions = (90, 10, 0)


class Cola(_Glue):
    """CoLA (Warstadt et al., 2019): sentences from linguistics literature.

    8,551 are for training and validation, 1,043 for testing.
    """

    name = config = "cola"
    columns = ("sentence",)
    classes = ("unacceptable", "acceptable")
    metric = "matthews"
    description = "English sentences, grammatically acceptable or not"
    license = "not stated; the sentences are quoted from published literature"


class Mrpc(_Glue):
    """MRPC (Dolan and Brockett, 2005): pairs of sentences from the news.

    3,668 are for training and validation, 408 for testing.
    """

    name = config = "mrpc"
    columns = ("sentence1", "sentence2")
    classes = ("not_equivalent", "equivalent")
    description = "pairs of sentences from the news, the second a paraphrase of the first or not"
    license = "Microsoft Research's, for research"


class Sst2(_Glue):
    """SST-2 (Socher et al., 2013): texts from film reviews.

    67,349 phrases are for training and validation, 872 sentences for testing.
    """

    name = config = "sst2"
    columns = ("sentence",)
    classes = ("negative", "positive")
    description = "phrases from film reviews, negative or positive"
    license = "not stated; the sentences are quoted from film reviews"


class Stsb(_Glue):
    """STS-B (Cer et al., 2017): pairs of sentences.

    5,749 are for training and validation, 1,500 for testing. GLUE reports Pearson's and Spearman's
    correlation. This task uses Pearson's.
    """

    name = config = "stsb"
    columns = ("sentence1", "sentence2")
    target = "regression"
    metric = "pearson"
    unit = "points from 0 to 5"
    description = "pairs of sentences, by how similar people found them"
    license = "CC-BY-SA-4.0"


class Qqp(_Glue):
    """QQP (Quora, 2017): pairs of questions.

    363,846 are for training and validation, 40,430 for testing. GLUE reports accuracy and F1. This task uses
    accuracy.
    """

    name = config = "qqp"
    columns = ("question1", "question2")
    classes = ("not_duplicate", "duplicate")
    description = "pairs of questions, the second asking what the first asks or not"
    license = "Quora's, for non-commercial use"


class Mnli(_Glue):
    """MNLI (Williams et al., 2018): pairs of sentences, tested on the genres of the train split (matched).

    392,702 are for training and validation, 9,815 for testing.
    """

    name = "mnli"
    config = "mnli"
    columns = ("premise", "hypothesis")
    parts = {"train": "train", "validation_matched": "test"}
    classes = ("entailment", "neutral", "contradiction")
    description = "pairs of sentences, the second following from the first, contradicting it, or neither"
    license = "OANC's, free to use"


class MnliMismatched(Mnli):
    """MNLI with the same training pairs as `Mnli`, tested on 9,832 pairs of other genres (mismatched)."""

    name = "mnli-mm"
    parts = {"train": "train", "validation_mismatched": "test"}
    description = f"{Mnli.description}; tested on other genres"


class Qnli(_Glue):
    """QNLI (Rajpurkar et al., 2016, in GLUE's form): pairs of a question and a sentence.

    104,743 are for training and validation, 5,463 for testing.
    """

    name = config = "qnli"
    columns = ("question", "sentence")
    classes = ("entailment", "not_entailment")
    description = "questions with a sentence from Wikipedia that answers them or does not"
    license = "CC-BY-SA-4.0"


class Rte(_Glue):
    """RTE (Dagan et al., 2006, and later rounds of the challenge): pairs of sentences.

    2,490 are for training and validation, 277 for testing.
    """

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
    """DTD (Cimpoi et al., 2014): photographs of 47 textures, in the first of ten official partitions.

    Train, validation and test have 1,880 photographs each.
    """

    name = "dtd"
    repository = "HuggingFaceM4/DTD_Describable-Textures-Dataset"
    config = "partition_1"
    parts = {"train": "train", "validation": "validation", "test": "test"}
    classes = tuple(_TEXTURES.split())
    fractions = (100, 0, 0)
    description = "photographs of 47 textures, partition 1"
    license = "for research, by its page"


class DtdMerged(Dtd):
    """DTD with the train and validation splits of `Dtd` merged to 3,760 photographs.

    A tenth of them is dealt to validation.
    """

    name = "dtd-merged"
    repository = "tanganke/dtd"
    config = ""
    parts = {"train": "train", "validation": "train", "test": "test"}
    #: This repository has train and validation in one file already, so its validation split may be absent.
    optional = frozenset({"validation"})
    fractions = (90, 10, 0)
    description = "photographs of 47 textures, partition 1, its train and validation merged"


DTD, DTD_MERGED = Dtd(), DtdMerged()


class EuroSat(HubImages):
    """EuroSAT: 27,000 satellite images of 64×64 pixels. It has no official split, so all images are dealt."""

    name = "eurosat"
    repository = "timm/eurosat-rgb"
    parts = {"train": None, "validation": None, "test": None}
    optional = frozenset({"validation", "test"})
    classes = (
        *("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial"),
        *("Pasture", "PermanentCrop", "Residential", "River", "SeaLake"),
    )
    #: The usual 80 percent for training and 20 for testing, with a tenth of the 80 for validation.
    fractions = (72, 8, 20)
    description = "satellite images of 640 m of land, by what covers it"
    license = "MIT, by its repository; Sentinel-2 data are free to use"


EUROSAT = EuroSat()
