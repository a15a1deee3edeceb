"""One trial: a clean backbone, a fresh adapter, training, one evaluation."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.backbones import BackboneSpec, LoadedBackbone, load
from bench.measure import PeakMemory
from bench.plan import Trial
from bench.seeding import generator, stream_seed
from bench.tasks import TASKS, PreparedData, prepare
from bench.tasks.inputs import ModelInput
from bench.training import Diverged, Evaluation, Progress, Trained, evaluate, head_state, train
from methods import UserError, from_identity


@dataclass
class Outcome:
    """What a finished trial leaves: its scores, its costs, its predictions and its adapter."""

    trained: Trained
    final: Evaluation
    #: Source ids and labels of the examples behind `final`, in its order.
    example_ids: Tensor
    labels: Tensor
    adapter_parameters: int
    head_parameters: int
    seconds: float
    peak_mib: float | None
    adapter: dict[str, Tensor]
    head: dict[str, Tensor]


class Resources:
    """What trials share in one worker: each backbone is loaded once, each data set prepared once."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self._backbones: dict[BackboneSpec, tuple[LoadedBackbone, str]] = {}
        self._data: dict[tuple[object, ...], PreparedData] = {}

    def backbone(self, trial: Trial) -> LoadedBackbone:
        """The trial's backbone, clean. Raises UserError where its weights are not the planned ones."""
        spec = trial.backbone
        if spec not in self._backbones:
            backbone = load(spec)
            backbone.module.to(self.device)
            self._backbones[spec] = (backbone, backbone.fingerprint())
        backbone, _ = self._backbones[spec]
        if backbone.info.weights_hash != trial.weights_hash:
            raise UserError(
                f"backbone '{backbone.info.name}' changed since the plan: weights {trial.weights_hash} "
                f"were planned, {backbone.info.weights_hash} loaded; start again"
            )
        return backbone

    def check(self, spec: BackboneSpec) -> None:
        """Drops a backbone that is not as it was loaded, with a warning: the next trial loads it anew."""
        backbone, fingerprint = self._backbones[spec]
        if backbone.fingerprint() != fingerprint:
            warnings.warn(
                f"a trial left traces on backbone '{backbone.info.name}'; it is loaded anew", stacklevel=2
            )
            del self._backbones[spec]

    def data(self, trial: Trial, model_input: ModelInput) -> PreparedData:
        row = trial.task
        key = (row.task, row.train_size, row.validation_size, row.test_size, row.max_tokens, trial.backbone)
        if key not in self._data:
            data = prepare(
                TASKS.get(row.task),
                model_input,
                max_tokens=row.max_tokens,
                train_size=row.train_size,
                validation_size=row.validation_size,
                test_size=row.test_size,
            )
            self._data[key] = data.to(self.device)
        return self._data[key]


def run_trial(trial: Trial, resources: Resources, report: Callable[[Progress], None]) -> Outcome:
    """Trains and scores one trial. Raises Diverged, out-of-memory errors, or whatever went wrong.

    The backbone is clean again afterwards in every case.
    """
    backbone = resources.backbone(trial)
    data = resources.data(trial, backbone.info.input)
    # Without what the first trial of a worker loads.
    started = time.perf_counter()
    metric = TASKS.get(trial.task.task).metric
    memory = PeakMemory(resources.device)
    backbone.reset(data.classes, generator(trial.seed, "head_start"))
    # Dropout draws from the global generators, on a GPU from the device's own.
    torch.manual_seed(stream_seed(trial.seed, "dropout"))
    try:
        adapter = from_identity(trial.method).attach(backbone, generator(trial.seed, "adapter_start"))
        try:
            trained = train(backbone, adapter, data, trial.recipe, metric, trial.seed, report)
            split = data.test if trial.evaluate == "test" else data.validation
            final = evaluate(backbone, adapter, split, trial.recipe, metric, data.classes)
            if not math.isfinite(final.loss):
                raise Diverged(trained.steps, final.loss)
            return Outcome(
                trained=trained,
                final=final,
                example_ids=split.ids.cpu(),
                labels=split.labels.cpu(),
                adapter_parameters=adapter.parameter_count,
                head_parameters=sum(parameter.numel() for parameter in backbone.head.parameters()),
                seconds=time.perf_counter() - started,
                peak_mib=memory.mib(),
                adapter=adapter.state(),
                head=head_state(backbone),
            )
        finally:
            adapter.detach()
    finally:
        # Whatever failed, attaching and detaching included, the next trial gets a clean backbone.
        backbone.module.eval()
        resources.check(trial.backbone)
