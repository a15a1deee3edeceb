"""The shared machinery of every method whose update is a low-rank pair for each site.

A method states its parameters and how they contract to factors (a `Parametrisation`); everything else, from
injection to the forward, is here. The factors are contracted once for each forward of the whole backbone, in
float32 and outside autocast, and no dense update is built.
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
