"""Several trials at once over one frozen backbone: their batches go through it together.

Each trial of a pack runs as it does alone, from its start to its ending, in a thread of its own: with its
own adapter, head, optimizer, order of the data and streams of random numbers. The threads take turns, so that
at any time only one of them runs. Where all wait for the backbone, their batches go through it as one, an
adapted layer gives the rows of each trial to that trial's own layer, and one backward gives all of them their
gradients. So a trial comes out as it does alone, up to how sums are rounded.

What cannot be shared is not: such a trial is handed back with the reason, to be run alone.
"""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from bench.backbones import LoadedBackbone
from bench.inputs import ModelInput
from bench.plan.trial import Trial
from bench.tasks import PreparedData
from bench.training.inference import Inference
from bench.training.loop import Pruned, autocast
from bench.training.numerics import deterministic, take_device
from bench.training.seeding import Streams
from bench.training.shared import Reader, Share, SharedEncoder, View
from bench.training.trial import Resources
from bench.wire.trial import Progress
from methods import from_identity

#: What a trial leaves, in whatever form its performer has it.
T = TypeVar("T")

#: Runs one trial with resources, and tells how it goes.
Performer = Callable[[Trial, Resources, Callable[[Progress], None]], T]

#: How far the first features of a trial may be from what it reads alone, by the recipe's precision.
NEAR = {"fp32": 1e-3, "bf16": 5e-2}

CHANGED = "a trial of its pack changed the backbone"


class Apart(BaseException):
    """Raised in a trial that is to leave its pack and run alone; says why."""


class Stopped(BaseException):
    """Raised in every trial of a pack that ends before they do."""


def why_alone(trial: Trial) -> str:
    """Why a trial can be in no pack; empty where, by all that is known before it runs, it can."""
    if trial.recipe.compile:
        return "its recipe has compile: true"
    if trial.task.lookup().target == "generation":
        return "it writes its answers, token by token"
    return ""


def kin(trial: Trial) -> str:
    """Equal for trials that can be in one pack, if they can be in any.

    They may differ in their method and its ranks and scale, in their rates and, where all batches are equally
    wide, in their seed. Texts are padded to the longest of a batch, so that other seeds have other widths.
    """
    recipe = {"batch_size", "epochs", "steps", "precision", "deterministic"}
    content = trial.model_dump(mode="json", exclude={"method", "recipe", "seed"})
    uneven = trial.task.lookup().modality == "text" and trial.task.padding == "longest"
    seed = trial.seed if uneven else trial.task.split_seed(trial.seed)
    return json.dumps([content, trial.recipe.model_dump(mode="json", include=recipe), seed], sort_keys=True)


def run_together(
    trials: Sequence[Trial],
    resources: Resources,
    perform: Performer[T],
    report: Callable[[Trial, Progress], None],
    ended: Callable[[Trial, T], None],
) -> dict[str, str]:
    """Runs trials that are `kin` together. Returns those that have to run alone, by id, with the reason.

    `perform` runs one trial with the resources that it is given, in a thread, and lets Apart and Stopped go
    up. `report` and `ended` are called in the caller's thread. Pruned, where `report` raises it, is that
    trial's; whatever else it raises ends all of them and goes up.
    """
    try:
        pack = _Pack(trials, resources, perform, report, ended)
    except Exception as error:  # alone, each of them ends as it has to
        said = f"no pack could be made ({type(error).__name__}: {error})"
        return dict.fromkeys((trial.id for trial in trials), said)
    try:
        with deterministic(trials[0].recipe.deterministic):
            return pack.run()
    finally:
        resources.check()


@dataclass
class _Read:
    """A trial waits for what its batch gives."""

    reader: Reader
    batch: dict[str, Tensor]
    #: Whether a backward follows.
    learns: bool

    @property
    def shape(self) -> str:
        """Equal for batches that can be put together, of however many examples."""
        shapes = {name: (*value.shape[1:], str(value.dtype)) for name, value in self.batch.items()}
        return str((self.learns, sorted(shapes.items())))


@dataclass
class _Gradient:
    """A trial has the gradient of its loss by what it read, and waits for those of its parameters."""

    by_read: Tensor | None


@dataclass
class _Told:
    progress: Progress


@dataclass
class _Ended:
    """A trial's thread has ended, with a result or with what was raised."""

    result: Any = None
    error: BaseException | None = None


