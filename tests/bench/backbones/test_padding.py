"""Tests that a step reads no mask from the device, and that results are those of masks that were read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tensorbench.backbones import LoadedBackbone, pooling
from tensorbench.backbones.answers import Answers, Writer
from tensorbench.backbones.kinds import KINDS
from tensorbench.backbones.padding import ANY_SIDE, RIGHT, padded
from tensorbench.checks.conformance.subject import load_tiny
from tensorbench.tasks import TextSplit
from tensorbench.tasks.splits import WrittenSplit

TEXTS = [name for name, kind in KINDS.items() if kind.reads == "texts"]


def loaded(kind: str) -> LoadedBackbone:
    """Returns a tiny backbone. If it attends within windows, they are shorter than the texts."""
    made = load_tiny(kind)
    config = made.module.encoder.config
    for field, value in {"sliding_window": 4, "local_attention": 8}.items():
        if getattr(config, field, None) is not None:
            setattr(config, field, value)
    made.reset(2, torch.Generator().manual_seed(0))
    made.module.requires_grad_(True)
    return made


def split(*lengths: int) -> WrittenSplit:
    sizes = torch.tensor(lengths)
    tokens = torch.randint(3, 60, (sum(lengths),), generator=torch.Generator().manual_seed(1))
    base = TextSplit(
        tokens.int(), sizes.cumsum(0) - sizes, sizes, torch.ones(len(sizes)), torch.arange(len(sizes)), 1
    )
    return WrittenSplit(**vars(base), prompts=sizes // 2, answers=("a",) * len(sizes))


def batch(of: WrittenSplit, *, scored: bool = False) -> dict[str, Tensor]:
    made = of.batch(torch.arange(len(of)))
    return made if scored else {name: value for name, value in made.items() if name != "scored"}


@pytest.mark.parametrize("lengths", [(3, 12, 7), (12, 12, 12)], ids=["padded", "equal"])
@pytest.mark.parametrize("kind", TEXTS)
def test_outputs_and_gradients_are_those_of_a_mask_that_was_read(kind: str, lengths: tuple[int, ...]) -> None:
    backbone = loaded(kind)
    module, config = backbone.module.eval(), backbone.module.encoder.config
    before, results = config._attn_implementation, []
    for side in (ANY_SIDE, RIGHT):
        module.zero_grad(set_to_none=True)
        with padded(module.encoder, side):
            outputs = module(**batch(split(*lengths)))
            outputs.square().sum().backward()
        gradients = {name: value.grad for name, value in module.named_parameters() if value.grad is not None}
        results.append((outputs.detach(), gradients))
        assert config._attn_implementation == before
    (expected, gradients), (actual, others) = results
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(others, gradients)
    assert gradients


class Wheres(TorchDispatchMode):
    """Counts choices between values, by which attention makes a mask of a boolean one."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function.overloadpacket.__name__ == "where"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("rounded", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra", "t5"])
def test_the_layers_of_an_encoder_share_a_mask(
    kind: str, rounded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, results = loaded(kind).module.eval(), []
    for mask in (pooling._for_every_query, lambda encoder, mask: mask[:, None, None, :].bool()):
        monkeypatch.setattr(pooling, "_for_every_query", mask)
        with Wheres() as wheres, torch.autocast("cpu", torch.bfloat16, enabled=rounded):
            outputs = module(**batch(split(3, 12, 7)))
        results.append((outputs, wheres.count))
    (shared, few), (by_layer, many) = results
    assert torch.equal(shared, by_layer)
    assert few < many


def words(backbone: LoadedBackbone) -> None:
    backbone.module.answers = Answers([(5, 6), (5, 7), (8, 9)], None)


def writer(backbone: LoadedBackbone) -> None:
    backbone.module.answers = Writer(None, None, 2, 16)


@pytest.mark.parametrize(
    ("kind", "answers"),
    [*((kind, None) for kind in TEXTS), ("llama", words), ("llama", writer), ("gemma3_text", writer)],
)
def test_no_forward_or_backward_pass_reads_from_the_device(kind: str, answers: Any) -> None:
    backbone, texts = loaded(kind), split(3, 12, 7)
    if answers:
        answers(backbone)
        backbone.module.head = nn.Identity()
    # Tensors on this device have no values, and raise if one is read.
    module = backbone.module.train().to("meta")
    inputs = batch(texts.to("meta"), scored=answers is writer)
    with padded(module.encoder, RIGHT):
        module(**inputs).sum().backward()
    if kind in ("llama", "modernbert"):
        with padded(module.encoder, ANY_SIDE), pytest.raises(RuntimeError, match="meta"):
            module(**inputs)


def test_prompts_are_padded_on_the_left_while_a_model_writes() -> None:
    backbone, texts = loaded("llama"), split(6, 14, 7)
    config = backbone.module.encoder.config
    seen = []
    backbone.module.encoder.register_forward_pre_hook(lambda *_: seen.append(config._attn_implementation))

    class Tokenizer:
        eos_token_id = 2

        def decode(self, ids: list[int], **_: Any) -> list[int]:
            return ids

    writing = Writer(Tokenizer(), None, 2, 16)
    prompts = texts.prompt_batch(torch.arange(3))
    expected = writing.write(backbone.module.encoder, *prompts)
    with padded(backbone.module.encoder, RIGHT):
        assert writing.write(backbone.module.encoder, *prompts) == expected
        assert config._attn_implementation == RIGHT
    assert set(seen) == {ANY_SIDE}
