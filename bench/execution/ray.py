"""Runs trials on a Ray cluster, each in an actor on a node. A lost node costs only the trials on it."""

from __future__ import annotations

import logging
import os
import queue
import signal
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch

from tensorbench.execution.estimate import worker_mib
from tensorbench.execution.executor import Executor, Worker
from tensorbench.execution.health import refusal
from tensorbench.execution.perform import Event, Report, ended, prepare_all, report_trial
from tensorbench.execution.place import Place
from tensorbench.execution.watch import Watch
from tensorbench.methods import UserError
from tensorbench.methods.errors import cut
from tensorbench.plan.trial import Trial
from tensorbench.records.record import lost
from tensorbench.training.numerics import refused_precision
from tensorbench.training.saving import Saving
from tensorbench.training.trial import Resources

# No usage data leaves the machine.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

try:
    import ray
    from ray.exceptions import RayError
    from ray.job_config import JobConfig
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as error:
    raise UserError("--executor ray needs Ray: pip install 'tensorpeft-bench[ray]'") from error

#: Seconds after which the slots of the cluster are counted again.
LOOK = 5.0

#: Seconds that a Ray cluster may take to accept a connection.
CONNECTING = 10


@dataclass(kw_only=True, eq=False)
class _Handle(Worker):
    actor: Any
    #: Ray's reference to the actor's next list of events.
    heard: Any = None
    #: Whether the actor has answered, which shows that Ray placed it on a node.
    placed: bool = False


@dataclass(frozen=True)
class SlotShare:
    """The GPUs and CPU cores of a node that one trial occupies."""

    #: The number of GPUs. A fraction means that several trials share a GPU.
    gpus: float
    cpus: int

    @classmethod
    def of_gpus(cls, slots_per_device: int | None) -> SlotShare:
        """Returns the share of a trial on GPUs: 1 / `slots_per_device` of a GPU, and some cores.

        The number of cores is what the node with the fewest cores per GPU can give to each of its trials, and
        at least one. Raises UserError if no node has a GPU.
        """
        slots = slots_per_device or 1
        nodes = [node for node in _living_resources() if node.get("GPU")]
        if not nodes:
            raise UserError("--device cuda: no node of the Ray cluster has a GPU")
        cpus = min(node.get("CPU", 1) / (node["GPU"] * slots) for node in nodes)
        return cls(1 / slots, max(1, int(cpus)))

    @classmethod
    def of_cpus(cls, workers: int | None) -> SlotShare:
        """Returns the share of a trial without GPUs: the cores of the cluster divided by `workers`.

        The share is at most the number of cores of the smallest node. It is one core if `workers` is None.
        Raises UserError if no node has a core to offer.
        """
        cores = [int(node["CPU"]) for node in _living_resources() if node.get("CPU")]
        if not cores:
            raise UserError("no node of the Ray cluster has a CPU to offer")
        share = sum(cores) // workers if workers else 1
        return cls(0, max(1, min(share, *cores)))


