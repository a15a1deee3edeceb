"""Prepares trials in a worker, and runs them one by one."""

from __future__ import annotations

import gc
import re
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch

from tensorbench.backbones.answers import check_answers
from tensorbench.execution.health import answers
from tensorbench.execution.watch import Silence
from tensorbench.machine.memory import MIB
from tensorbench.methods import UserError
from tensorbench.plan.trial import Trial
from tensorbench.records.measures import Measure
from tensorbench.records.record import Failure, Progress, Record, failed, lost
from tensorbench.records.words import Status, Tag
from tensorbench.training.loop import Diverged
from tensorbench.training.measure import libraries, provenance
from tensorbench.training.numerics import refused_precision
from tensorbench.training.trial import Resources, run_trial

#: The kinds of events with which a trial ends. `ENDS` maps each final status of a run to its kind. A lost
#: trial may run again.
End = Literal["finished", "failed", "lost"]
ENDS: dict[Status, End] = {
    Status.FINISHED: "finished",
    Status.FAILED: "failed",
    Status.KILLED: "lost",
}

#: Matches error messages of torch, C++, CUDA, cuBLAS and cuDNN that mean that memory ran out. Without memory
#: for its handle, cuBLAS says that it is not initialised.
NO_MEMORY = re.compile(
    "can't allocate memory|not enough memory|out of memory|bad_alloc|ALLOC_FAILED|ALLOCATION_FAILED"
    "|CUBLAS_STATUS_NOT_INITIALIZED"
)


@dataclass(frozen=True)
class Event:
    """Something that happened to a trial, such as its start, its progress, or its end."""

    trial: Trial
    #: What happened. "elsewhere" means that another driver has settled the trial.
    kind: Literal["started", "progress", "silent", "elsewhere"] | End
    #: The name of the worker that runs the trial. Empty if the driver's own process runs it.
    worker: str = ""
    #: For kind "started": the versions, the commit and the hardware that may influence the result.
    provenance: dict[str, str] | None = None
    #: For kind "started": the version of every package in the worker.
    libraries: dict[str, str] | None = None
    progress: Progress | None = None
    ending: Record | None = None
    silence: Silence | None = None
    #: At the end of a trial: whether the worker's device is unusable in its process from now on, as after an
    #: illegal access to a GPU's memory. The worker must then be ended.
    broken: bool = False

    @property
    def outcome(self) -> str:
        """The result of a trial that has ended, in words: its scores, or why it failed."""
        if self.ending is None:
            return "settled by another driver"
        if self.ending.status != Status.FINISHED:
            return self.ending.failure
        metrics = self.ending.metrics
        step = f", {metrics[Measure.STEP_MS]:.0f} ms a step" if Measure.STEP_MS in metrics else ""
        scores = f"validation {metrics[Measure.SELECTED_VALIDATION]:.4f}"
        if self.trial.evaluate == "test":
            scores = f"test {metrics[Measure.SCORE]:.4f}, {scores}"
        return f"{scores} ({metrics[Measure.SECONDS]:.0f} s{step})"


#: Receives events as they happen.
Report = Callable[[Event], None]


def ended(trial: Trial, worker: str, ending: Record, *, broken: bool = False) -> Event:
    """Makes the event for the end of a trial. `ending` is the trial's record."""
    return Event(trial, ENDS[ending.status], worker, ending=ending, broken=broken)


class TooLargeError(UserError):
    """A backbone and its data do not fit in the memory of a device. They may fit on another one."""


def prepare_all(trials: list[Trial], resources: Resources) -> None:
    """Fetches and prepares the backbones and data of trials, so that mistakes show before any training.

    Raises UserError if anything is missing or unsuitable, and TooLargeError if a backbone and its data do not
    fit in memory.
    """
    resources.saving.check(trials)
    if reason := refused_precision(trials, resources.device):
        raise UserError(reason)
    try:
        for trial in trials:
            backbone = resources.backbone(trial)
            check_answers(backbone, trial.task.input(backbone.info.input))
            resources.data(trial, backbone.info.input)
            resources.text(trial, backbone)
            resources.check_saving(trial)
    except Exception as error:
        if not _out_of_memory(error):
            raise
        raise TooLargeError(
            f"a backbone and its data do not fit on {resources.device}: {str(error) or 'memory ran out'}; "
            "take fewer slots per device or give each worker more memory"
        ) from error


def _out_of_memory(error: BaseException) -> bool:
    by_type = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return by_type or NO_MEMORY.search(str(error)) is not None