class _Member:
    """One trial of a pack, as its own thread and the pack's have it."""

    def __init__(
        self, trial: Trial, resources: Resources, perform: Performer[Any], said: SimpleQueue[Any]
    ) -> None:
        self.trial, self.streams = trial, Streams(resources.device)
        self.view = View(resources.backbone(trial), self._read)
        #: It waits for its first turn, once it is started.
        self.thread = threading.Thread(
            target=self._live, args=(perform, _Place(resources, self)), name=f"trial {trial.id}", daemon=True
        )
        #: What it waits for; None while it runs.
        self.waits: _Read | _Gradient | None = None
        #: Whether its layers draw from torch's streams.
        self.draws = bool(from_identity(trial.method).shifts_dropout)
        #: Its own layers by the path of their site, once it has read.
        self.layers: Mapping[str, nn.Module] = {}
        #: Whether it was found to read what it would alone.
        self.checked = False
        #: Whether the pack has ended: then it says nothing any more.
        self.stopped = False
        self._said, self._answers = said, SimpleQueue[Any]()
        self._features: Tensor | None = None

    def answer(self, answer: object) -> None:
        """Lets its thread go on with this; an exception is raised there."""
        self._answers.put(answer)

    # From here to `backward`: in the trial's thread.

    def _live(self, perform: Performer[Any], resources: Resources) -> None:
        ended = _Ended()
        try:
            self._heard()
            ended.result = perform(self.trial, resources, lambda progress: self._ask(_Told(progress)))
        except BaseException as error:  # whatever it is, the pack's thread raises it
            ended.error = error
        self._said.put(ended)

    def _ask(self, what: _Read | _Gradient | _Told) -> Any:
        if self.stopped:
            raise Stopped
        self._said.put(what)
        return self._heard()

    def _heard(self) -> Any:
        answer = self._answers.get()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _read(self, reader: Reader, batch: dict[str, Tensor]) -> Tensor:
        learns = torch.is_grad_enabled()
        if learns and self._features is not None:
            raise Apart("its method reads more than once a step")
        features: Tensor = self._ask(_Read(reader, batch, learns))
        # The trial's own backward ends here. From here on there is one for all.
        self._features = features.requires_grad_() if learns else None
        return features

    def backward(self, loss: Tensor) -> None:
        """Puts the gradients of a loss into the trial's parameters."""
        assert self._features is not None
        loss.backward()
        gradient, self._features = self._features.grad, None
        self._ask(_Gradient(gradient))


class _Place(Resources):
    """What a trial of a pack finds: a view of the backbone, and for the rest what all find."""

    def __init__(self, whole: Resources, member: _Member) -> None:
        super().__init__(str(whole.device))
        self._whole, self._member = whole, member

    def backbone(self, trial: Trial) -> LoadedBackbone:
        take_device(self.device)
        return self._member.view

    def data(self, trial: Trial, model_input: ModelInput) -> PreparedData:
        return self._whole.data(trial, model_input)

    def bare_loss(self, trial: Trial, backbone: LoadedBackbone, text: Sequence[Tensor]) -> float:
        return self._whole.bare_loss(trial, backbone, text)

    def inference(self, trial: Trial, measure: Callable[[], Inference | None]) -> Inference | None:
        """None, since a forward of a pack takes the time of all its trials."""
        return None

    def check(self) -> None:
        """The view goes with its trial; the pack looks after the backbone."""

    def backward(self, loss: Tensor) -> None:
        self._member.backward(loss)


