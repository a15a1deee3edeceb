"""The machinery shared by all methods whose update is a low-rank pair for each site.

A method defines its parameters and their contraction to factors (a `Parametrisation`); injection and forward
are here. Factors are contracted once per forward of the whole backbone, in at least float32 and outside
autocast, and no dense update is built.
"""

from methods.lowrank.adapter import LowRankAdapter
from methods.lowrank.contracted import Contracted, Diagonal, Matrix, OwnPairs, Parametrisation
from methods.lowrank.linear import AdaptedLinear, DropoutAt
from methods.lowrank.masks import Masks
from methods.lowrank.method import CutMethod, LowRankMethod, SharedHeads, StackedMethod

__all__ = [
    "AdaptedLinear",
    "Contracted",
    "CutMethod",
    "Diagonal",
    "DropoutAt",
    "LowRankAdapter",
    "LowRankMethod",
    "Masks",
    "Matrix",
    "OwnPairs",
    "Parametrisation",
    "SharedHeads",
    "StackedMethod",
]
