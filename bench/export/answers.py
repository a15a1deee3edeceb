"""What a trial answered when it was scored: what an export of it has to answer too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from pyarrow import ArrowException
from torch import Tensor

from bench.metrics import Kind
from bench.training.trial import Resources
from bench.wire.predictions import frame_of, numbered
from bench.wire.words import Artifact
from methods import UserError

if TYPE_CHECKING:
    from bench.store.trained import StoredTrial

#: How many of the stored predictions are compared: enough to tell, few enough for a CPU.
MOST = 32

#: How far a logit may be from the stored one, relative to the largest: by the precision of training, and
#: because another device computes in another order. Another adapter or backbone is off by as much as itself.
ALLOWED = {"fp32": 0.01, "bf16": 0.1}


@dataclass(frozen=True)
class Answers:
    """Examples as the backbone read them, and their logits (examples, classes) then."""

    batch: Mapping[str, Tensor]
    logits: Tensor
    #: Relative to the largest logit.
    allowed: float
    #: Of the task's target. Of what a language model wrote only the likelihoods of the right answers are
    #: compared.
    kind: Kind = "single label"

    def parts(self, size: int) -> Iterator[dict[str, Tensor]]:
        """The batch in parts of so many examples."""
        cut = {name: tensor.split(size) for name, tensor in self.batch.items()}
        for values in zip(*cut.values(), strict=True):
            yield dict(zip(cut, values, strict=True))


@dataclass(frozen=True)
class Agreement:
    """How an export's answers stand to the stored ones."""

    examples: int
    #: How many predictions are those of the trial; None where they are numbers, or likelihoods of answers.
    same: int | None
    #: The largest difference of a logit.
    difference: float
    kind: Kind = "single label"

    def __str__(self) -> str:
        if self.kind == "regression":
            return (
                f"The numbers of {self.examples} examples are those that the trial stored, to "
                f"{self.difference:.1e} standard deviations of the training targets"
            )
        if self.same is None:
            return (
                f"The right answers to {self.examples} prompts have the log-likelihoods that the trial "
                f"stored, to {self.difference:.1e}"
            )
        return (
            f"Of {self.examples} stored predictions of the trial it gives {self.same}, their logits to "
            f"{self.difference:.1e}"
        )


def stored_answers(stored: StoredTrial) -> Answers:
    """The first examples that the trial was scored on, with what it answered.

    Raises ChangedError for predictions that are not as they were stored, and UserError where they or their
    data cannot be had.
    """
    content = stored.content(Artifact.PREDICTIONS)
    try:
        frame = frame_of(content).head(MOST)
        columns = frame[numbered(list(frame.columns), "logit")]
        logits, ids = torch.tensor(columns.to_numpy()), frame["example"].tolist()
    except (OSError, ArrowException, KeyError, ValueError) as error:
        raise UserError(f"{Artifact.PREDICTIONS} cannot be read: {error}") from error
    trial = stored.trial
    data = Resources("cpu").data(trial, stored.backbone.info.input)
    split = data.test if trial.evaluate == "test" else data.validation
    if split.ids[: len(ids)].tolist() != ids:
        raise UserError("the examples are not those of the trial any more")
    batch, kind = split.batch(torch.arange(len(ids))), trial.task.lookup().target
    return Answers(batch, logits, ALLOWED[trial.recipe.precision], kind)


def agreement(found: Tensor, answers: Answers) -> Agreement:
    """Raises UserError where the logits (examples, classes) are not those that were stored."""
    stored = answers.logits
    if found.shape != stored.shape:
        raise UserError(f"the stored predictions have shape {tuple(stored.shape)}, not {tuple(found.shape)}")
    difference = float((found - stored).abs().max())
    # Written so that not-a-number fails too.
    if not difference <= answers.allowed * max(1.0, float(stored.abs().max())):
        raise UserError(
            "the export does not answer as the trial did when it was scored: its logits differ from the "
            f"stored predictions by {difference:.1e}; nothing was written"
        )
    same = None
    if answers.kind == "single label":
        same = int((found.argmax(1) == stored.argmax(1)).sum())
    elif answers.kind == "multi-label":
        same = int(((found > 0) == (stored > 0)).all(1).sum())
    return Agreement(len(found), same, difference, answers.kind)
