"""The steps, most important first. There are full steps for a GPU, and a reduced form of them for the CPU."""

from __future__ import annotations

from typing import Any

from .runner import Step

#: The default total time in minutes. The limits of all steps that run by default add up to less.
MINUTES = 9

#: One method of each kind: matrices, tensors over a layer and over the model, updates of high rank, added
#: layers, full fine-tuning and the head alone. The reduced form checks only these methods, since the tests
#: check all methods on a CPU.
FAMILIES = ("lora", "tenslora", "lorta", "cara", "quanta", "loretta_adp", "full", "head_only")

#: The methods whose gaps are measured, in this order. The time may not suffice for all.
LOOKED_AT = ("lora", "lotr", "lorta", "cara", "quanta", "full", "tenslora")

#: Methods timed by the reduced form.
TIMED = ("qkv_depth", "lorta", "cara", "full", "head_only")

#: Methods timed with compiled code: only a few, since compiling a method takes longer than all its steps.
COMPILED = ("qkv_depth", "lotr", "lorta", "cara", "fact_tt", "metatt")


def _step(name: str, seconds: float, run: str, /, **options: Any) -> Step:
    return Step(name, f"{__package__}.{run}", seconds, options)


def _speed(device: str, backbone: str, seconds: float, batch: int, **options: Any) -> Step:
    kind = ("bf16" if options["bf16"] else "fp32") + (", compiled" if options.get("compiled") else "")
    name = f"speed of {backbone.removeprefix('random-')}, {kind}"
    return _step(name, seconds, "costs:speed", device=device, backbone=backbone, batch=batch, **options)


def _gaps_of_texts(device: str, seconds: float) -> list[Step]:
    """Whether the mask of padded texts is waited for, by an encoder and by a decoder."""
    kinds = ("bert", "llama")
    options = {"device": device, "batch": 4, "names": ("lora",)}
    return [
        _step(f"gaps of {kind}", seconds, "gaps:gaps", backbone=f"tiny-random-{kind}", **options)
        for kind in kinds
    ]


def on_card(device: str, minutes: float = MINUTES) -> list[Step]:
    """The steps on a GPU. Their limits grow in proportion if `minutes` exceed `MINUTES`.

    Only then is there time for compiled methods, for the llama and for the gaps of texts.
    """
    vit, roberta, llama = (f"random-{name}" for name in ("vit-base", "roberta-base", "llama-1b"))
    both = ({"bf16": True}, {"bf16": False})
    minilm, vit_small = "random-minilm-l6", "random-vit-small"
    steps = [
        _step("machine", 15, "machine:machine", device=device, side=8192, copied_mib=2048, seconds=0.5),
        _step("killed suite", 65, "harness:killed_suite", device=device, backbone=minilm, seeds=4, steps=60),
        _step(
            "processes",
            40,
            "harness:processes",
            device=device,
            backbone=roberta,
            steps=20,
            batch=32,
            precision="bf16",
        ),
        _step("correctness", 110, "correctness:every_method", device=device),
        _step("broken", 25, "harness:broken", device=device),
        _step("out of memory", 15, "memory:runs_out", device=device, backbone=vit_small, batch=512),
        _step("others", 40, "harness:others", device=device, steps=6),
        # The paper's batch. The texts are as long as MRPC's.
        *(
            _speed(device, name, 25, 64, rounds=1, **shape, **kind)
            for name, shape in ((roberta, {"longest": 64}), (vit, {}))
            for kind in both
        ),
        *(
            _step(
                f"loops, {'bf16' if kind['bf16'] else 'fp32'}",
                10,
                "loops:loops",
                device=device,
                backbone=roberta,
                batch=64,
                steps=24,
                longest=64,
                **kind,
            )
            for kind in both
        ),
        _step(
            "trials an hour",
            60,
            "trials:an_hour",
            device=device,
            slots=(1, 4, 8),
            each=4,
            steps=40,
            batch=32,
            backbones=(minilm,),
        ),
        _step("gaps", 20, "gaps:gaps", device=device, backbone=vit_small, batch=32, names=LOOKED_AT),
    ]
    if minutes > MINUTES:
        steps += _gaps_of_texts(device, 10)
        steps += [_speed(device, llama, 40, 8, rounds=1, **kind) for kind in both]
        steps += [
            _speed(device, name, 50, batch, rounds=1, compiled=True, names=COMPILED, **kind)
            for name, batch in ((vit, 32), (roberta, 32), (llama, 8))
            for kind in both
        ]
    longer = max(1.0, minutes / MINUTES)
    return [
        Step(timed_step.name, timed_step.run, timed_step.seconds * longer, timed_step.options)
        for timed_step in steps
    ]


def on_cpu() -> list[Step]:
    """The same steps on toy models. They show that the code runs, and their numbers mean nothing."""
    device = "cpu"
    return [
        _step("machine", 20, "machine:machine", device=device, side=256, copied_mib=16, seconds=0.1),
        _step(
            "killed suite",
            300,
            "harness:killed_suite",
            device=device,
            backbone="tiny-random-bert",
            seeds=3,
            steps=2,
        ),
        _step(
            "processes",
            120,
            "harness:processes",
            device=device,
            backbone="tiny-random-bert",
            steps=2,
            batch=8,
            precision="fp32",
        ),
        _step("correctness", 150, "correctness:every_method", device=device, names=FAMILIES),
        _step("broken", 60, "harness:broken", device=device),
        _step("others", 120, "harness:others", device=device, steps=2),
        _step(
            "loops",
            60,
            "loops:loops",
            device=device,
            backbone="tiny-random-bert",
            batch=4,
            steps=8,
            longest=16,
            bf16=False,
        ),
        _step("out of memory", 60, "memory:runs_out", device=device, backbone="tiny-random-vit", batch=32),
        *(
            _speed(device, f"tiny-random-{kind}", 60, 2, rounds=1, bf16=bf16, names=TIMED)
            for kind in ("vit", "bert", "llama")
            for bf16 in (True, False)
        ),
        _step(
            "trials an hour",
            120,
            "trials:an_hour",
            device=device,
            slots=(1, 2),
            each=2,
            steps=4,
            batch=8,
            backbones=("tiny-random-bert", "tiny-random-vit"),
        ),
        _step("gaps", 60, "gaps:gaps", device=device, backbone="tiny-random-vit", batch=4, names=FAMILIES),
        *_gaps_of_texts(device, 30),
        _speed(device, "tiny-random-vit", 120, 2, rounds=1, bf16=False, compiled=True, names=("lora",)),
    ]
