"""Writes the table of peft's types by training each on a tiny model: `python docs/peft_table.py [PAGE]`.

PAGE is reference/peft.md by default.
"""

from __future__ import annotations

import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from marked import replaced
from marked import table as written
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import Tensor
from torch.nn import functional as F

from tensorbench.baselines.peft_types import REFUSED, SHORTHANDS
from tensorbench.methods import Geometry, Method, UserError, attach, create
from tensorbench.methods.adapter import Adapter
from tensorbench.methods.errors import NotLowRank
from tensorbench.methods.skeleton import SkeletonBackbone

PAGE = Path(__file__).parent / "reference" / "peft.md"
BEGIN, END = "<!-- docs/peft_table.py -->\n", "<!-- end -->\n"
HEADINGS = ("types", "size", "differs")

#: The tiny model on which each type is trained, the rank of its adapter, and the number of steps.
TINY, RANK, STEPS = Geometry(24, 3, 2, 96, encoder=1), 2, 4

#: A geometry in which key and value have fewer heads, the head size does not divide the hidden size, and the
#: gated MLP's width is no multiple of the hidden size.
UNEQUAL = Geometry(24, 4, 3, 60, encoder=1, kv_heads=2, head_size=5, gated=True)

#: Budgets tried for each type. A type that fits none of them is sized by its rank only.
BUDGETS = (300, 1_200, 5_000, 20_000)

#: Options in place of defaults that are missing or too large for the tiny model.
NEEDED: dict[str, dict[str, Any]] = {
    "C3A": {"block_size": 8},
    "OFT": {"oft_block_size": 0},
    "ROAD": {"group_size": 8},
    "VBLORA": {"vector_length": 8, "num_vectors": 16},
}


#: The usual capabilities. A type's line in the table mentions them only if the type lacks them.
USUAL = ("merges", "exact zero start", "unequal shapes")


def table() -> str:
    """The table of peft's types in Markdown, then a list of the refused types.

    Types whose entries are equal share a line.
    """
    types = sorted({kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING} | {*SHORTHANDS})
    alike, refused = dict[tuple[str, ...], list[str]](), dict[str, list[str]]()
    for kind in types:
        try:
            method = create("peft", type=kind, config=NEEDED.get(kind, {}))
        except UserError as error:
            refused.setdefault(reason(error, kind), []).append(f"`{kind}`")
        else:
            alike.setdefault(row(method), []).append(f"`{kind}`")
    rows = [(", ".join(kinds), *cells) for cells, kinds in alike.items()]
    lines = [f"- {', '.join(kinds)}: {why}." for why, kinds in refused.items()]
    return "\n".join([written(HEADINGS, rows), "\nRefused:\n", *lines, ""])


def row(method: Method) -> tuple[str, ...]:
    """The entries of a type's line in the table, without its name. Raises the errors of `trained`."""
    method = method.isorank(RANK) if method.sizeable else method
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.default_generator.manual_seed(0)
        trained(method)
        can = capabilities(method)
        more = [word for word, holds in can.items() if holds and word not in USUAL]
        less = [f"not: {word}" for word in USUAL if not can[word]]
        return size(method), ", ".join([*more, *less]) or "–"


def trained(method: Method) -> None:
    """Trains a method on the tiny model as a trial would.

    Raises AssertionError or peft's error if the training fails, if the adapter cannot be reloaded, or if it
    leaves traces in the backbone.
    """
    backbone = SkeletonBackbone.random(TINY)
    x, labels = torch.randn(8, TINY.hidden), torch.randint(3, (8,))
    frozen = copies(dict(backbone.module.named_parameters()))
    adapter = attach(backbone, method)
    before = copies(adapter.named_parameters())
    adapter.begin_training(STEPS)
    optimizer = torch.optim.AdamW(adapter.parameter_groups(), lr=1e-2)
    for step in range(1, STEPS + 1):
        loss, extra = F.cross_entropy(backbone.module(x), labels), adapter.extra_loss()
        optimizer.zero_grad()
        (loss if extra is None else loss + extra).backward()
        optimizer.step()
        adapter.after_step(step, optimizer)
    after = adapter.named_parameters()
    assert adapter.settled, f"{method.label} has not its final size"
    assert all(bool(value.isfinite().all()) for value in after.values()), f"{method.label} diverged"
    assert any(not torch.equal(before[name], after[name]) for name in before), f"{method.label} stood still"
    answers, state = backbone.module.eval()(x), adapter.state()
    adapter.detach()
    for name, tensor in backbone.module.named_parameters():
        assert name.startswith("head.") or torch.equal(tensor, frozen[name]), f"{method.label} left traces"
    reloaded = attach(backbone, method, seed=1)
    reloaded.load(state)
    assert torch.allclose(backbone.module.eval()(x), answers, atol=1e-5), f"{method.label} is lost"
    reloaded.detach()


