"""Runs trials on a Ray cluster, one actor a slot; a lost node costs the trials that ran there."""

from __future__ import annotations

import logging
import os
import queue
import signal
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch

from bench.execution.checks import worker_mib
from bench.execution.executor import Executor
from bench.execution.perform import Event, Report, ended, needed, perform, prepare_all
from bench.plan.trial import Trial
from bench.training.loop import Pruned
from bench.training.measure import provenance
from bench.training.trial import Resources
from bench.wire.trial import Progress, lost
from methods import UserError

# Nothing leaves the machine unless the user names a cluster.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

try:
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as error:
    raise UserError("--executor ray needs Ray: pip install 'tensorpeft-bench[ray]'") from error

#: Seconds between two looks at how many slots the cluster has.
LOOK = 5.0


@dataclass
class _Worker:
    actor: Any
    trial: Trial | None = None
    #: The answer to the question what has happened, still to come.
    heard: Any = None
    #: Whether it has answered once, so that it runs somewhere.
    placed: bool = False


class RayCluster(Executor):
    """Connects to a cluster, or starts one on this machine. Raises UserError where it cannot.

    `slots_per_device` trials share a GPU. On CPUs the cores are divided among `workers`, as `Local` does.
    """

    on_this_machine = False

    def __init__(
        self, device: str, workers: int | None, slots_per_device: int | None, address: str | None
    ) -> None:
        _connect(address)
        resources = ray.cluster_resources()
        if device == "auto":
            device = "cuda" if resources.get("GPU") else "cpu"
        if device not in ("cpu", "cuda"):
            raise UserError(f"--device {device}: with --executor ray accepted are auto, cpu and cuda")
        self.device = device
        self._workers: list[_Worker] = []
        self._looked = -LOOK
        self._slots_now = 0
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cores = [int(node["CPU"]) for node in nodes if node.get("CPU")]
        if device == "cuda":
            shared = slots_per_device or 1
            devices = [node["GPU"] for node in nodes if node.get("GPU")]
            if not devices:
                raise UserError("--device cuda: no node of the Ray cluster has a GPU")
            per_slot = (node.get("CPU", 1) / (node["GPU"] * shared) for node in nodes if node.get("GPU"))
            self._request = {"num_gpus": 1 / shared, "num_cpus": max(1, int(min(per_slot)))}
        else:
            if slots_per_device:
                raise UserError("--slots-per-device is for GPUs; on CPUs use --workers")
            if not cores:
                raise UserError("no node of the Ray cluster has a CPU to offer")
            share = sum(cores) // workers if workers else 1
            self._request = {"num_gpus": 0, "num_cpus": max(1, min(share, *cores))}
        self._memory = 0
        #: What the nodes have prepared, as `needed` tells it.
        self._prepared: set[str] = set()
        self._limit = workers
        self.slots = self._capacity()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        ray.shutdown()

    def prepare(self, trials: list[Trial]) -> None:
        """Once on each node that can run a trial; one that joins later prepares when it takes its first."""
        trials = [trial for trial in trials if needed(trial) not in self._prepared]
        if not trials:
            return
        # An idle actor holds its slot, which the preparation needs.
        for idle in [worker for worker in self._workers if worker.trial is None]:
            self._remove(idle)
        self._memory = max(self._memory, int(worker_mib(trials) * 2**20))
        answers = [
            ray.remote(_prepare)
            .options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
                **self._options(),
            )
            .remote(trials, self.device)
            for node in ray.nodes()
            if self._fits(node)
        ]
        if not answers:
            raise UserError(
                f"no node of the Ray cluster has room for one trial: {self._request}, "
                f"{self._memory // 2**20:,} MiB of memory"
            )
        for answer in answers:
            try:
                said = ray.get(answer)
            except RayError as error:
                raise UserError(f"a node could not prepare the trials: {error}") from error
            if said:
                raise UserError(said)
        self._prepared |= {needed(trial) for trial in trials}

    @property
    def free(self) -> int:
        return max(0, self._room() - sum(worker.trial is not None for worker in self._workers))

    def _room(self) -> int:
        """How many slots there are: nodes come and go."""
        if time.monotonic() > self._looked + LOOK:
            self._slots_now, self._looked = self._capacity(), time.monotonic()
        return self._slots_now

    def submit(self, trial: Trial) -> None:
        worker = next((worker for worker in self._workers if worker.trial is None), None)
        if worker is None:
            actor = ray.remote(_Slot).options(max_concurrency=3, **self._options()).remote(self.device)
            worker = _Worker(actor)
            self._workers.append(worker)
        self._give(worker, trial)

    def _give(self, worker: _Worker, trial: Trial) -> None:
        worker.trial = trial
        worker.actor.run.remote(trial)
        worker.heard = worker.actor.events.remote()

    def _replace_waiting(self) -> None:
        """Where nodes are gone, actors that wait for room would wait for idle ones for ever."""
        for waiting in [worker for worker in self._workers if worker.trial and not worker.placed]:
            idle = next((worker for worker in self._workers if worker.trial is None), None)
            if idle is None or len(self._workers) <= self._room():
                return
            trial = waiting.trial
            assert trial is not None
            self._remove(waiting)
            self._give(idle, trial)

    def step(self, report: Report) -> None:
        self._replace_waiting()
        busy = {worker.heard: worker for worker in self._workers if worker.trial}
        ready, _ = ray.wait(list(busy), num_returns=1, timeout=1)
        for answer in ready:
            worker = busy[answer]
            try:
                events = ray.get(answer)
            except RayError as error:
                trial = worker.trial
                assert trial is not None
                self._remove(worker)
                # The node may be gone, and its slots.
                self._looked = -LOOK
                reason = str(error).partition("\n")[0].strip() or type(error).__name__
                report(ended(trial, "", lost(f"its worker or node died: {reason}")))
                continue
            worker.placed = True
            for event in events:
                if event.ending is not None:
                    worker.trial = worker.heard = None
                if event.kind == "lost":
                    # What broke the actor may break its next trial too.
                    self._remove(worker)
                try:
                    report(event)
                except Pruned:
                    worker.actor.prune.remote(event.trial.id)
            if worker.trial:
                worker.heard = worker.actor.events.remote()

    def stop(self) -> None:
        for worker in self._workers[:]:
            self._remove(worker)

    def _remove(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        ray.kill(worker.actor)

    def _options(self) -> dict[str, float]:
        return {**self._request, "memory": self._memory}

    def _fits(self, node: dict[str, Any]) -> bool:
        has = node["Resources"]
        asked = {"CPU": self._request["num_cpus"], "GPU": self._request["num_gpus"], "memory": self._memory}
        return node["Alive"] and all(has.get(name, 0) >= amount for name, amount in asked.items())

    def _capacity(self) -> int:
        """How many slots the nodes have now, and at most as many as were asked for."""
        slots = 0
        for node in ray.nodes():
            if self._fits(node):
                has = node["Resources"]
                by_cpu = has["CPU"] / self._request["num_cpus"]
                by_gpu = has["GPU"] / self._request["num_gpus"] if self._request["num_gpus"] else by_cpu
                by_memory = has["memory"] / self._memory if self._memory else by_cpu
                slots += int(min(by_cpu, by_gpu, by_memory))
        return min(slots, self._limit or slots)


def _connect(address: str | None) -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(
            address=address or os.environ.get("RAY_ADDRESS") or "local",
            include_dashboard=None if address else False,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"cannot connect to the Ray cluster at {address}: {error}") from error
    finally:
        # Ray's own would end the program without a word to the store.
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _prepare(trials: list[Trial], device: str) -> str:
    try:
        prepare_all(trials, Resources(device))
    except UserError as error:
        return str(error)
    return ""


class _Slot:
    """A worker on a node. Its methods run beside each other: a trial, and the questions about it."""

    def __init__(self, device: str) -> None:
        self._resources = Resources(device)
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._pruned: set[str] = set()
        context = ray.get_runtime_context()
        self._name = f"{context.get_node_id()[:6]}/{context.get_actor_id()[:6]}"
        self._threads = max(1, int(context.get_assigned_resources().get("CPU", 1)))

    def run(self, trial: Trial) -> None:
        # One that was asked for in an earlier run of this trial is not for this one.
        self._pruned.discard(trial.id)
        try:
            self._run(trial)
        except BaseException as error:
            # The driver asks for events only.
            reason = f"its worker ({self._name}) broke: {type(error).__name__}: {error}"
            self._events.put(ended(trial, self._name, lost(reason)))
            raise

    def _run(self, trial: Trial) -> None:
        # A thread of its own has its own number of threads.
        torch.set_num_threads(self._threads)
        where = provenance(str(self._resources.device))
        self._events.put(Event(trial, "started", self._name, provenance=where))

        def report(progress: Progress) -> None:
            self._events.put(Event(trial, "progress", self._name, progress=progress))
            if trial.id in self._pruned:
                raise Pruned

        self._events.put(ended(trial, self._name, perform(trial, self._resources, report)))

    def events(self) -> list[Event]:
        """What has happened since the last question; waits a second for something to happen."""
        events = []
        try:
            events.append(self._events.get(timeout=1))
            while True:
                events.append(self._events.get_nowait())
        except queue.Empty:
            return events

    def prune(self, trial_id: str) -> None:
        self._pruned.add(trial_id)
