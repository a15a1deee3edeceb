"""LoHa as Khatri-Rao pairs (peft, pull request 3560): LoHa without a dense update in its forward."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import nn

from tensorbench.baselines.abba import HadamardMethod, HadamardPairs
from tensorbench.methods.backbone import Geometry
from tensorbench.methods.sizes import AnyTargets
from tensorbench.methods.validation import Scale


class KhatriRaoLoHa(HadamardMethod):
    """y = W·x + b + scale/rank · ((B₁·A₁) ⊙ (B₂·A₂))·x, equal to LoRA at the start.

    Start: B₁ zero, and A₁ uniform in ±1/√in. B₂ has ones in its first column and zeros elsewhere. A₂ has ones
    in its first row and is normal with standard deviation 1/√in elsewhere. So B₂·A₂ is all ones. Weight decay
    would pull these ones to zero. The rank of the update is at most rank². The reference code has no
    dropout.
    """

    name: ClassVar[str] = "loha_kr"
    title: ClassVar[str] = "LoHa-KR"
    divided_by_rank: ClassVar[bool] = True

    targets: AnyTargets = "qv"
    #: LoRA's alpha. It is divided by the rank.
    scale: Scale = 8.0

    def parametrise(self, geometry: Geometry, generator: torch.Generator) -> HadamardPairs:
        pairs = HadamardPairs(self, geometry)
        with torch.no_grad():
            for name, wide in pairs.A1.items():
                spread = 1 / math.sqrt(wide.shape[-1])
                nn.init.uniform_(wide, -spread, spread, generator=generator)
                nn.init.normal_(pairs.A2[name], std=spread, generator=generator)
                pairs.A2[name][:, 0] = 1
                pairs.B2[name][:, :, 0] = 1
        return pairs
