"""Tests the whole harness on a GPU: a killed suite, processes, a full and a broken GPU, lack of memory."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import tensorbench.execution.perform
from tensorbench.backbones.backbone import BackboneKind
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
from tensorbench.records.words import Status, Tag
from tensorbench.training.trial import Resources

from .on_card import listed, one_pass, own_cache, run, sentences, trials

pytestmark = pytest.mark.gpu


#: The largest accepted relative difference of a trial's test loss between two devices, after a few steps.
ACROSS = 0.02

#: Prints how many runs of each trial the store has, by status, as JSON.
COUNT = """
import json, sys
from tensorbench.store.store import Store
records = Store.existing(sys.argv[1], "killed").records()
print(json.dumps([[record.trial_id, str(record.status)] for record in records]))
"""


#: The MiB of memory that a trial may take beyond the memory in use: too little for a step with a large batch.
SPARE = 64


def test_a_suite_that_is_killed_and_started_again_finishes_each_trial_once(card: str) -> None:
    backbone, seeds, steps = "random-minilm-l6", 4, 60
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
        planned = {trial.id for trial in make_plan(validate(Suite, suite, "the suite"), card).trials}
        (folder / "killed.yaml").write_text(json.dumps(suite), encoding="utf-8")
        store = f"sqlite:///{folder / 'mlflow.db'}"
        command = [sys.executable, "-m", "tensorbench", "run", "killed.yaml", "--store", store]
        command += ["--executor", "local", "--device", card, "--slots-per-device", "2"]
        first = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        lines: list[str] = []
        killed: list[str] = []
        assert first.stdout is not None
        for line in first.stdout:
            lines.append(line)
            if line.startswith("✓") and len(killed) < 2:
                # After the first finished trial a worker is killed, after the second the driver.
                victims = [] if killed else _workers(first.pid)
                killed.append("driver" if killed or not victims else "worker")
                os.kill(victims[0] if victims else first.pid, signal.SIGKILL)
        first.wait()
        assert "driver" in killed, "".join(lines[-5:])
        second = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert second.returncode == 0, second.stdout[-300:] + second.stderr[-300:]
        told = subprocess.run(
            [sys.executable, "-c", COUNT, store], capture_output=True, text=True, check=True
        )
        runs = [(trial, status) for trial, status in json.loads(told.stdout)]
        assert Counter(trial for trial, status in runs if status == Status.FINISHED) == Counter(planned)
        assert not [trial for trial, status in runs if status == Status.FAILED]


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


TRAINING = {"steps": 20, "batch_size": 32, "deterministic": True, "precision": "bf16"}


def _on(place: int) -> Slot:
    return Slot(f"cuda:{place}/{place}", "cuda:0", 2, cards()[place])


def test_a_deterministic_trial_is_the_same_in_two_processes(card: str) -> None:
    with _made(card, "random-roberta-base", **TRAINING) as trial:
        first, second = (_by_worker(trial, _on(0)) for _ in range(2))
    assert first.status == Status.FINISHED, first.failure
    assert [name for name in first.files if first.files[name] != second.files.get(name)] == []


def test_a_second_gpu_computes_the_same(card: str) -> None:
    if len(cards()) < 2:
        pytest.skip("there is no second GPU")
    with _made(card, "random-roberta-base", **TRAINING) as trial:
        _alike(_by_worker(trial, _on(1)), _by_worker(trial, _on(0)))


def _alike(actual: Record, expected: Record) -> None:
    for record in (actual, expected):
        assert record.status == Status.FINISHED, record.failure
    first, second = (record.metrics[Measure.SCORE_LOSS] for record in (expected, actual))
    assert math.isclose(first, second, rel_tol=ACROSS)


def test_two_workers_share_the_gpu(card: str, tmp_path: Path) -> None:
    made = trials(card, "tiny-random-vit", tmp_path, range(2), steps=4, batch_size=8)
    with Local([Slot(f"{card}/{number}", card, 1) for number in range(2)]) as workers:
        workers.prepare(made)
        assert run(made, workers, 2) == 0


def test_a_full_gpu_is_refused_until_its_memory_is_free(card: str) -> None:
    device = torch.device(card)
    free, _ = torch.cuda.mem_get_info(device)
    taken = torch.empty(max(0, free - LEAST_FREE * MIB // 2), dtype=torch.uint8, device=device)
    full = refusal(device)
    del taken
    torch.cuda.empty_cache()
    assert "MiB are free" in full
    assert not refusal(device)


def test_an_error_that_breaks_the_gpu_costs_one_trial_and_one_process(card: str) -> None:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_break, args=(card, theirs))
    process.start()
    theirs.close()
    try:
        failure, is_broken, status = ours.recv()
    finally:
        process.kill()
        process.join()
    assert (status, is_broken) == (Status.FAILED, True), failure
    assert answers(torch.device(card)), "another process cannot use the GPU afterwards"


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


#: What no other test runs on a GPU: the fields of a suite. `{folder}` is the folder of the data.
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


@pytest.mark.parametrize("name", OTHERS)
def test_a_trial_on_the_gpu_has_the_loss_that_it_has_on_the_cpu(card: str, name: str) -> None:
    with own_cache() as folder:
        lines = [json.dumps({"q": f"{i} + {i % 7} =", "a": str(i + i % 7)}) for i in range(200)]
        (folder / "sums.jsonl").write_text("\n".join(lines), encoding="utf-8")
        trial = _other(card, folder, name)
        _alike(*(perform(trial, Resources(place), lambda progress: None) for place in (card, "cpu")))


@pytest.mark.parametrize("kind", ["t5", "deberta-v2"])
def test_a_further_kind_computes_what_it_does_on_the_cpu(card: str, kind: BackboneKind) -> None:
    (lora,) = listed(["lora"])
    one_pass(torch.float32, card, lora, kind)


def _other(device: str, folder: Path, name: str) -> Trial:
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
    suite["training"] = {"lr": 1e-3, "steps": 6, "batch_size": 8, "precision": "fp32"} | fields.get(
        "training", {}
    )
    made = make_plan(validate(Suite, suite, f"the suite of {name}"), device)
    return next(trial for trial in made.trials if trial.method["method"] in ("lora", "peft"))


def test_a_trial_that_runs_out_of_memory_leaves_the_next_one_as_it_is(card: str) -> None:
    with own_cache() as folder:
        small, large = (
            trials(card, "random-vit-small", folder, [0], steps=6, batch_size=size, deterministic=True)[0]
            for size in (8, 512)
        )
        resources = Resources(card)
        first = perform(small, resources, lambda progress: None)
        with _limited(card):
            out = perform(large, resources, lambda progress: None)
        rerun = perform(small, resources, lambda progress: None)
    assert (out.status, out.tag(Tag.FAILURE)) == (Status.FAILED, "out of memory")
    assert first.status == rerun.status == Status.FINISHED
    assert rerun.files == first.files
    peaks = [record.metrics[Measure.PEAK_MIB] for record in (first, rerun)]
    assert math.isclose(*peaks, rel_tol=0.05)


@contextmanager
def _limited(device: str) -> Iterator[None]:
    """Limits this process to little more GPU memory than it uses now."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(torch.device(device)).total_memory
    held = torch.cuda.memory_reserved(device) + SPARE * 2**20
    # Without a number this is the current device, which the function takes as None.
    number = torch.device(device).index
    torch.cuda.set_per_process_memory_fraction(held / total, number)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, number)
