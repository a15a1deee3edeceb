"""Finds the differences in peft's method comparison that exceed the noise of test questions and of reruns.

huggingface/peft publishes one JSON file per configuration, method_comparison/TASK/results/METHOD--NAME.json,
each from one run with seed 0. A folder of such files is a snapshot; several folders, from old to new, show
which configurations ran again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from tensorbench.machine.outputs import output_folder, replace_files
from tensorbench.machine.table import Table
from tensorbench.machine.visible import visible
from tensorbench.methods import UserError
from tensorbench.methods.errors import UnknownNameError, first_few, shown
from tensorbench.reports.inference.families import dunnett, tukey
from tensorbench.reports.inference.intervals import Bounds, t_quantile
from tensorbench.reports.inference.reruns import RunNoise, run_noise
from tensorbench.reports.units import listed

#: The final metrics that are compared, by their names in peft's files. Each has the number of test questions
#: (1,319 in GSM8K), or None if the score is not a share of right answers.
METRICS: dict[str, int | None] = {"test accuracy": 1319, "test dino_similarity": None}

#: The default reference configuration.
REFERENCE = "lora--llama-3.2-3B-rank32"

#: The largest size of a results file in bytes. Typical files have about 40 kB.
LARGEST_FILE = 4 * 2**20

#: The largest number that is read, in absolute value. It fits an integer column.
LARGEST_NUMBER = 2**63 - 1

#: The file that lists the comparison's files.
MANIFEST = "files.json"

Verdict = Literal["better", "worse", "inconclusive"]


@dataclass(frozen=True)
class PeftRun:
    """One run of peft's comparison."""

    name: str
    model: str
    metric: str
    score: float
    #: The number of test questions. None if the score is not the share that was answered right.
    questions: int | None
    #: The number of trained adapter parameters. None if the file does not state it.
    parameters: int | None
    forgetting: float | None
    seconds: float | None
    seed: int
    created: str
    peft: str
    #: The index of the first folder that contains the run.
    wave: int
    file: str
    sha256: str


@dataclass(frozen=True)
class ConfigurationDifference:
    """The score of one configuration minus that of another, both from the newest snapshot."""

    row: str
    other: str
    difference: float
    #: The interval, simultaneous with those of all other compared configurations. None if both the noise of
    #: questions and the noise of reruns are unknown.
    interval: Bounds | None

    @property
    def verdict(self) -> Verdict:
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return "inconclusive"
        return "better" if self.difference > 0 else "worse"


@dataclass(frozen=True)
class RerunWave:
    """The reruns in one folder, compared with the earlier runs of the same configurations."""

    folder: str
    #: The number of configurations that ran again.
    rows: int
    #: The mean change of the score.
    shift: float
    #: Kendall's rank correlation between earlier and later scores. None for fewer than three configurations.
    kendall: float | None
    #: The number of pairs of configurations whose earlier runs differed significantly, and how many of these
    #: pairs had the reverse order in the reruns.
    called: int
    reversed: int
    #: The number of all other pairs, and how many of these had the reverse order in the reruns.
    uncalled: int
    uncalled_reversed: int


@dataclass(frozen=True)
class PeftComparison:
    """The result of comparing several snapshots of peft's results."""

    metric: str
    #: The newest run of each configuration in the newest snapshot, from best to worst.
    rows: list[PeftRun]
    #: All distinct runs in all snapshots, including configurations that the newest snapshot lacks.
    runs: list[PeftRun]
    noise: RunNoise | None
    reference: str
    against_reference: list[ConfigurationDifference]
    against_best: list[ConfigurationDifference]
    #: The number of pairs of rows.
    pairs: int
    #: The number of pairs that differ significantly if only the noise of test questions counts, each at 95%.
    naive: int
    #: The number of pairs that differ significantly if questions and reruns count, simultaneously at 95%.
    real: int
    reruns: list[RerunWave]
    #: The names of files without a score, which failed or cancelled runs leave.
    skipped: list[str]


