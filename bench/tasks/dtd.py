"""The Describable Textures Dataset (Cimpoi et al., 2014): 47 textures, 120 photographs each."""

from __future__ import annotations

from bench.tasks.hub import HubImages

_TEXTURES = """
banded blotchy braided bubbly bumpy chequered cobwebbed cracked crosshatched crystalline dotted fibrous
flecked freckled frilly gauzy grid grooved honeycombed interlaced knitted lacelike lined marbled matted meshed
paisley perforated pitted pleated polka-dotted porous potholed scaly smeared spiralled sprinkled stained
stratified striped studded swirly veined waffled woven wrinkled zigzagged
"""


class Dtd(HubImages):
    """Partition 1 of the ten official ones: 1,880 photographs for each of train, validation and test."""

    name = "dtd"
    repository = "HuggingFaceM4/DTD_Describable-Textures-Dataset"
    config = "partition_1"
    parts = {"train": "train", "validation": "validation", "test": "test"}
    classes = tuple(_TEXTURES.split())
    fractions = (100, 0, 0)
    description = "photographs of 47 textures, partition 1"
    license = "for research, by its page"


class DtdMerged(Dtd):
    """Partition 1 with its official train and validation as one: 3,760, of which validation is dealt."""

    name = "dtd-merged"
    repository = "tanganke/dtd"
    config = ""
    parts = {"train": "train", "validation": "train", "test": "test"}
    #: There the two are one file already.
    optional = frozenset({"validation"})
    fractions = (90, 10, 0)
    description = "photographs of 47 textures, partition 1, its train and validation merged"


DTD, DTD_MERGED = Dtd(), DtdMerged()