class RayCluster(Executor):
    """Runs trials on the Ray cluster to which this process is connected.

    `limit` is the largest number of trials that run at once. None: as many as fit. At the end of the `with`
    statement the process disconnects from the cluster.
    """

    options = frozenset({"workers", "slots_per_device", "ray_address", "trial_timeout"})
    on_this_machine = False

    def __init__(self, device: str, share: SlotShare, limit: int | None, saving: Saving) -> None:
        super().__init__(device, saving)
        self._share, self._limit = share, limit
        #: The memory that each trial reserves, in bytes. 0 before trials are prepared.
        self._memory = 0
        self._workers: list[_Handle]
        self._looked = -LOOK
        self._slots_now = 0
        self.slots = self._capacity()

    @classmethod
    def open(cls, place: Place) -> Self:
        """Connects to the Ray cluster that `place` or RAY_ADDRESS names, or else starts one on this machine.

        Trials run on GPUs if the device is `cuda`, or if it is `auto` and the cluster has GPUs. Raises
        UserError if the cluster cannot be reached or used.
        """
        device = place.device
        _connect(place.ray_address)
        try:
            if device == "auto":
                device = "cuda" if ray.cluster_resources().get("GPU") else "cpu"
            if device not in ("cpu", "cuda"):
                raise UserError(f"--device {device}: with --executor ray accepted are auto, cpu and cuda")
            if place.slots_per_device == "auto":
                raise UserError("--slots-per-device auto: with --executor ray, say how many")
            if device == "cpu" and place.slots_per_device:
                raise UserError("--slots-per-device is for GPUs; on CPUs use --workers")
            gpus = device == "cuda"
            share = SlotShare.of_gpus(place.slots_per_device) if gpus else SlotShare.of_cpus(place.workers)
            return cls(device, share, place.workers, place.saving)
        except BaseException:
            ray.shutdown()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        ray.shutdown()

    def _prepare(self, trials: list[Trial], report: Report, limit: float | None) -> None:
        # Prepares once on each node with room. A node that joins later prepares with its first trial.
        # Preparation needs a slot on every node, and idle actors occupy slots.
        for idle in [worker for worker in self._workers if worker.trial is None]:
            self._end(idle)
        self._memory = max(self._memory, int(worker_mib(trials) * 2**20))
        answers = [
            ray.remote(_refusal_of)
            .options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
                **self._options(),
            )
            .remote(trials, Resources(self.device, self._saving))
            for node in ray.nodes()
            if node["Alive"] and self._room_on(node["Resources"])
        ]
        if not answers:
            raise UserError(
                f"no node of the Ray cluster has room for one trial: {self._share.cpus} CPU(s), "
                f"{self._share.gpus:g} GPU(s), {self._memory // 2**20:,} MiB of memory"
            )
        tasks = Worker("")
        while ray.wait(answers, num_returns=len(answers), timeout=1)[1]:
            tasks.watch.listen(at_work=True)
            # Tasks give no signs of life, but Ray itself notices a lost node.
            tasks.watch.answered()
            self._watch_preparation(trials[0], tasks, report)
        for answer in answers:
            try:
                reason = ray.get(answer)
            except RayError as error:
                raise UserError(f"a node could not prepare the trials: {error}") from error
            if reason:
                raise UserError(reason)

    @property
    def free(self) -> int:
        return max(0, self._room() - sum(worker.trial is not None for worker in self._workers))

    def _room(self) -> int:
        # Counted again every few seconds, since nodes come and go.
        if time.monotonic() > self._looked + LOOK:
            self._slots_now, self._looked = self._capacity(), time.monotonic()
        return self._slots_now

    def submit(self, trial: Trial) -> None:
        worker = next((worker for worker in self._workers if worker.trial is None), None)
        if worker is None:
            actor = (
                ray.remote(_Slot)
                .options(max_concurrency=3, **self._options())
                .remote(self.device, self._saving, round(1 / (self._share.gpus or 1)))
            )
            worker = _Handle("", actor=actor)
            self._workers.append(worker)
        self._give(worker, trial)

    def _give(self, worker: _Handle, trial: Trial) -> None:
        worker.trial, worker.watch = trial, Watch(None)
        worker.actor.run.remote(trial)
        worker.heard = worker.actor.events.remote()

    def _replace_waiting(self) -> None:
        # After a loss of nodes, idle actors may occupy all remaining slots while others wait in vain for one.
        # An idle actor then takes the trial of a waiting actor.
        for waiting in [worker for worker in self._workers if worker.trial and not worker.placed]:
            idle = next((worker for worker in self._workers if worker.trial is None), None)
            if idle is None or len(self._workers) <= self._room():
                return
            trial = waiting.trial
            assert trial is not None
            self._end(waiting)
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
                self._end(worker)
                # The node and its slots may be gone.
                self._looked = -LOOK
                reason = str(error).partition("\n")[0].strip() or type(error).__name__
                report(ended(trial, "", lost(f"its worker or node died: {reason}")))
                continue
            worker.placed = True
            worker.watch.answered()
            for event in events:
                worker.name = event.worker
                worker.watch.progressed()
                if event.ending is not None:
                    worker.trial = worker.heard = None
                if event.kind == "lost" or event.broken:
                    # The actor may break its next trial as well.
                    self._end(worker)
                report(event)
            if worker.trial:
                worker.heard = worker.actor.events.remote()
        for worker in busy.values():
            worker.watch.listen(at_work=worker.placed)
            self._look_after(worker, report)

    def stop(self) -> None:
        for worker in self._workers[:]:
            self._end(worker)

    def _end(self, worker: _Handle) -> None:
        self._workers.remove(worker)
        ray.kill(worker.actor)

    def _options(self) -> dict[str, float]:
        return {"num_gpus": self._share.gpus, "num_cpus": self._share.cpus, "memory": self._memory}

    def _room_on(self, resources: Mapping[str, float]) -> int:
        """Returns the number of slots that fit on a node with these resources."""
        needs = {"CPU": self._share.cpus, "GPU": self._share.gpus, "memory": self._memory}
        return int(min(resources.get(name, 0) / amount for name, amount in needs.items() if amount))

    def _capacity(self) -> int:
        slots = sum(self._room_on(resources) for resources in _living_resources())
        return min(slots, self._limit or slots)