def read_run(file: Path, wave: int) -> PeftRun | None:
    """Reads a run's file. Returns None if the run failed or has no score.

    `wave` is the index of the file's folder. Raises UserError for a malformed file.
    """
    # A pipe or a device would be read without end.
    if not file.is_file() or file.stat().st_size > LARGEST_FILE:
        raise UserError(f"{file}: no file of at most {LARGEST_FILE:,} bytes, as results of peft are")
    content = file.read_bytes()
    try:
        result = json.loads(content)
        run, train = result["run_info"], result["train_info"]
        last = train["metrics"][-1] if train["metrics"] else {}
        metric = next((name for name in METRICS if isinstance(last.get(name), int | float)), None)
        if train["status"] != "success" or metric is None or not math.isfinite(last[metric]):
            return None
        score = float(last[metric])
        if METRICS[metric] and not 0 <= score <= 1:
            raise UserError(f"{file}: {metric} {shown(score)} is not in [0, 1]")
        return PeftRun(
            name=file.stem,
            model=str(run["train_config"].get("model_id", "")),
            metric=metric,
            score=score,
            questions=METRICS[metric],
            parameters=_number(train.get("num_trainable_params"), int, 0),
            forgetting=_number(last.get("forgetting", last.get("drift")), float, -LARGEST_NUMBER),
            seconds=_number(train.get("train_time"), float, 0),
            seed=_number(int(run["train_config"]["seed"]), int, -LARGEST_NUMBER),
            created=str(run["created_at"]),
            peft=str(result.get("meta_info", {}).get("package_info", {}).get("peft-version", "")),
            wave=wave,
            file=f"{file.parent.name}/{file.name}",
            sha256=hashlib.sha256(content).hexdigest(),
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, ArithmeticError) as error:
        raise UserError(
            f"{file}: not a result of peft's comparison ({type(error).__name__}: {error})"
        ) from error


def _number(value: Any, kind: type, least: int) -> Any:
    """Returns the value as an int or a float, whichever `kind` is. None if it is not a finite number.

    Raises ValueError if it is below `least` or above `LARGEST_NUMBER`.
    """
    if not isinstance(value, int | float) or value != value or abs(value) == math.inf:
        return None
    if not least <= value <= LARGEST_NUMBER:
        raise ValueError(f"{shown(value)} is not from {least:,} to {LARGEST_NUMBER:,}")
    return kind(value)


def compare_peft(folders: Sequence[Path], reference: str = "") -> PeftComparison:
    """Compares the configurations of the newest folder, the last of `folders`, with `reference`.

    The default reference is `REFERENCE`. The noise of reruns is estimated from all folders. Files of one
    configuration with the same time of creation count as one run. Raises UserError for a folder without
    results, for a file that is not a result of peft, for files of several metrics, and for a reference that
    the newest folder lacks.
    """
    distinct: dict[tuple[str, str], PeftRun] = {}
    skipped, newest = set[str](), set[str]()
    for wave, folder in enumerate(folders):
        files = sorted(folder.glob("*.json"))
        if not files:
            raise UserError(f"--peft-results {folder}: no METHOD--NAME.json in it")
        read = {file.name: read_run(file, wave) for file in files}
        skipped |= {name for name, run in read.items() if run is None}
        newest = {run.name for run in read.values() if run}
        for run in filter(None, read.values()):
            distinct.setdefault((run.name, run.created), run)
    runs = list(distinct.values())
    metrics = sorted({run.metric for run in runs})
    if len(metrics) != 1:
        raise UserError(f"--peft-results: one metric at a time, got {', '.join(metrics) or 'no score'}")
    latest = {run.name: run for run in sorted(runs, key=lambda run: run.created) if run.name in newest}
    rows = sorted(latest.values(), key=lambda run: (-run.score, run.name))
    if not reference and REFERENCE not in latest:
        names = first_few(sorted(latest), 12)
        raise UserError(f"--reference: give one, since {REFERENCE} is not among these results: {names}")
    reference = reference or REFERENCE
    if reference not in latest:
        raise UnknownNameError("reference", reference, latest)
    numbers = {name: number for number, name in enumerate(sorted({run.name for run in runs}))}
    waves = [run.wave for run in runs]
    noise = run_noise(
        [numbers[run.name] for run in runs], waves, [run.score for run in runs], runs[0].questions
    )
    compared = [row for row in rows if row.name != reference]
    best, *rest = rows
    any_pair = tukey(len(rows), _freedom(rows[0], noise)) if rest else math.inf
    fixed = dunnett(
        [_variance(row, noise) for row in compared],
        _variance(latest[reference], noise),
        _freedom(rows[0], noise),
    )
    return PeftComparison(
        metric=metrics[0],
        rows=rows,
        runs=sorted(runs, key=lambda run: (run.name, run.created)),
        noise=noise,
        reference=reference,
        against_reference=[_difference(row, latest[reference], noise, fixed) for row in compared],
        against_best=[_difference(row, best, noise, any_pair) for row in rest],
        pairs=math.comb(len(rows), 2),
        naive=len(_apart(rows, None, float(t_quantile(0.975, math.inf)))),
        real=len(_apart(rows, noise, any_pair)),
        reruns=list(_reruns(runs, folders, noise)),
        skipped=sorted(skipped),
    )


