"""The words for what a method can do, without torch: reports know them too."""

from __future__ import annotations

from enum import StrEnum


class Capability(StrEnum):
    """The words under which capabilities are stored and shown."""

    #: `merge` puts the update into the backbone's weights and changes no output; inference then costs nothing
    #: more than without the method.
    MERGES = "merges"
    #: Every update is a low-rank pair.
    EXPORTS = "exports as LoRA"
    #: A fresh adapter changes no output.
    ZERO_START = "exact zero start"
    #: Training moves biases of the adapted layers too.
    BIASES = "trained biases"
    #: It can be put on a model whose heads of key and value are shared and of a size of their own, and whose
    #: MLP is gated and of a width that is no multiple of the hidden size.
    UNEQUAL = "unequal shapes"
    #: Inference costs nothing more than without the method, also where it is not merged.
    FREE = "no cost unmerged"
    #: An example's outputs depend on the other examples of its batch.
    BATCH = "depends on the batch"
