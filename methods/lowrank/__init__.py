"""The code that is shared by all methods whose update is a low-rank pair at each site.

A low-rank pair consists of a down factor (r, in) and an up factor (out, r); the update is up @ down. A method
defines a `Parametrisation`: its parameters, and how they are contracted (multiplied out) to these factors.
This package puts the layers on the backbone and computes their forward.

Factors are contracted once per forward of the whole backbone, in at least float32 and outside autocast. No
dense update is built, unless dropout applies to the entries of the update (see `DropoutAt`).
"""

from tensorbench.methods.lowrank.adapter import LowRankAdapter
from tensorbench.methods.lowrank.contracted import Contracted, Diagonal, Matrix, OwnPairs, Parametrisation
from tensorbench.methods.lowrank.linear import AdaptedLinear, DropoutAt
from tensorbench.methods.lowrank.masks import Masks
from tensorbench.methods.lowrank.method import LowRankMethod, SharedEnds, SharedHeads, StackedMethod

__all__ = [
    "AdaptedLinear",
    "Contracted",
    "Diagonal",
    "DropoutAt",
    "LowRankAdapter",
    "LowRankMethod",
    "Masks",
    "Matrix",
    "OwnPairs",
    "Parametrisation",
    "SharedEnds",
    "SharedHeads",
    "StackedMethod",
]