def _variance(run: PeftRun, noise: RunNoise | None) -> float:
    """The variance of a run's score over test questions and reruns. 0 if neither is known.

    It is the larger of the two variances, not their sum. The variance of reruns comes mostly from answers
    that change when a configuration runs again, and the binomial variance over questions includes these.
    """
    of_questions = run.score * (1 - run.score) / run.questions if run.questions else 0.0
    return max(of_questions, noise.variance(run.score, run.questions) if noise else 0.0)


def _freedom(run: PeftRun, noise: RunNoise | None) -> float:
    """The degrees of freedom of the variances from `_variance`.

    They are infinite if the variances come from test questions, and otherwise those of the rerun noise.
    """
    return noise.freedom if noise and (not run.questions or noise.dispersion > 1) else math.inf


def _difference(
    row: PeftRun, other: PeftRun, noise: RunNoise | None, critical: float
) -> ConfigurationDifference:
    """One row's score minus another's. The interval extends `critical` standard errors to either side.

    The questions of both rows count as independent samples. In truth all rows answer the same questions, so
    the interval is too wide. A narrower interval would require the answers to each question, which the files
    lack.
    """
    error, difference = math.sqrt(_variance(row, noise) + _variance(other, noise)), row.score - other.score
    interval = (difference - critical * error, difference + critical * error) if error else None
    return ConfigurationDifference(row.name, other.name, difference, interval)


def _apart(rows: Sequence[PeftRun], noise: RunNoise | None, critical: float) -> set[tuple[str, str]]:
    """The pairs of rows that differ significantly, as pairs of names."""
    return {
        (row.name, other.name)
        for row, other in combinations(rows, 2)
        if _difference(row, other, noise, critical).verdict != "inconclusive"
    }


def _reruns(runs: Sequence[PeftRun], folders: Sequence[Path], noise: RunNoise | None) -> Iterator[RerunWave]:
    """Yields a comparison for each folder in which at least two configurations ran again."""
    from scipy import stats

    before: dict[str, PeftRun] = {}
    for wave, folder in enumerate(folders):
        after = {run.name: run for run in runs if run.wave == wave}
        names = sorted(before.keys() & after.keys())
        if len(names) > 1:
            old, new = ([each[name].score for name in names] for each in (before, after))
            pairs, earlier = list(combinations(names, 2)), [before[name] for name in names]
            called = _apart(earlier, noise, tukey(len(names), _freedom(earlier[0], noise)))
            turned = {
                (one, other)
                for one, other in pairs
                if (before[one].score - before[other].score) * (after[one].score - after[other].score) < 0
            }
            yield RerunWave(
                folder=folder.name,
                rows=len(names),
                shift=sum(b - a for a, b in zip(old, new, strict=True)) / len(names),
                kendall=float(stats.kendalltau(old, new).statistic) if len(names) > 2 else None,
                called=len(called),
                reversed=len(called & turned),
                uncalled=len(pairs) - len(called),
                uncalled_reversed=len(turned - called),
            )
        before |= after


def write_peft_comparison(
    folders: Sequence[Path], out: Path | None = None, *, reference: str = "", force: bool = False
) -> dict[str, str]:
    """Compares snapshots of peft's results, and returns the comparison as a page and as JSON, by file name.

    If `out` is given, both files are also written into this folder. Raises UserError as `compare_peft` does,
    and if the folder is not empty. With `force`, an earlier report in the folder is replaced.
    """
    comparison = compare_peft(folders, reference)
    files = {"comparison.md": as_markdown(comparison), "comparison.json": as_json(comparison)}
    if out is not None:
        folder = output_folder(out, "report", force=force, manifest=MANIFEST)
        replace_files(folder, files, MANIFEST)
    return files


