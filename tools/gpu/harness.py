"""Checks the whole harness on the GPU: a killed suite, several processes and GPUs, and broken GPUs."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import torch

import tensorbench.execution.perform
from tensorbench.backbones.backbone import BackboneKind
from tensorbench.checks.conformance.subject import NotApplicable, expect, judge
from tensorbench.execution.health import LEAST_FREE, answers, refusal
from tensorbench.execution.local import Local
from tensorbench.execution.perform import Event, perform
from tensorbench.execution.worker import Slot
from tensorbench.machine.cards import cards
from tensorbench.machine.memory import MIB
from tensorbench.methods.validation import validate
from tensorbench.plan.make import make_plan
from tensorbench.plan.suite import Suite
from tensorbench.plan.trial import Trial
from tensorbench.records.measures import Measure
from tensorbench.records.record import Record
from tensorbench.records.words import Status
from tensorbench.training.trial import Resources

from . import tables
from .correctness import listed, one_pass
from .runner import Row
from .toys import own_cache
from .trials import sentences, trials

#: The largest accepted relative difference of a trial's test loss between two devices, after a few steps.
ACROSS = 0.02

#: Prints how many runs of each trial the store has, by status, as JSON.
COUNT = """
import json, sys
from tensorbench.store.store import Store
records = Store.existing(sys.argv[1], "killed").records()
print(json.dumps([[record.trial_id, str(record.status)] for record in records]))
"""


def _rows(checks: dict[str, Callable[[], str | None]]) -> Iterator[Row]:
    for name, check in checks.items():
        found = judge(name, check)
        yield {"table": tables.HARNESS, "what": name, "status": found.status, "message": found.message}


def killed_suite(device: str, backbone: str, seeds: int, steps: int) -> Iterator[Row]:
    """Runs a suite with a store and two workers, kills a worker, then the driver, and starts again."""
    yield from _rows({"a suite, killed and started again": partial(_killed, device, backbone, seeds, steps)})


def _killed(device: str, backbone: str, seeds: int, steps: int) -> str:
    with own_cache() as folder:
        suite = {
            "name": "killed",
            "backbones": [backbone],
            "tasks": [sentences(folder)],
            "methods": ["lora", {"method": "tenslora", "variant": "qkv_depth"}],
            "budgets": [{"isoparameters": 2}],
            "seeds": list(range(seeds)),
            "training": {"lr": 1e-3, "steps": steps, "batch_size": 16},
            "floor": "none",
        }
        planned = {trial.id for trial in make_plan(validate(Suite, suite, "the suite"), device).trials}
        (folder / "killed.yaml").write_text(json.dumps(suite), encoding="utf-8")
        store = f"sqlite:///{folder / 'mlflow.db'}"
        count = ["--slots-per-device", "2"] if device.startswith("cuda") else ["--workers", "2"]
        command = [sys.executable, "-m", "tensorbench", "run", "killed.yaml", "--store", store]
        command += ["--executor", "local", "--device", device, *count]
        first = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        lines: list[str] = []
        killed: list[str] = []
        assert first.stdout is not None
        for line in first.stdout:
            lines.append(line)
            if "mlflow" in line and "No module" in line:
                raise NotApplicable("MLflow is not installed here")
            if line.startswith("✓") and len(killed) < 2:
                # After the first finished trial a worker is killed, after the second the driver.
                victims = [] if killed else _workers(first.pid)
                killed.append("driver" if killed or not victims else "worker")
                os.kill(victims[0] if victims else first.pid, signal.SIGKILL)
        first.wait()
        expect("driver" in killed, f"the first start ended before it was killed: {''.join(lines[-5:])}")
        second = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        expect(second.returncode == 0, f"the second start: {second.stdout[-300:]} {second.stderr[-300:]}")
        told = subprocess.run(
            [sys.executable, "-c", COUNT, store], capture_output=True, text=True, check=True
        )
        runs = [(trial, status) for trial, status in json.loads(told.stdout)]
        finished = Counter(trial for trial, status in runs if status == Status.FINISHED)
        expect(
            finished == Counter(planned),
            f"finished runs of {len(planned)} trials: {sorted(finished.values())}",
        )
        failed = [trial for trial, status in runs if status == Status.FAILED]
        expect(not failed, f"failed: {failed}")
        return f"killed: {', '.join(killed)}; {len(planned)} trials, each finished once"


def _workers(driver: int) -> list[int]:
    """The processes of a driver that train: those with the most memory."""
    children = psutil.Process(driver).children()
    return [child.pid for child in sorted(children, key=lambda child: -child.memory_info().rss)][:1]


@contextmanager
def _made(device: str, backbone: str, **training: Any) -> Iterator[Trial]:
    with own_cache() as folder:
        yield trials(device, backbone, folder, [0], **training)[0]


def _by_worker(trial: Trial, slot: Slot) -> Record:
    """Runs a trial in a fresh worker and returns its record."""
    endings: list[Record] = []

    def report(event: Event) -> None:
        if event.ending is not None:
            endings.append(event.ending)

    with Local([slot]) as place:
        place.prepare([trial])
        place.submit(trial)
        while not endings:
            place.step(report)
    return endings[0]


def processes(device: str, backbone: str, steps: int, batch: int, precision: str) -> Iterator[Row]:
    """Runs one deterministic trial in two processes, and on a second GPU if there is one."""
    training = {"steps": steps, "batch_size": batch, "deterministic": True, "precision": precision}
    seen = cards() if device.startswith("cuda") else []

    def slot(place: int) -> Slot:
        return Slot(f"cuda:{place}/{place}", "cuda:0", 2, seen[place]) if seen else Slot("cpu/0", "cpu", 2)

    def twice() -> str:
        with _made(device, backbone, **training) as trial:
            first, second = (_by_worker(trial, slot(0)) for _ in range(2))
        expect(first.status == Status.FINISHED, first.failure)
        differing = [name for name in first.files if first.files[name] != second.files.get(name)]
        expect(not differing, f"differ: {', '.join(map(str, differing))}")
        return f"{len(first.files)} artifacts equal, bit for bit"

    def elsewhere() -> str:
        if len(seen) < 2:
            raise NotApplicable("there is no second GPU")
        with _made(device, backbone, **training) as trial:
            return _alike(_by_worker(trial, slot(1)), _by_worker(trial, slot(0)))

    yield from _rows({f"a trial in two processes, {precision}": twice, "a second GPU": elsewhere})


def _alike(actual: Record, expected: Record) -> str:
    for record in (actual, expected):
        expect(record.status == Status.FINISHED, record.failure)
    first, second = (record.metrics[Measure.SCORE_LOSS] for record in (expected, actual))
    expect(math.isclose(first, second, rel_tol=ACROSS), f"test losses {first:.6f} and {second:.6f}")
    return f"test losses {first:.6f} and {second:.6f}"


def broken(device: str) -> Iterator[Row]:
    """Checks that a full GPU is refused, and that an error that breaks it costs one trial and one process."""
    yield from _rows({"a full GPU": partial(_full, device), "a broken GPU": partial(_broken, device)})


def _full(device: str) -> str:
    if not device.startswith("cuda"):
        raise NotApplicable("there is no GPU")
    card = torch.device(device)
    free, _ = torch.cuda.mem_get_info(card)
    taken = torch.empty(max(0, free - LEAST_FREE * MIB // 2), dtype=torch.uint8, device=card)
    full = refusal(card)
    del taken
    torch.cuda.empty_cache()
    expect("MiB are free" in full, f"a GPU without memory is not refused: {full!r}")
    expect(not refusal(card), f"with its memory free, it is refused: {refusal(card)}")
    return full


def _broken(device: str) -> str:
    if not device.startswith("cuda"):
        raise NotApplicable("there is no GPU")
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_break, args=(device, theirs))
    process.start()
    theirs.close()
    try:
        failure, is_broken, status = ours.recv()
    except EOFError:
        raise AssertionError("the process of the trial died before it had a record") from None
    finally:
        process.kill()
        process.join()
    expect(status == Status.FAILED and is_broken, f"status {status}, broken {is_broken}: {failure}")
    expect(answers(torch.device(device)), "another process cannot use the GPU afterwards")
    return failure.partition("\n")[0]


def _break(device: str, link: Any) -> None:
    """Runs a trial whose training reads beyond a table on the GPU, and sends what became of it."""

    def run_trial(*_: object) -> None:
        table = torch.zeros(4, 4, device=device)
        float(table[torch.tensor([10**6], device=device)].sum())

    tensorbench.execution.perform.run_trial = run_trial  # type: ignore[assignment]
    resources = Resources(device)
    with _made(device, "tiny-random-vit", steps=1, batch_size=4) as trial:
        record = perform(trial, resources, lambda progress: None)
    link.send((record.failure, resources.broken, str(record.status)))


#: What no other step runs: the name, and the fields of a suite. `{folder}` is the folder of the data.
OTHERS: dict[str, dict[str, Any]] = {
    "AdaLoRA": {"methods": [{"method": "peft", "type": "ADALORA"}]},
    "nf4": {"backbones": [{"name": "tiny-random-llama", "quantise": "nf4"}]},
    "int8": {"backbones": [{"name": "tiny-random-llama", "quantise": "int8"}]},
    "written answers": {
        "backbones": ["tiny-random-llama"],
        "tasks": [
            {"name": "sums", "jsonl": "{folder}/sums.jsonl", "prompt": "q", "answer": "a", "new_tokens": 4}
        ],
    },
    "augmentation": {
        "backbones": ["tiny-random-vit"],
        "tasks": [{"task": "digits", "train_size": 256, "validation_size": 64, "test_size": 64}],
        "training": {"augmentation": ["colour_jitter", "flip", "crop"]},
    },
}


def others(device: str, steps: int) -> Iterator[Row]:
    """Runs a trial of what no other step tries, on the GPU and on the CPU, and compares their test losses."""
    with own_cache() as folder:
        lines = [json.dumps({"q": f"{i} + {i % 7} =", "a": str(i + i % 7)}) for i in range(200)]
        (folder / "sums.jsonl").write_text("\n".join(lines), encoding="utf-8")
        yield from _rows({name: partial(_other, device, folder, name, steps) for name in OTHERS})
    (lora,) = listed(["lora"])
    kinds: tuple[BackboneKind, ...] = ("t5", "deberta-v2")
    yield from _rows({kind: partial(one_pass, device, torch.float32, lora, kind) for kind in kinds})


def _other(device: str, folder: Path, name: str, steps: int) -> str:
    fields: dict[str, Any] = json.loads(json.dumps(OTHERS[name]).replace("{folder}", str(folder)))
    suite: dict[str, Any] = {
        "name": "others",
        "backbones": ["tiny-random-bert"],
        "tasks": [sentences(folder)],
        "methods": ["lora"],
        "budgets": [{"isorank": 2}],
        "seeds": [0],
        "forgetting": "none",
        "floor": "none",
    } | fields
    suite["training"] = {"lr": 1e-3, "steps": steps, "batch_size": 8, "precision": "fp32"} | fields.get(
        "training", {}
    )
    made = make_plan(validate(Suite, suite, f"the suite of {name}"), device)
    trial = next(trial for trial in made.trials if trial.method["method"] in ("lora", "peft"))
    return _alike(*(perform(trial, Resources(place), lambda progress: None) for place in (device, "cpu")))