def report_trial(
    trial: Trial,
    resources: Resources,
    report: Report,
    worker: str = "",
    *,
    slots: int = 1,
    alone: bool = True,
    interrupts: tuple[type[BaseException], ...] = (),
) -> Record:
    """Runs a trial in this process as `perform` does, and reports its start, its progress and its end.

    `worker` is the name of the worker in these events, and `slots` the number of slots per device.
    """
    tags = provenance(str(resources.device)) | resources.saving.provenance() | {"slots": str(slots)}
    if resources.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(resources.device)
        # This includes memory that other processes use on the GPU.
        tags |= {"card_memory_mib": str(total // MIB), "card_in_use_mib": str((total - free) // MIB)}
    report(Event(trial, "started", worker, provenance=tags, libraries=libraries()))
    ending = perform(
        trial,
        resources,
        lambda progress: report(Event(trial, "progress", worker, progress=progress)),
        interrupts,
        alone=alone,
    )
    report(ended(trial, worker, ending, broken=resources.broken))
    return ending


def perform(
    trial: Trial,
    resources: Resources,
    report: Callable[[Progress], None],
    interrupts: tuple[type[BaseException], ...] = (),
    *,
    alone: bool = True,
) -> Record:
    """Runs a trial and returns its record. Errors of the trial, even SystemExit, become failed records.

    If memory runs out and `resources.saving` allows it, the trial starts again with smaller micro-batches.
    Progress that was reported before is not reported again.

    The trial is lost, and may run again elsewhere, if memory runs out or the device breaks before its
    training begins. If other trials may use the same device (not `alone`), the same holds at any later time.
    If the device no longer computes, `resources.broken` is set.

    Errors that are no failure of the trial are raised: the types in `interrupts`, and errors of `report`.
    """
    saving = resources.saving
    progress = _ProgressFilter(report)
    ending = _attempt(trial, resources, progress, interrupts)
    try:
        while ending.tag(Tag.FAILURE) == "out of memory":
            size = trial.recipe.batch_size
            smaller = resources.saving.smaller(size)
            if smaller is None:
                break
            warnings.warn(
                f"trial {trial.id} ran out of memory with {resources.saving.size(size)} examples at once; "
                f"it begins again with {smaller.micro_batch}",
                stacklevel=2,
            )
            resources.saving = smaller
            ending = _attempt(trial, resources, progress, interrupts)
        if not alone and (resources.broken or ending.tag(Tag.FAILURE) == "out of memory"):
            # Under MPS, an error of one process breaks the GPU for all that share it.
            return lost(f"beside other trials on its device: {ending.failure}")
        if resources.saving != saving:
            tags = {**ending.tags, Tag.MICRO_BATCH: str(resources.saving.micro_batch)}
            ending = replace(ending, tags=tags)
    finally:
        resources.saving = saving
    return ending


class _ProgressFilter:
    """Passes on the progress of a trial. Leaves out progress that an earlier attempt has reported."""

    def __init__(self, report: Callable[[Progress], None]) -> None:
        self._report = report
        #: The step of the last reported loss, and the step of the last reported validation.
        self._loss = self._validation = -1

    def __call__(self, progress: Progress) -> None:
        losses = [(step, loss) for step, loss in progress.losses if step > self._loss]
        validated = progress.validation_metric is not None and progress.step > self._validation
        if losses:
            self._loss = losses[-1][0]
        if validated:
            self._validation = progress.step
        if losses or validated:
            self._report(replace(progress, losses=losses))


def _attempt(
    trial: Trial,
    resources: Resources,
    report: Callable[[Progress], None],
    interrupts: tuple[type[BaseException], ...],
) -> Record:
    #: The error that `report` raised, which is no failure of the trial.
    raised: BaseException | None = None

    def watched(progress: Progress) -> None:
        nonlocal raised
        try:
            report(progress)
        except BaseException as error:
            raised = error
            raise

    reason: Failure
    loading = True
    try:
        resources.data(trial, resources.backbone(trial).info.input)
        loading = False
        return run_trial(trial, resources, watched).record()
    except Diverged as error:
        ending = failed("diverged", str(error), traceback.format_exc())
    except (torch.OutOfMemoryError, MemoryError) as error:
        ending = failed("out of memory", str(error), traceback.format_exc())
    except BaseException as error:  # a trial may fail in any way; the others must go on
        if error is raised or isinstance(error, interrupts):
            raise
        reason = "out of memory" if _out_of_memory(error) else "error"
        ending = failed(reason, f"{type(error).__name__}: {error}", traceback.format_exc())
    # Only now can memory be freed: no traceback references the trial's tensors any more.
    gc.collect()
    resources.broken = not answers(resources.device)
    if resources.device.type == "cuda" and not resources.broken:
        torch.cuda.empty_cache()
    if loading and (resources.broken or ending.tag(Tag.FAILURE) == "out of memory"):
        return lost(f"its backbone and data could not be loaded: {ending.tag(Tag.FAILURE_MESSAGE)}")
    return ending
