"""Tasks from the hub: GLUE, textures and satellite images."""

from __future__ import annotations

from functools import partial

from tensorbench.tasks.data_tasks import HubTask
from tensorbench.tasks.description import Description

_GLUE = partial(Description, hub="nyu-mll/glue", label="label")
_PAIR = ("sentence1", "sentence2")

#: A GLUE task (Wang et al., 2019). Test labels are hidden, so the development set is the test split.
_glue = partial(HubTask, parts={"train": "train", "validation": "test"}, fractions=(90, 10, 0))

#: Warstadt et al., 2019: sentences from linguistics literature.
COLA = _glue(
    "cola",
    _GLUE(config="cola", text="sentence", classes=("unacceptable", "acceptable"), metric="matthews"),
    description="English sentences, grammatically acceptable or not",
    license="not stated; the sentences are quoted from published literature",
)

#: Dolan and Brockett, 2005.
MRPC = _glue(
    "mrpc",
    _GLUE(config="mrpc", text=_PAIR, classes=("not_equivalent", "equivalent")),
    description="pairs of sentences from the news, the second a paraphrase of the first or not",
    license="Microsoft Research's, for research",
)

#: Socher et al., 2013: phrases for training, whole sentences for testing.
SST2 = _glue(
    "sst2",
    _GLUE(config="sst2", text="sentence", classes=("negative", "positive")),
    description="phrases from film reviews, negative or positive",
    license="not stated; the sentences are quoted from film reviews",
)

#: Cer et al., 2017. GLUE reports Pearson's and Spearman's correlation. This task uses Pearson's.
STSB = _glue(
    "stsb",
    _GLUE(config="stsb", text=_PAIR, target="regression", unit="points from 0 to 5"),
    description="pairs of sentences, by how similar people found them",
    license="CC-BY-SA-4.0",
)

#: Quora, 2017. GLUE reports accuracy and F1. This task uses accuracy.
QQP = _glue(
    "qqp",
    _GLUE(config="qqp", text=("question1", "question2"), classes=("not_duplicate", "duplicate")),
    description="pairs of questions, the second asking what the first asks or not",
    license="Quora's, for non-commercial use",
)

_MNLI = _GLUE(
    config="mnli", text=("premise", "hypothesis"), classes=("entailment", "neutral", "contradiction")
)
_PREMISES = "pairs of sentences, the second following from the first, contradicting it, or neither"

#: Williams et al., 2018, tested on the genres of the train split (matched).
MNLI = _glue(
    "mnli",
    _MNLI,
    parts={"train": "train", "validation_matched": "test"},
    description=_PREMISES,
    license="OANC's, free to use",
)

#: The training pairs of MNLI, tested on other genres (mismatched).
MNLI_MISMATCHED = _glue(
    "mnli-mm",
    _MNLI,
    parts={"train": "train", "validation_mismatched": "test"},
    description=f"{_PREMISES}; tested on other genres",
    license="OANC's, free to use",
)

#: Rajpurkar et al., 2016, in GLUE's form.
QNLI = _glue(
    "qnli",
    _GLUE(config="qnli", text=("question", "sentence"), classes=("entailment", "not_entailment")),
    description="questions with a sentence from Wikipedia that answers them or does not",
    license="CC-BY-SA-4.0",
)

#: Dagan et al., 2006, and later rounds of the challenge.
RTE = _glue(
    "rte",
    _GLUE(config="rte", text=_PAIR, classes=("entailment", "not_entailment")),
    description="pairs of sentences, the second following from the first or not",
    license="not stated; the sentences are from news and Wikipedia",
)

_TEXTURES = """
banded blotchy braided bubbly bumpy chequered cobwebbed cracked crosshatched crystalline dotted fibrous
flecked freckled frilly gauzy grid grooved honeycombed interlaced knitted lacelike lined marbled matted meshed
paisley perforated pitted pleated polka-dotted porous potholed scaly smeared spiralled sprinkled stained
stratified striped studded swirly veined waffled woven wrinkled zigzagged
"""

_IMAGES = partial(Description, image="image", label="label")
_photographs = partial(_IMAGES, classes=tuple(_TEXTURES.split()))

#: Cimpoi et al., 2014: the first of ten official partitions.
DTD = HubTask(
    "dtd",
    _photographs(hub="HuggingFaceM4/DTD_Describable-Textures-Dataset", config="partition_1"),
    parts={"train": "train", "validation": "validation", "test": "test"},
    fractions=(100, 0, 0),
    description="photographs of 47 textures, partition 1",
    license="for research, by its page",
)

#: DTD with its train and validation splits merged. The train file of this repository already contains both.
#: Other repositories may have a separate validation file.
DTD_MERGED = HubTask(
    "dtd-merged",
    _photographs(hub="tanganke/dtd"),
    parts={"train": "train", "validation": "train", "test": "test"},
    optional={"validation"},
    fractions=(90, 10, 0),
    description="photographs of 47 textures, partition 1, its train and validation merged",
    license="for research, by its page",
)

#: EuroSAT has no official split. It is dealt as usual: 80 percent for training and 20 for testing, with a
#: tenth of the 80 for validation.
EUROSAT = HubTask(
    "eurosat",
    _IMAGES(
        hub="timm/eurosat-rgb",
        classes=(
            *("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial"),
            *("Pasture", "PermanentCrop", "Residential", "River", "SeaLake"),
        ),
    ),
    parts={"train": None, "validation": None, "test": None},
    optional={"validation", "test"},
    fractions=(72, 8, 20),
    description="satellite images of 640 m of land, by what covers it",
    license="MIT, by its repository; Sentinel-2 data are free to use",
)
