"""Prints a stored trial, or a cell of a report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tensorbench.cli.tables import duration
from tensorbench.records.measures import Measure, SplitSizes
from tensorbench.records.record import Record
from tensorbench.records.words import OWN_SIZE, Status, Tag
from tensorbench.reports.provenance import Provenance
from tensorbench.reports.stored import CellContents, TrialContents
from tensorbench.store.addresses import shown_uri

#: The sections of a trial's configuration that are shown: the prefixes of their keys.
PARTS = ("method", "task", "recipe")

COLOURS = {Status.FINISHED: "green", Status.FAILED: "red", Status.RUNNING: "cyan"}


def print_trial(console: Console, trial: TrialContents) -> None:
    """Prints a stored trial: its identity, its results, its configuration, and where its files are."""
    record = trial.record
    console.print(f"[bold]{escape(record.name)}[/bold]", highlight=False)
    console.print(_grid((*_identity(trial), *_outcome(trial), *_surroundings(trial))), highlight=False)
    if trial.traceback:
        console.print()
        console.print(trial.traceback.rstrip(), markup=False, highlight=False, soft_wrap=True)


def print_cell(console: Console, contents: CellContents) -> None:
    """Prints a cell of a report: its score, the trial of each seed, and the origin of these numbers."""
    cell = contents.cell
    line = " · ".join((cell.method, cell.budget, cell.task, cell.backbone))
    console.print(f"[bold]{escape(line)}[/bold]", highlight=False)
    mean = "–" if cell.mean is None else f"{cell.mean:.4f}" + ("" if cell.sd is None else f" ± {cell.sd:.4f}")
    counted = f"{mean}, {cell.finished} of {cell.seeds} seeds"
    if cell.studies:
        counted = f"of {cell.finished} of {cell.seeds} trials"
    lines = [
        ("cell", f"{cell.number}, of experiment {escape(cell.experiment)}"),
        (cell.evaluated or "score", f"{cell.metric} {counted}".lstrip()),
        ("ranks", cell.ranks or "–"),
        ("parameters", f"{cell.parameters:,}, {cell.percent_of_lora:.2f}% of LoRA r=4"),
    ]
    kept = contents.kept
    for seed, provenance in contents.seeds:
        score = seed.status.lower() if seed.score is None else f"{seed.score:.4f}"
        when = f", {_span(provenance)}" if provenance else ""
        run = f", run {seed.run_id}" if seed.run_id else ""
        name = f"seed {seed.seed}"
        if seed.study is not None:
            name = f"study {seed.study:.0f}, point {seed.point:.0f}"
            score += f" at rate {seed.lr:.3g}" + ", kept" * (seed.trial_id in kept)
        lines.append((name, f"{score}, trial {seed.trial_id or 'not known yet'}{run}{when}"))
    lines += [(head, escape(text)) for head, text in contents.lines()]
    console.print(_grid(lines), highlight=False)


def _grid(lines: Iterable[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for head, text in lines:
        grid.add_row(head, text)
    return grid


def _identity(trial: TrialContents) -> Iterator[tuple[str, str]]:
    record, row = trial.record, trial.row
    yield "trial", record.trial_id
    yield "run", f"{record.run_id}, in experiment {escape(trial.experiment)}"
    yield "method", escape(f"{record.tag(Tag.METHOD)} ({record.tag(Tag.FAMILY)})")
    yield "ranks", record.tag(Tag.RANKS) or "–"
    for budget in trial.budgets:
        ratio = "" if budget["ratio"] is None else f", {budget['ratio']:.3f} of {budget['asked']:,}"
        yield "budget", f"{budget['budget']}{ratio}" + ", missed" * (budget["within"] is False)
    if not trial.budgets:
        yield "budget", OWN_SIZE
    adapter, head = trial.measure(Measure.ADAPTER_PARAMETERS), trial.measure(Measure.HEAD_PARAMETERS)
    peak = trial.measure(Measure.PEAK_PARAMETERS)
    count = adapter if row is None or peak is not None else row.parameters
    if count is not None:
        share = f", {row.percent_of_lora:.2f}% of LoRA r=4" if row else ""
        before = "" if peak is None else f" (peak {peak:,.0f})"
        yield "parameters", f"{count:,.0f}{before}{share}" + ("" if head is None else f"; head {head:,.0f}")
    yield from _final_ranks(record)
    yield "backbone", escape(record.tag(Tag.BACKBONE))
    yield "task", f"{escape(record.tag(Tag.TASK))}, seed {record.tag(Tag.SEED)}"
    if (place := trial.place) is not None:
        where = f"{place.offset:+.2f} decades from the centre"
        yield "study", f"{place.study}, point {place.point}, at rate {place.lr:g}, {where}"
    if phase := record.tag(Tag.PHASE):
        yield "part of", phase


def _final_ranks(record: Record) -> Iterator[tuple[str, str]]:
    # One line for all modes and bonds, and one line for each projection that has a rank per layer.
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


def _outcome(trial: TrialContents) -> Iterator[tuple[str, str]]:
    record = trial.record
    yield "status", _status(record)
    if record.status == Status.FAILED:
        message = escape(record.tag(Tag.FAILURE_MESSAGE))
        yield "failure", f"[red]{escape(record.tag(Tag.FAILURE))}[/red]: {message}"
    score, loss = trial.measure(Measure.SCORE), trial.measure(Measure.SCORE_LOSS)
    if score is not None:
        line = _scored(record, score) + ("" if loss is None else f", loss {loss:.4f}")
        yield record.tag(Tag.EVALUATED, "score"), line
    validation, epoch = trial.measure(Measure.SELECTED_VALIDATION), trial.measure(Measure.SELECTED_EPOCH)
    if validation is not None:
        at = "" if epoch is None else f", at epoch {epoch:.0f}"
        yield "selected", f"validation {_scored(record, validation)}{at}"
    if sizes := SplitSizes.of(record.metrics):
        yield "examples", str(sizes)
    if (c := trial.measure(Measure.HEAD_C)) is not None:
        short = "" if trial.measure(Measure.HEAD_CONVERGED) else ", [red]not converged[/red]"
        yield "fitted head", f"C = {c:g}{short}"
    seconds, steps = trial.measure(Measure.SECONDS), trial.measure(Measure.STEPS)
    if seconds is not None:
        step = trial.measure(Measure.STEP_MS)
        each = "" if step is None else f" of {step:.1f} ms"
        yield "time", duration(seconds) + ("" if steps is None else f", {steps:.0f} steps{each}")
    peak = trial.measure(Measure.PEAK_MIB)
    if peak is not None:
        yield "peak memory", f"{peak:,.0f} MiB"
    yield from _inference(trial)
    cut, prompts = trial.measure(Measure.CUT_PROMPTS), trial.measure(Measure.PROMPTS)
    if cut is not None:
        yield "prompts cut", f"{cut:,.0f} of {prompts:,.0f} in all splits"
    if record.status == Status.FINISHED:
        yield "forgetting", _forgetting(trial)


def _inference(trial: TrialContents) -> Iterator[tuple[str, str]]:
    stored, loaded = trial.measure(Measure.ADAPTER_BYTES), trial.measure(Measure.LOADED_BYTES)
    if stored is not None:
        frozen = "" if loaded is None else f", {loaded:,.0f} in memory including frozen tensors"
        yield "adapter", f"{stored:,.0f} bytes on disk{frozen}"
    bare, examples = trial.measure(Measure.BARE_MS), trial.measure(Measure.TIMED_EXAMPLES)
    if bare is not None:
        merged = trial.measure(Measure.MERGED_FORWARD)
        line = "it cannot be merged" if merged is None else f"merged {merged:.2f} times"
        yield (
            "inference",
            f"{trial.measure(Measure.ADAPTED_FORWARD):.2f} times the bare backbone's {bare:.1f} ms for "
            f"{examples:.0f} examples; {line}",
        )


def _forgetting(trial: TrialContents) -> str:
    change = trial.measure(Measure.FORGETTING)
    if change is None:
        return "not measured"
    bare, adapted = trial.measure(Measure.TEXT_LOSS_BARE), trial.measure(Measure.TEXT_LOSS)
    tokens, text = trial.measure(Measure.TEXT_TOKENS), trial.record.tag(Tag.TEXT)
    line = f"{change:+.4f} nats a token, from {bare:.4f} to {adapted:.4f}"
    return f"{line}, on {tokens:,.0f} tokens of {escape(text)}"


def _surroundings(trial: TrialContents) -> Iterator[tuple[str, str]]:
    record = trial.record
    yield "ran", _span(trial.provenance)
    for part in PARTS:
        own = {
            key.removeprefix(f"{part}."): value
            for key, value in trial.configuration.items()
            if key.startswith(f"{part}.")
        }
        if own:
            yield f"{part} options", escape(_pairs(own))
    yield from ((head, escape(text)) for head, text in trial.provenance.lines())
    for name, size in trial.artifacts.items():
        yield "artifact", escape(name) + ("" if size is None else f", {size:,} bytes")
    if trial.artifacts:
        yield "artifacts at", escape(shown_uri(record.artifacts))
    for other in trial.others:
        yield "other run", f"{other.run_id}, {_status(other)}, {_when(other.started)}"


def _status(record: Record) -> str:
    colour = COLOURS.get(record.status, "yellow")
    return f"[{colour}]{record.status.lower()}[/{colour}]"


def _pairs(values: Mapping[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _when(milliseconds: int) -> str:
    # In this machine's time zone.
    return datetime.fromtimestamp(milliseconds / 1000).strftime("%Y-%m-%d %H:%M")


def _span(provenance: Provenance) -> str:
    return _when(provenance.started) + ("" if provenance.ended is None else f" to {_when(provenance.ended)}")
