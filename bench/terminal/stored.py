"""What a store holds, at the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.store.connect import shown_uri
from bench.terminal.progress import duration
from bench.terminal.tables import fitted, plain_table
from bench.wire.measures import Measure, SplitSizes
from bench.wire.record import Record
from bench.wire.words import OWN_SIZE, Status, Tag
from reports.stored import CellContents, Contents, Provenance, TrialContents

#: The parts of a trial's configuration that are shown, by what their keys begin with.
PARTS = ("method", "task", "recipe")

COLOURS = {Status.FINISHED: "green", Status.FAILED: "red", Status.RUNNING: "cyan"}


def print_contents(console: Console, uri: str, found: Sequence[Contents]) -> None:
    """A line for each experiment."""
    if not found:
        console.print(f"{shown_uri(uri)} holds no suite yet.", markup=False, soft_wrap=True)
        return
    studied = ["studies"] * any(one.studies for one in found)
    heads = ("complete", "failed", "running", "missing", *studied, "others", "latest run")
    table = plain_table(shown_uri(uri), "experiment", *heads, folded=("experiment",), whole=heads)
    for one in found:
        failed = f"[red]{one.failed}[/red]" if one.failed else "0"
        counts = [str(one.complete), failed, str(one.running), str(one.missing)]
        if studied:
            counts.append(f"{one.studies_complete} of {one.studies}" if one.studies else "–")
        counts.append(str(one.others))
        table.add_row(escape(one.experiment), *counts, _when(one.latest))
    console.print(fitted(console, table, "others", "running"))


def print_trial(console: Console, found: TrialContents) -> None:
    """All of one trial: what it is, what came of it, and where that lies."""
    record = found.record
    console.print(f"[bold]{escape(record.name)}[/bold]", highlight=False)
    console.print(_grid((*_identity(found), *_outcome(found), *_surroundings(found))), highlight=False)
    if found.traceback:
        console.print()
        console.print(found.traceback.rstrip(), markup=False, highlight=False, soft_wrap=True)


def print_cell(console: Console, found: CellContents) -> None:
    """A cell of a report's tables, its seeds, and what they come from."""
    cell = found.cell
    told = " · ".join((cell.method, cell.budget, cell.task, cell.backbone))
    console.print(f"[bold]{escape(told)}[/bold]", highlight=False)
    mean = "–" if cell.mean is None else f"{cell.mean:.4f}" + ("" if cell.sd is None else f" ± {cell.sd:.4f}")
    lines = [
        ("cell", f"{cell.number}, of experiment {escape(cell.experiment)}"),
        (cell.evaluated or "score", f"{cell.metric} {mean}, {cell.finished} of {cell.seeds} seeds".lstrip()),
        ("ranks", cell.ranks or "–"),
        ("parameters", f"{cell.parameters:,}, {cell.percent_of_lora:.2f}% of LoRA r=4"),
    ]
    for seed, provenance in found.seeds:
        score = seed.status.lower() if seed.score is None else f"{seed.score:.4f}"
        when = f", {_span(provenance)}" if provenance else ""
        run = f", run {seed.run_id}" if seed.run_id else ""
        lines.append((f"seed {seed.seed}", f"{score}, trial {seed.trial_id or 'not known yet'}{run}{when}"))
    lines += [(head, escape(text)) for head, text in found.lines()]
    console.print(_grid(lines), highlight=False)


