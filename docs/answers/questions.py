"""The questions of first-leaderboard.md as comparisons of methods with references under a budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: The suites whose packs answer the questions.
TUNED, UNTUNED, RANKS, DECODER = "leaderboard", "leaderboard_untuned", "leaderboard_ranks", "smollm2"
#: The suite tuned on three seeds.
RETUNED = "leaderboard_land_cover"
IMAGES = "land-cover"
TASKS = ("movie-sentiment", "tweet-sentiment", "amazon-sentiment", IMAGES)
#: The tasks of the untuned suite and of the suite of ranks.
TWO_TASKS = ("movie-sentiment", IMAGES)
#: The final seeds that every row needs. Further seeds count once they exist.
SEEDS = range(5)
BUDGET, SMALL = "isoparameters 4", "isorank 4"

HEAD_ONLY = "head only"
LORA, ON_QKVO, ON_ALL = "LoRA", "LoRA (targets=qkvo) r=3", "LoRA (targets=qkvo+mlp) r=1"
QKV_DEPTH, ALL_MODES = "TensLoRA qkv_depth", "TensLoRA att_qkv_depth"
#: Variants with heads and their counterparts without. `att` has no counterpart.
WITHOUT_HEADS = {
    "TensLoRA att_qkv": "TensLoRA qkv",
    "TensLoRA att_depth": "TensLoRA depth",
    ALL_MODES: QKV_DEPTH,
}
WITH_HEADS = ("TensLoRA att", *WITHOUT_HEADS)
LORTA = ("LoRTA", "LoRTA (orientation=output_heads)")
ON_ALL_LAYERS = ("FacT-TT", "FacT-TK", "CaRA")
METATT = ("MetaTT-4D", "MetaTT-5D")
SHORTER = ("TensLoRA att", "TensLoRA qkv", "TensLoRA depth")
STACKED = (*SHORTER, *WITHOUT_HEADS, QKV_DEPTH)
OTHER_STACKS = (f"{QKV_DEPTH} (factorization=cp)", f"{QKV_DEPTH} (factorization=tt)")
#: Methods that share nothing between matrices.
EACH_MATRIX = ("LoRETTA-rep", "TT-LoRA")


def interleaved(method: str) -> str:
    """The row of a variant with interleaved heads."""
    return f"{method} (heads=interleaved)"


@dataclass(frozen=True)
class Question:
    """Methods and their references, compared simultaneously. Names are those of the tables."""

    letter: str
    #: The budget of the compared methods; a reference may have another.
    budget: str
    #: The methods compared with each reference.
    compared: Mapping[str, tuple[str, ...]]
    tasks: tuple[str, ...] = TASKS
    seeds: range = SEEDS
    #: The number of the question's comparisons in other sections, which are simultaneous with these.
    beside: int = 0

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return [(method, other) for other, methods in self.compared.items() for method in methods]

    @property
    def rows(self) -> tuple[str, ...]:
        """All rows that have to be complete."""
        return tuple(
            dict.fromkeys(
                name for other, references in self.compared.items() for name in (other, *references)
            )
        )


VARIANTS = {LORA: (QKV_DEPTH, ALL_MODES)}
FACTORISED = {QKV_DEPTH: OTHER_STACKS, METATT[0]: EACH_MATRIX}
COMPARED = (
    Question("a", BUDGET, VARIANTS),
    Question(
        "b",
        BUDGET,
        {
            **{other: (method, interleaved(method)) for method, other in WITHOUT_HEADS.items()},
            **{method: (interleaved(method),) for method in WITH_HEADS},
        },
    ),
    Question("c", SMALL, {LORA: (*STACKED, "LoTR", *LORTA, *METATT)}),
    Question("d", BUDGET, {ON_QKVO: LORTA, ON_ALL: ON_ALL_LAYERS, LORA: (*LORTA, *ON_ALL_LAYERS)}),
    Question("e", BUDGET, FACTORISED),
)
ON_IMAGES = Question("i", BUDGET, VARIANTS | FACTORISED, (IMAGES,), range(10))
#: A search and an allocation on each task.
STUDIES = 2 * len(TWO_TASKS)
CUTS = {"fixed ranks": ("cut during training",)}
IN_TRAINING = Question("f", BUDGET, CUTS, TWO_TASKS, range(10), beside=STUDIES)

#: The rows of the suites tuned and untuned. Fields that a row sets by hand are in brackets.
ROWS = (
    *(HEAD_ONLY, "full fine-tuning", LORA, ON_QKVO, ON_ALL),
    *(*STACKED, *map(interleaved, WITH_HEADS), *OTHER_STACKS),
    *(*ON_ALL_LAYERS, "LoTR", *LORTA, *EACH_MATRIX, "LoRETTA-adp", "TRAC", "LoRA-XS", *METATT),
    *("DoRA", "VeRA", "AdaLoRA"),
)
