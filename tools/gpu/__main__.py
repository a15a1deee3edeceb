"""Runs all checks and measurements that need a GPU.

    python -m tools.gpu --out DIR

The machine needs torch, transformers, peft and timm, and a few packages that the command lists. It needs no
network. Each result is written at once, as a line of DIR/results.jsonl and in the tables of DIR/results.md.
`python docs/gpu_tables.py DIR` puts these tables into docs/explanations/performance.md. The most important
steps come first, and each has a time limit. An interrupted run keeps its results so far. `--device cpu` runs
a reduced form of all steps, whose numbers mean nothing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import runner, steps, tables, wheels


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, help="the folder of the results")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--minutes", type=float, default=steps.MINUTES, help="for all steps together")
    parser.add_argument("--only", action="append", metavar="STEP", help="of the steps those so called")
    parser.add_argument("--list", action="store_true", help="list steps and wheels, and run nothing")
    options = parser.parse_args()
    lacking = wheels.missing()
    print(wheels.instructions(lacking), flush=True)
    if lacking:
        return 2
    from tensorbench.machine.cards import choose_device
    from tensorbench.methods.errors import UserError

    try:
        device = choose_device(options.device)
    except UserError as error:
        parser.error(str(error))
    on_card = device.startswith("cuda")
    chosen = steps.on_card(device, options.minutes) if on_card else steps.on_cpu()
    print(f"on {device}" + ("" if on_card else ": a reduced form, whose figures mean nothing"))
    if options.only:
        names = [step.name for step in chosen]
        if unknown := [name for name in options.only if name not in names]:
            parser.error(f"--only {unknown[0]}: accepted are {', '.join(names)}")
        chosen = [step for step in chosen if step.name in options.only]
    if options.list or options.out is None:
        for step in chosen:
            print(f"{step.seconds:5.0f} s  {step.name}")
        if not options.list:
            parser.error("--out is missing")
        return 0
    run = runner.Runner(options.out, 60 * options.minutes)
    passed = run.run(chosen)
    print(f"{options.out / runner.PAGE} and {options.out / runner.RESULTS}")
    return 0 if passed and not tables.failures(runner.read(options.out)) else 1


if __name__ == "__main__":
    sys.exit(main())