def _grid(lines: Iterable[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for head, text in lines:
        grid.add_row(head, text)
    return grid


def _identity(found: TrialContents) -> Iterator[tuple[str, str]]:
    record, row = found.record, found.row
    yield "trial", record.trial_id
    yield "run", f"{record.run_id}, in experiment {escape(found.experiment)}"
    yield "method", escape(f"{record.tag(Tag.METHOD)} ({record.tag(Tag.FAMILY)})")
    yield "ranks", record.tag(Tag.RANKS) or "–"
    for budget in found.budgets:
        ratio = "" if budget["ratio"] is None else f", {budget['ratio']:.3f} of {budget['asked']:,}"
        yield "budget", f"{budget['budget']}{ratio}" + ", missed" * (budget["within"] is False)
    if not found.budgets:
        yield "budget", OWN_SIZE
    adapter, head = found.measure(Measure.ADAPTER_PARAMETERS), found.measure(Measure.HEAD_PARAMETERS)
    peak = found.measure(Measure.PEAK_PARAMETERS)
    count = adapter if row is None or peak is not None else row.parameters
    if count is not None:
        share = f", {row.percent_of_lora:.2f}% of LoRA r=4" if row else ""
        before = "" if peak is None else f" (peak {peak:,.0f})"
        yield "parameters", f"{count:,.0f}{before}{share}" + ("" if head is None else f"; head {head:,.0f}")
    yield from _final_ranks(record)
    yield "backbone", escape(record.tag(Tag.BACKBONE))
    yield "task", f"{escape(record.tag(Tag.TASK))}, seed {record.tag(Tag.SEED)}"
    if (place := found.place) is not None:
        where = f"{place.offset:+.2f} decades from the centre"
        yield "study", f"{place.study}, point {place.point}, at rate {place.lr:g}, {where}"
    if phase := record.tag(Tag.PHASE):
        yield "part of", phase


def _final_ranks(record: Record) -> Iterator[tuple[str, str]]:
    """What training left of the ranks that it cuts: those of modes in a line, those of layers in one each."""
    ranks: Mapping[str, Sequence[int]] = json.loads(record.tag(Tag.FINAL_RANKS, "{}"))
    single = [f"{name} {left[0]}" for name, left in ranks.items() if len(left) == 1]
    if single:
        yield "final ranks", escape(", ".join(single))
    for name, left in ranks.items():
        if len(left) > 1:
            yield f"final ranks, {escape(name)}", f"{' '.join(map(str, left))}, layer by layer"


def _scored(record: Record, score: float) -> str:
    unit = record.tag(Tag.UNIT)
    return f"{record.tag(Tag.METRIC)} {score:.4f}" + (f" {escape(unit)}" if unit else "")


def _outcome(found: TrialContents) -> Iterator[tuple[str, str]]:
    record = found.record
    yield "status", _status(record)
    if record.status == Status.FAILED:
        message = escape(record.tag(Tag.FAILURE_MESSAGE))
        yield "failure", f"[red]{escape(record.tag(Tag.FAILURE))}[/red]: {message}"
    score, loss = found.measure(Measure.SCORE), found.measure(Measure.SCORE_LOSS)
    if score is not None:
        told = _scored(record, score) + ("" if loss is None else f", loss {loss:.4f}")
        yield record.tag(Tag.EVALUATED, "score"), told
    validation, epoch = found.measure(Measure.SELECTED_VALIDATION), found.measure(Measure.SELECTED_EPOCH)
    if validation is not None:
        at = "" if epoch is None else f", at epoch {epoch:.0f}"
        yield "selected", f"validation {_scored(record, validation)}{at}"
    if sizes := SplitSizes.of(record.metrics):
        yield "examples", str(sizes)
    if (c := found.measure(Measure.HEAD_C)) is not None:
        short = "" if found.measure(Measure.HEAD_CONVERGED) else ", [red]not converged[/red]"
        yield "fitted head", f"C = {c:g}{short}"
    seconds, steps = found.measure(Measure.SECONDS), found.measure(Measure.STEPS)
    if seconds is not None:
        step = found.measure(Measure.STEP_MS)
        each = "" if step is None else f" of {step:.1f} ms"
        yield "time", duration(seconds) + ("" if steps is None else f", {steps:.0f} steps{each}")
    peak = found.measure(Measure.PEAK_MIB)
    if peak is not None:
        yield "peak memory", f"{peak:,.0f} MiB"
    yield from _inference(found)
    cut, prompts = found.measure(Measure.CUT_PROMPTS), found.measure(Measure.PROMPTS)
    if cut is not None:
        yield "prompts cut", f"{cut:,.0f} of {prompts:,.0f} in all splits"
    if record.status == Status.FINISHED:
        yield "forgetting", _forgetting(found)


def _inference(found: TrialContents) -> Iterator[tuple[str, str]]:
    """What the adapter costs when it is used."""
    stored, loaded = found.measure(Measure.ADAPTER_BYTES), found.measure(Measure.LOADED_BYTES)
    if stored is not None:
        frozen = "" if loaded is None else f", {loaded:,.0f} in memory with all that is frozen"
        yield "adapter", f"{stored:,.0f} bytes on disk{frozen}"
    bare, examples = found.measure(Measure.BARE_MS), found.measure(Measure.TIMED_EXAMPLES)
    if bare is not None:
        merged = found.measure(Measure.MERGED_FORWARD)
        told = "it does not merge" if merged is None else f"merged {merged:.2f} times"
        yield (
            "inference",
            f"{found.measure(Measure.ADAPTED_FORWARD):.2f} times the bare backbone's {bare:.1f} ms for "
            f"{examples:.0f} examples; {told}",
        )


def _forgetting(found: TrialContents) -> str:
    """What the adapter did to the loss on text that no task trains on."""
    change = found.measure(Measure.FORGETTING)
    if change is None:
        return "not measured"
    bare, adapted = found.measure(Measure.TEXT_LOSS_BARE), found.measure(Measure.TEXT_LOSS)
    tokens, text = found.measure(Measure.TEXT_TOKENS), found.record.tag(Tag.TEXT)
    told = f"{change:+.4f} nats a token, from {bare:.4f} to {adapted:.4f}"
    return f"{told}, on {tokens:,.0f} tokens of {escape(text)}"


def _surroundings(found: TrialContents) -> Iterator[tuple[str, str]]:
    record = found.record
    yield "ran", _span(found.provenance)
    for part in PARTS:
        own = {
            key.removeprefix(f"{part}."): value
            for key, value in found.configuration.items()
            if key.startswith(f"{part}.")
        }
        if own:
            yield f"{part} options", escape(_pairs(own))
    yield from ((head, escape(text)) for head, text in found.provenance.lines())
    for name, size in found.artifacts.items():
        yield "artifact", escape(name) + ("" if size is None else f", {size:,} bytes")
    if found.artifacts:
        yield "artifacts at", escape(shown_uri(record.artifacts))
    for other in found.others:
        yield "other run", f"{other.run_id}, {_status(other)}, {_when(other.started)}"


def _status(record: Record) -> str:
    colour = COLOURS.get(record.status, "yellow")
    return f"[{colour}]{record.status.lower()}[/{colour}]"


def _pairs(values: Mapping[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _when(milliseconds: int) -> str:
    """A moment in the time of this machine."""
    return datetime.fromtimestamp(milliseconds / 1000).strftime("%Y-%m-%d %H:%M")


def _span(provenance: Provenance) -> str:
    """When a trial began and ended, in the time of this machine."""
    return _when(provenance.started) + ("" if provenance.ended is None else f" to {_when(provenance.ended)}")