def _living_resources() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _connect(address: str | None) -> None:
    """Connects to the Ray cluster at `address`, or else at RAY_ADDRESS, or else to a new local cluster.

    Raises UserError if the cluster cannot be reached.
    """
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    _check_reachable("--ray-address" if address else "RAY_ADDRESS", where)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(
            address=where,
            include_dashboard=None if address else False,
            logging_level=logging.ERROR,
            log_to_driver=False,
            # Ray puts the working folder first on the path of every worker, unless a client started the job.
            job_config=JobConfig(_client_job=True),
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"cannot connect to the Ray cluster at {where}: {error}; where it asks for a token, set "
            "RAY_AUTH_MODE=token (docs/guides/clusters.md)"
        ) from error
    finally:
        # Ray's signal handlers would end the program without closing runs in the store.
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _check_reachable(source: str, address: str) -> None:
    """Raises UserError if an address is malformed, or if nothing listens there.

    Ray itself would try for a minute. `auto` and `local` are not checked. `source` is the option or the
    variable that gave the address.
    """
    if address in ("auto", "local"):
        return
    accepted = "accepted are auto or HOST:PORT of a running Ray cluster"
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not (host and port.isdecimal() and int(port) < 2**16):
        raise UserError(f"{source} {cut(address)}: {accepted}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECTING).close()
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"{source} {cut(address)}: no Ray cluster answers there ({error}); {accepted}"
        ) from error


def _refusal_of(trials: list[Trial], resources: Resources) -> str:
    """Prepares trials on a node, and returns why they cannot run there. Empty if they can.

    Returns a text instead of raising, since not every exception can be sent to another process.
    """
    try:
        prepare_all(trials, resources)
    except UserError as error:
        return str(error)
    return ""


class _Slot:
    """A Ray actor that runs trials on a node. Meanwhile it answers requests for events in another thread."""

    def __init__(self, device: str, saving: Saving, sharing: int) -> None:
        self._resources = Resources(device, saving)
        #: The number of slots on the device.
        self._sharing = sharing
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        context = ray.get_runtime_context()
        self._name = f"{context.get_node_id()[:6]}/{context.get_actor_id()[:6]}"
        self._threads = max(1, int(context.get_assigned_resources().get("CPU", 1)))

    def run(self, trial: Trial) -> None:
        # torch keeps the number of threads per calling thread, and Ray uses a new thread here.
        torch.set_num_threads(self._threads)
        resources, name, slots = self._resources, self._name, self._sharing
        try:
            if reason := refusal(resources.device) or refused_precision([trial], resources.device):
                self._events.put(ended(trial, name, lost(reason)))
                return
            report_trial(trial, resources, self._events.put, name, slots=slots, alone=slots == 1)
        except BaseException as error:
            # The driver reads events and never this call's return value.
            reason = f"its worker ({name}) broke: {type(error).__name__}: {error}"
            self._events.put(ended(trial, name, lost(reason)))
            raise

    def events(self) -> list[Event]:
        """Returns the events since the last call, waiting up to a second for the first."""
        events = []
        try:
            events.append(self._events.get(timeout=1))
            while True:
                events.append(self._events.get_nowait())
        except queue.Empty:
            return events