class _Pack(Generic[T]):
    """Gives the trials their turns, and reads for them."""

    def __init__(
        self,
        trials: Sequence[Trial],
        resources: Resources,
        perform: Performer[T],
        report: Callable[[Trial, Progress], None],
        ended: Callable[[Trial, T], None],
    ) -> None:
        self.report, self.ended, self.recipe, self.device = report, ended, trials[0].recipe, resources.device
        self.backbone = resources.backbone(trials[0])
        self.shared = SharedEncoder(self.backbone)
        self.fingerprint, self.changed = self.backbone.fingerprint(), False
        #: What the trial says whose turn it is.
        self._said: SimpleQueue[Any] = SimpleQueue()
        self._turn: _Member | None = None
        self.at_work = [_Member(trial, resources, perform, self._said) for trial in trials]
        #: What learning trials have read, and which they are: of each a backward will follow.
        self.read: list[tuple[Tensor, list[_Member], list[int]]] = []
        self.alone: dict[str, str] = {}

    # All of this class runs in the caller's thread.

    def run(self) -> dict[str, str]:
        try:
            for member in self.at_work:
                member.thread.start()
            for member in list(self.at_work):
                self._go_on(member, None)
            while self.at_work:
                self._round()
        finally:
            self._stop()
        return self.alone

    def _round(self) -> None:
        """Gives all what they wait for: gradients first, so that none gets ahead of the others."""
        try:
            if self.changed:
                answers: list[tuple[_Member, object]] = [(one, Apart(CHANGED)) for one in self.at_work]
            elif any(isinstance(member.waits, _Gradient) for member in self.at_work):
                answers = self._gradients()
            else:
                answers = self._features()
        except Exception as error:  # it is of what they share, and none of them is to blame
            said = f"reading together failed ({type(error).__name__}: {error})"
            answers = [(member, Apart(said)) for member in self.at_work]
            self.read.clear()
        for member, answer in answers:
            self._go_on(member, answer)

    def _go_on(self, member: _Member, answer: object) -> None:
        """Gives a trial its turn, until it waits for another reading or ends."""
        while True:
            member.waits, self._turn = None, member
            with member.streams.lent():
                member.answer(answer)
                said = self._said.get()
            self._turn = None
            if not isinstance(said, _Told):
                break
            try:
                answer = self.report(member.trial, said.progress)
            except Pruned as error:
                answer = error
        if isinstance(said, _Ended):
            self._end(member, said)
        else:
            member.waits = said

    def _end(self, member: _Member, ended: _Ended) -> None:
        self.at_work.remove(member)
        member.thread.join()
        self.changed = self.changed or self.backbone.fingerprint() != self.fingerprint
        if isinstance(ended.error, Apart):
            self.alone[member.trial.id] = str(ended.error)
        elif ended.error is not None:
            raise ended.error
        elif self.changed:
            self.alone[member.trial.id] = CHANGED
        else:
            self.ended(member.trial, ended.result)

    def _stop(self) -> None:
        """Ends all that are at work, each at its next word: first the one that may be running."""
        for member in sorted(self.at_work, key=lambda one: one is not self._turn):
            member.stopped = True
            member.answer(Stopped())
            if member.thread.is_alive():
                member.thread.join()
        self.at_work.clear()

    def _features(self) -> list[tuple[_Member, object]]:
        """What the batches of all give. Those of one shape are read together."""
        answers: list[tuple[_Member, object]] = []
        groups: defaultdict[str, list[tuple[_Member, _Read]]] = defaultdict(list)
        for member in self.at_work:
            assert isinstance(member.waits, _Read)
            if not member.layers:
                member.layers = self.shared.layers(member.view)
                if why := self.shared.refusal(member.view):
                    answers.append((member, Apart(why)))
                    continue
            groups[member.waits.shape].append((member, member.waits))
        for group in groups.values():
            answers += self._read_together(group)
        return answers

    def _read_together(self, group: Sequence[tuple[_Member, _Read]]) -> list[tuple[_Member, object]]:
        (_, first), *_ = group
        expected = {
            id(member): self._own(member, read)
            for member, read in group
            if read.learns and not member.checked
        }
        shares = [Share(read.batch, member.layers, member.streams, member.draws) for member, read in group]
        mode = nullcontext() if first.learns else torch.inference_mode()
        with mode, autocast(self.recipe, self.device):
            features = self.shared.read(first.reader, shares, learns=first.learns)
        sizes = list(map(len, shares))
        if first.learns:
            self.read.append((features, [member for member, _ in group], sizes))
        parts = features.detach().split(sizes)
        return [
            (member, part if self._alike(member, part, expected) else Apart("it reads otherwise than alone"))
            for (member, _), part in zip(group, parts, strict=True)
        ]

    def _own(self, member: _Member, read: _Read) -> Tensor:
        """What a trial would read alone."""
        # Its autocast is another one, which would keep what it cast without gradients.
        with torch.no_grad(), autocast(self.recipe, self.device), member.streams.lent(back=True):
            return read.reader(member.view.module.encoder, **read.batch)

    def _alike(self, member: _Member, part: Tensor, expected: dict[int, Tensor]) -> bool:
        if id(member) not in expected:
            return True
        member.checked, own = True, expected[id(member)]
        near = NEAR[self.recipe.precision]
        return torch.allclose(part, own, rtol=near, atol=near * float(own.abs().max()), equal_nan=True)

    def _gradients(self) -> list[tuple[_Member, object]]:
        """One backward through what was read together; of a trial that has ended nothing is asked."""
        for features, members, sizes in self.read:
            if features.requires_grad:
                by_read = [
                    member.waits.by_read if isinstance(member.waits, _Gradient) else None
                    for member in members
                ]
                torch.autograd.backward(
                    features,
                    torch.cat(
                        [
                            features.new_zeros(size, *features.shape[1:]) if gradient is None else gradient
                            for gradient, size in zip(by_read, sizes, strict=True)
                        ]
                    ),
                )
        self.read.clear()
        return [(member, None) for member in self.at_work if isinstance(member.waits, _Gradient)]