def as_json(comparison: PeftComparison) -> str:
    """The comparison as JSON, with each score's source file and the hash of that file."""
    content = asdict(comparison)
    for name in ("against_reference", "against_best"):
        for entry, difference in zip(content[name], getattr(comparison, name), strict=True):
            entry["verdict"] = difference.verdict
    return json.dumps(content, indent=1) + "\n"


def as_markdown(comparison: PeftComparison) -> str:
    """The comparison as a page: the answer, its certainty, the table, and the effect of reruns."""
    against = {difference.row: difference for difference in comparison.against_reference}
    rows, reruns = [], []
    for row in comparison.rows:
        difference = against.get(row.name)
        rows.append(
            {
                "configuration": row.name,
                f"{comparison.metric} %": _percent(row.score),
                f"difference from {comparison.reference}": "" if difference is None else _points(difference),
                "verdict": "reference" if difference is None else difference.verdict,
                "trained": "" if row.parameters is None else f"{row.parameters:,}",
                "forgetting": "" if row.forgetting is None else f"{row.forgetting:.3f}",
            }
        )
    for rerun in comparison.reruns:
        reruns.append(
            {
                "ran again in": rerun.folder,
                "configurations": str(rerun.rows),
                "mean change": f"{100 * rerun.shift:+.1f}",
                "Kendall's τ": "" if rerun.kendall is None else f"{rerun.kendall:.2f}",
                "order reversed, of pairs that differed": f"{rerun.reversed} of {rerun.called:,}",
                "of inconclusive pairs": f"{rerun.uncalled_reversed} of {rerun.uncalled:,}",
            }
        )
    tables = [Table("", rows, (), ("configuration", "verdict")), Table("", reruns, (), ("ran again in",))]
    shown = (f"\n{table.markdown()}" for table in tables if table.lines)
    return "\n".join([*_answer(comparison), *shown]) + "\n"


def _answer(comparison: PeftComparison) -> Iterator[str]:
    best = comparison.rows[0]
    like_best = sum(difference.verdict == "inconclusive" for difference in comparison.against_best)
    better, worse, inconclusive = (
        sum(difference.verdict == verdict for difference in comparison.against_reference)
        for verdict in ("better", "worse", "inconclusive")
    )
    rows = len(comparison.rows)
    yield (
        f"{rows} configurations, each run once with one seed and not tuned alike. The best mean is "
        f"{_code(best.name)} ({_percent(best.score)})."
    )
    # A run of an earlier folder may lack a score that its configuration has by now.
    names = {f"{row.name}.json" for row in comparison.rows}
    if missing := [name for name in comparison.skipped if name not in names]:
        yield f"Without a score, and left out: {listed(map(_code, missing))}."
    yield ""
    if comparison.against_best and comparison.against_best[0].interval is None:
        yield ("No interval: no configuration ran twice and the score is no share of questions.")
        return
    yield (
        f"- Its difference from {like_best} of the other {rows - 1} is inconclusive (simultaneous 95% "
        "intervals of all pairs)."
    )
    against = f"{better} better, {worse} worse, {inconclusive} inconclusive"
    yield f"- Against {_code(comparison.reference)}: {against}."
    alone = f"{comparison.naive:,} differ by the noise of test questions, each pair alone at 95%; "
    yield (
        f"- Of all {comparison.pairs:,} pairs {alone * bool(best.questions)}{comparison.real:,} differ by "
        "simultaneous intervals."
    )
    noise = comparison.noise
    if noise is None:
        yield "- No configuration ran twice: the intervals hold the noise of questions alone."
    else:
        deviation = math.sqrt(noise.variance(best.score, best.questions))
        yield (
            f"- Rerunning a configuration with the same seed moves its score by {100 * deviation:.1f} points "
            f"(standard deviation at the best row's score; {noise.freedom} degrees of freedom), beside "
            "shifts that all rows share."
        )


def _code(name: str) -> str:
    return f"`{visible(name).replace('`', '').replace('|', '¦')}`"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _points(difference: ConfigurationDifference) -> str:
    mean = f"{100 * difference.difference:+.1f}"
    if difference.interval is None:
        return mean
    low, high = difference.interval
    return f"{mean} [{100 * low:+.1f}, {100 * high:+.1f}]"