@torch.no_grad()
def capabilities(method: Method) -> dict[str, bool]:
    """Tries a method on the tiny model. Maps each property to whether the method has it.

    - merges: merging the update changes no output.
    - exports as LoRA: every update is a low-rank pair.
    - exact zero start: a fresh adapter changes no output.
    - trained biases: training also changes biases of the adapted layers.
    - unequal shapes: the method supports `UNEQUAL`.
    - no cost unmerged: inference costs no more than without the method even if the update is not merged.
    - depends on the batch: an example's outputs depend on the other examples of its batch.
    """
    backbone = SkeletonBackbone.random(TINY)
    x = torch.randn(5, TINY.hidden)
    plain, layers = backbone.module(x), classes(backbone)
    adapter = put(method, backbone)
    # Layers made by a library start in training mode, where some of them draw random numbers.
    backbone.module.eval()
    zero_start, free = same(backbone.module(x), plain), classes(backbone) == layers
    # Many parameters start at zero.
    for parameter in adapter.named_parameters().values():
        parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    mixes, exports, biases = mixes_examples(backbone, x), is_low_rank(adapter), moves_biases(adapter)
    return {
        "merges": merges(adapter, backbone, x),
        "exports as LoRA": exports,
        "exact zero start": zero_start,
        "trained biases": biases,
        "unequal shapes": fits_unequal(method),
        "no cost unmerged": free,
        "depends on the batch": mixes,
    }


def put(method: Method, backbone: SkeletonBackbone) -> Adapter:
    """Builds the adapter like `Method.attach`, but compares no counts: the encoder's count is made up."""
    method.check(backbone.geometry, backbone.projections)
    return method.put(backbone, torch.Generator().manual_seed(0))


def fits_unequal(method: Method) -> bool:
    backbone = SkeletonBackbone.random(UNEQUAL)
    try:
        put(method, backbone)
    except UserError:
        return False
    backbone.module(torch.randn(1, UNEQUAL.hidden))
    return True


def classes(backbone: SkeletonBackbone) -> dict[str, str]:
    """Returns the class name of every module of the backbone, by the module's path."""
    return {name: type(module).__name__ for name, module in backbone.module.named_modules()}


def mixes_examples(backbone: SkeletonBackbone, x: Tensor) -> bool:
    """Whether an example's outputs depend on the rest of its batch. False if outputs are random."""
    first, second = backbone.module(x)[:1], backbone.module(x)[:1]
    beside_others = backbone.module(torch.cat([x[:1], -x[1:]]))[:1]
    return same(first, second) and not same(first, beside_others)


def is_low_rank(adapter: Adapter) -> bool:
    try:
        return bool(adapter.factors())
    except NotLowRank:
        return False


def moves_biases(adapter: Adapter) -> bool:
    trained = {id(parameter) for parameter in adapter.named_parameters().values()}
    own = any(id(base.bias) in trained for base in adapter.bases.values() if base.bias is not None)
    return own or any(bool(update.any()) for update in adapter.biases().values())


def merges(adapter: Adapter, backbone: SkeletonBackbone, x: Tensor) -> bool:
    expected = backbone.module(x)
    try:
        adapter.merge()
    except UserError:
        return False
    return same(backbone.module(x), expected)


def same(first: Tensor, second: Tensor) -> bool:
    return torch.allclose(first, second, rtol=1e-4, atol=1e-5)


def copies(tensors: Any) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def size(method: Method) -> str:
    """Says what sets the number of parameters: "a rank", "a rank or a budget", or "its own" if fixed."""
    if not method.sizeable:
        return "its own"
    for budget in BUDGETS:
        with suppress(UserError):
            method.model_copy(update={"rank": None}).fit(TINY, budget)
            return "a rank or a budget"
    return "a rank"


def reason(error: UserError, kind: str) -> str:
    """The reason why a type is refused, from `REFUSED`. Raises AssertionError if there is none."""
    if kind in REFUSED:
        return REFUSED[kind]
    raise AssertionError(f"{kind} is neither known to work nor refused with a reason: {error}")


def rewritten(text: str) -> str:
    """The page with the current table."""
    return replaced(text, BEGIN, END, table())


if __name__ == "__main__":
    page = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    page.write_text(rewritten(page.read_text(encoding="utf-8")), encoding="utf-8")
