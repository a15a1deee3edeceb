"""Tests the lower bounds of a training step: the count of multiplications, and the training of one bias."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tensorbench.backbones import LoadedBackbone, load
from tensorbench.methods import Site, create
from tensorbench.tools.floor import OneBias, multiplications


class Update(nn.Module):
    """Computes x·W and adds x·A·B in place, as adapted layers do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.randn(8, 5)
        self.down, self.up = nn.Parameter(torch.randn(8, 3)), nn.Parameter(torch.randn(3, 5))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight).addmm_(x @ self.down, self.up)

    def extra_loss(self) -> Tensor:
        """A product of two matrices: 3·3·8 multiplications forward, and as many backward for each matrix."""
        return (self.down.T @ self.down).sum()

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.parameters())}]


def test_products_in_place_and_of_the_methods_own_loss_count() -> None:
    made: Any = Update()
    inputs = {"x": torch.randn(7, 8)}
    forward = 7 * 8 * 5 + 7 * 8 * 3 + 7 * 3 * 5
    # Gradients of up, of the activation before it and of down; weight and input have none.
    backward = 2 * 7 * 3 * 5 + 7 * 8 * 3
    assert multiplications(made, made, inputs, torch.zeros(7, dtype=torch.long)) == (
        forward + backward + 3 * (3 * 3 * 8)
    )
    assert all(parameter.grad is None for parameter in made.parameters())


def counted(backbone: LoadedBackbone, rank: int) -> int:
    adapter = create("lora", rank=rank).attach(backbone, torch.Generator().manual_seed(0))
    inputs = {"pixel_values": torch.randn(2, 3, 32, 32)}
    try:
        return multiplications(backbone.module, adapter, inputs, torch.zeros(2, dtype=torch.long))
    finally:
        adapter.detach()


def test_each_rank_adds_six_products_per_site_to_lora() -> None:
    backbone = load("tiny-random-vit")
    tokens, hidden, sites, layers = 2 * 17, 32, 3, 2
    # Two products forward, two backward for the factors and two for their inputs. The input of the first
    # layer's downs needs no gradient.
    products = 6 * sites * layers - sites
    assert counted(backbone, 5) - counted(backbone, 3) == 2 * tokens * hidden * products


def test_a_backbone_without_biases_has_one_while_the_floor_is_attached() -> None:
    backbone = load("tiny-random-llama")
    before = backbone.fingerprint()
    query = backbone.module.get_submodule(backbone.path(Site(0, "query")))
    assert query.bias is None
    floor = OneBias(backbone)
    assert floor.parameter_count == len(query.bias) == 36
    tokens = torch.ones(1, 4, dtype=torch.long)
    backbone.module(input_ids=tokens, attention_mask=tokens).sum().backward()
    assert query.bias.grad is not None
    floor.detach()
    assert query.bias is None
    assert backbone.fingerprint() == before
