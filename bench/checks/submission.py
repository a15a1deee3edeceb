"""Submissions to the board: checks and verifies a pack, and opens a pull request that compares it with LoRA.

The pack is not trusted. No file or repository that it names is opened, none of its code runs, and its names
are escaped in every text.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, Field

from tensorbench.checks.verify import Verification, verify
from tensorbench.machine.memory import MIB
from tensorbench.machine.table import NOTHING, Table, cell_text
from tensorbench.machine.visible import markdown_text, visible
from tensorbench.methods import METHODS, UserError
from tensorbench.methods.errors import cut, first_few, shown
from tensorbench.methods.validation import Frozen, Label, validate
from tensorbench.plan.make import make_plan
from tensorbench.plan.suite import load_suite
from tensorbench.plan.yaml_text import parse, read_text, written
from tensorbench.records.pack_format import ENDING
from tensorbench.reports.answers import between, in_words, trials_of_tuning
from tensorbench.reports.blocks import Block, Entrant
from tensorbench.reports.loading import LoadedResults, load_results
from tensorbench.reports.results import CONVERGED, FLOOR, NO_ADAPTERS, REFERENCE, Cell, TaskAndBackbone
from tensorbench.reports.units import listed, many, minus
from tensorbench.store.opening import is_pack

#: The suites of the board, by the names of packaged suites that `load_suite` accepts.
SUITES = ("lite", "study")
#: The folder of the board in a checkout.
BOARD = Path("results/board")

#: The largest accepted size of a pack in bytes, number of its rows, and number of methods that it adds.
MOST_BYTES, MOST_ROWS, MOST_METHODS = 8 * MIB, 200, 20
#: The largest accepted number of a method's parameters, as a multiple of LoRA's. It is above 1, because small
#: ranks cannot match a budget closely.
MOST_PARAMETERS = 1.1
#: The largest accepted difference of a task's mean score from that of the same trials in a published pack. It
#: is no limit for single trials, as rounding on another processor may decide some scores.
AGREES = 0.02
#: The largest numbers of findings in a text, and of characters of each.
MOST_LISTED, MOST_LETTERS = 8, 200

#: The pattern for names of packs and people. They become names of files and branches, and GitHub mentions.
NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"

#: The pattern for addresses that GitHub turns into a link as a whole. No @ is allowed: it could hide the real
#: host or mention a person.
ADDRESS = r"^https://[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+(/[A-Za-z0-9._/~%+-]{0,200})?$"


def _name(text: str) -> str:
    if not re.fullmatch(NAME, text):
        raise ValueError("should be a name on GitHub: letters, digits, - and _, at most 64")
    return text


Name = Annotated[str, AfterValidator(_name)]


class Rerun(Frozen):
    """A rerun of some trials of an entry by `tensorbench verify PACK --rerun N` that found no fault."""

    by: Name
    date: date
    trials: Annotated[int, Field(ge=1)]
    processor: Label


class Card(Frozen):
    """The YAML file beside an entry's pack, with the facts that the pack lacks and the board shows."""

    #: The GitHub name of the person who ran the suite.
    by: Name
    #: The address of the method's code, if this package lacks the method.
    code: Annotated[str, Field(pattern=ADDRESS)] | None = None
    reruns: tuple[Rerun, ...] = ()

    @property
    def verified(self) -> bool:
        """Whether somebody else ran trials of the entry again."""
        return any(rerun.by.casefold() != self.by.casefold() for rerun in self.reruns)


@dataclass(frozen=True)
class Submission:
    """A pack, the comparison of its methods with LoRA, and the reasons for which it cannot be accepted."""

    pack: Path
    #: The name of the board's suite.
    suite: str
    card: Card | None
    results: LoadedResults
    #: The block in which the methods are compared with the board's LoRA.
    block: Block
    #: The methods that the board's suite lacks.
    newcomers: tuple[Entrant, ...]
    #: The reasons why the pack is not accepted, as sentences. Empty if it is accepted.
    faults: tuple[str, ...]
    #: The result of verifying the pack. None until it is verified.
    verification: Verification | None = None

    @property
    def name(self) -> str:
        return self.pack.name.removesuffix(ENDING)

    @property
    def title(self) -> str:
        return f"Board, {self.suite}: {cut(listed(each.method for each in self.newcomers))}"

    def line(self, entrant: Entrant) -> dict[str, str]:
        """Returns a method's line of the table: its scores, and the difference from LoRA.

        There is a score for each task on each backbone. A method that is not compared has no difference,
        interval or verdict.
        """
        block, found = self.block, entrant.differences.get(self.block.k)
        without = "the reference" if entrant.method == block.against else "not compared"
        unit = block.unit
        return {
            "method": cut(entrant.method),
            "parameters": cell_text(entrant.parameters),
            **{cut(str(s)): unit.score(own.scores[block.k].value) for s, own in entrant.on.items()},
            "difference": minus(unit.difference(found.effect.difference)) if found else NOTHING,
            "95% interval": minus(between(found, unit)) if found else NOTHING,
            "verdict": in_words(found.verdict, unit.size(block.threshold)) if found else without,
        }

    def table(self) -> Table:
        """Returns a table of the methods of the block, LoRA first, with a note that explains the numbers."""
        entrants, unit = self.block.entrants, self.block.unit
        note = (
            f"Scores are {self.block.evaluated} {self.block.metric} after {trials_of_tuning(self.block.k)}. "
            f"Differences are from {cut(self.block.against)}, in {unit.points}, with simultaneous intervals."
        )
        return Table("", [self.line(entrant) for entrant in entrants], [note], ("method", "verdict"))

    @property
    def notes(self) -> list[str]:
        """Returns cautions for readers of the table, such as reasons why a verdict is withheld.

        Other cautions are learning rates at the edge of their window, and the report's notes, such as those
        on studies that are left out.
        """
        notes = [*self.block.guards, *map(str, self.block.edges), *self.results.analysis.notes]
        return [cut(note, MOST_LETTERS) for note in dict.fromkeys(notes)][:MOST_LISTED]

    def provenance(self, entrants: Iterable[Entrant], key: str) -> str:
        """Returns the values of a provenance key, such as the processor, in these methods' trials."""
        records = self.results.experiments[0].records
        cells = (cell for entrant in entrants for cell in entrant.cells)
        runs = (records.get(seed.trial_id) for cell in cells for seed in cell.trials)
        values = {run.provenance.get(key, "") for run in runs if run}
        return first_few([cut(value) for value in sorted(values - {""})], 3) or "unknown"

    def text(self) -> str:
        """The text of the pull request, and of the comment on it, in Markdown."""
        parts = [f"## {markdown_text(self.title)}"]
        if self.faults:
            faults = [f"- {_escaped(fault)}" for fault in self.faults[:MOST_LISTED]]
            more = [f"- and {len(self.faults) - MOST_LISTED:,} more"] * (len(self.faults) > MOST_LISTED)
            parts += ["**Not accepted:**", "\n".join(faults + more)]
        notes = "\n".join(f"- {markdown_text(note)}" for note in self.notes)
        parts += [self.table().markdown(), notes, self._checked(), self._ran(), self._tasks()]
        return "\n\n".join(filter(None, parts)) + "\n"

    def _checked(self) -> str:
        found = self.verification
        if found is None:
            return ""
        unchecked = list(dict.fromkeys(f"{each.what}: {each.why}" for each in found.unchecked))
        lines = [
            f"**Checked by machine**: {many(found.looked_at, 'finished trial')}, {found.verified:,} of them "
            "without a finding. Hashes, ids, scores, losses and counts were computed again, and "
            "the plan was compared with the suite.",
            *(f"- {_escaped(note)}" for note in found.notes),
            *(f"- not checkable here: {_escaped(each)}" for each in unchecked[:MOST_LISTED]),
            "",
            "**Not checked**: that the trials trained as they say. Only running some again shows it.",
        ]
        return "\n".join(lines)

    def _ran(self) -> str:
        own = self.newcomers
        lora = [each for each in self.block.entrants if each.method == self.block.against]
        by = f"by {self.card.by}" if self.card else "by nobody named yet"
        code = f", code at {self.card.code}" if self.card and self.card.code else ""
        what = {
            "processor": self.provenance(own, "cpu"),
            "GPU": self.provenance(own, "gpu").replace("unknown", "none"),
            "processor of the reference": self.provenance(lora, "cpu"),
            "torch": self.provenance(own, "version_torch"),
            "tensorbench": f"{self.provenance(own, 'harness')}, commit {self.provenance(own, 'git_commit')}",
            "hours of all trials": f"{self.results.facts.hours:.2f}",
        }
        day = self.results.experiments[0].last_day
        # The address is the only text that stays a link. Its characters mean nothing in Markdown.
        first = f"**Run** {by} until {day}{code}."
        return "\n".join([first, *(f"- {key}: {markdown_text(value)}" for key, value in what.items())])

    def _tasks(self) -> str:
        load = " --method-file my_method.py" * bool(self.card and self.card.code)
        reruns = self.card.reruns[:MOST_LISTED] if self.card else ()
        return "\n".join(
            [
                "**Reviewers**",
                "- Read the method's code before you run it." * bool(load)
                or "- Does the name say which method and which options it is?",
                "- On another machine, `tensorbench"
                f"{load} verify {BOARD}/{self.name}{ENDING} --rerun 3` ends with *0 broken, 0 not "
                "checkable*. If it takes another `--sample-seed`, say so. Then add yourself to `reruns` in "
                "the YAML file: the row becomes *verified*.",
                *(
                    f"- The card says that {each.by} ran {many(each.trials, 'trial')} again. Let {each.by} "
                    "confirm it here."
                    for each in reruns
                ),
                "- `python docs/board.py` writes the board's page.",
            ]
        )


def _escaped(text: str) -> str:
    return markdown_text(cut(text, MOST_LETTERS))


def read_card(pack: Path) -> Card | None:
    """Reads the card beside a pack. None if there is none. Raises UserError if it is malformed."""
    if not pack.name:  # "" and ".", which `read_submission` refuses
        return None
    file = pack.with_name(pack.name.removesuffix(ENDING) + ".yaml")
    if not file.is_file():
        return None
    try:
        return validate(Card, parse(read_text(file)), str(file))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error


def read_submission(pack: Path, card: Card | None = None, published: Sequence[Path] = ()) -> Submission:
    """Reads a pack, compares its methods with LoRA, and checks the board's rules. Does not verify the pack.

    `card` replaces the card beside the pack. `published` are packs on the board: the pack's scores of LoRA
    have to agree with theirs. A broken rule is in `Submission.faults`.

    Raises UserError if the pack's name, its size, its number of rows or its number of added methods is not
    accepted, if it cannot be read, if it has not exactly one experiment, and if its methods are not compared
    with the LoRA of a suite of the board.
    """
    if not is_pack(pack.name) or not re.fullmatch(NAME, pack.name.removesuffix(ENDING)):
        rule = f"expected letters, digits, '_' and '-', at most 64, and {ENDING}"
        raise UserError(f"the pack's name {shown(pack.name)}: {rule}")
    if pack.is_file() and (size := pack.stat().st_size) > MOST_BYTES:
        most = MOST_BYTES // MIB
        raise UserError(f"{pack} has {size:,} bytes; the board takes at most {most} MiB: leave adapters out")
    results = load_results(pack)
    if len(results.experiments) != 1:
        raise UserError(f"{pack} holds {len(results.experiments)} experiments; a submission is of one")
    if (rows := len(results.all_cells)) > MOST_ROWS:
        raise UserError(f"{pack} has {rows:,} rows; the board takes at most {MOST_ROWS}")
    suite, of_suite = _suite_of(pack, _ids(results.all_cells))
    newcomers = [
        cell
        for cell in results.all_cells
        if cell.family not in NO_ADAPTERS and not _ids([cell]) <= of_suite.own
    ]
    names = list(dict.fromkeys(cell.method for cell in newcomers))
    if not 0 < len(names) <= MOST_METHODS:
        raise UserError(f"{pack} adds {len(names)} methods to {suite}; expected 1 to {MOST_METHODS}")
    blocks = [
        block
        for block in results.analysis.blocks
        if block.reference and _ids(block.reference.cells) == of_suite.lora
    ]
    if not blocks:
        raise UserError(f"{pack} compares nothing with the LoRA of {suite}: its reference is another one")
    block, card = blocks[0], card or read_card(pack)
    compared = {entrant.method: entrant for entrant in block.compared}
    of_lora = {cell.setting: cell for cell in block.reference.cells} if block.reference else {}
    faults = [
        f"{name} is not compared with LoRA on every task: it needs the recipe, the tuning and the tasks of "
        f"{suite}, and complete studies"
        for name in names
        if name not in compared
    ]
    ended = {seed.trial_id for seed in results.all_seeds if seed.record.settled}
    if not of_suite.heads <= ended:
        faults.append(f"the heads of {suite} lack results: they tell whether LoRA learned anything")
    faults += _faults(newcomers, of_lora)
    if not (card and card.code) and not all(METHODS.is_built_in(cell.family) for cell in newcomers):
        faults.append("this package lacks a method of it: --code URL says where reviewers find the code")
    faults += _disagreements(of_lora.values(), published)
    own_entrants = tuple(compared[name] for name in names if name in compared)
    return Submission(pack, suite, card, results, block, own_entrants, tuple(dict.fromkeys(faults)))


def _ids(cells: Iterable[Cell]) -> set[str]:
    return {seed.trial_id for cell in cells for seed in cell.trials}


class _Trials(NamedTuple):
    """The ids of a suite's trials: of LoRA without options, of heads without an adapter, and of all rows."""

    lora: frozenset[str]
    heads: frozenset[str]
    own: frozenset[str]


@cache
def _trials_of(suite: str) -> _Trials:
    rows = make_plan(load_suite(suite)).rows
    plain = [row for row in rows if row.family == REFERENCE and row.method == row.title]
    heads = [row for row in rows if row.family in (FLOOR, CONVERGED)]
    return _Trials(
        *(frozenset(id_ for row in each for id_ in row.trials.values()) for each in (plain, heads, rows))
    )


def _suite_of(pack: Path, trials: set[str]) -> tuple[str, _Trials]:
    """Returns the name of the board's suite to which planned trials belong, with the suite's trials.

    Raises UserError if the planned trials contain the LoRA trials of no suite, or only some of a suite's.
    """
    for name in SUITES:
        own = _trials_of(name)
        if own.lora <= trials:
            return Path(name).stem, own
        if held := len(own.lora & trials):
            raise UserError(
                f"{pack} plans {held} of the {len(own.lora)} trials of LoRA in {Path(name).stem}: all "
                "studies of it are needed, and their trials as the suite states them"
            )
    suites = listed(Path(name).stem for name in SUITES)
    raise UserError(
        f"{pack} plans no trial of LoRA of a suite of the board ({suites}): add your method to a copy of "
        "suites/lite.yaml, and change nothing else in it"
    )


def _faults(newcomers: Sequence[Cell], reference: Mapping[TaskAndBackbone, Cell]) -> Iterator[str]:
    """Yields a sentence for each cell with missing results, and for each newcomer with other seeds than LoRA.

    Also yields a sentence for each newcomer with too many parameters. `reference` has LoRA's cells.
    """
    for cell in (*reference.values(), *newcomers):
        if cell.missing:
            yield f"{cell.method} on {cell.setting}: {many(cell.missing, 'planned trial')} without a result"
    for cell in newcomers:
        lora = reference.get(cell.setting)
        if lora is None or {seed.seed for seed in cell.trials} != {seed.seed for seed in lora.trials}:
            yield f"{cell.method} on {cell.setting}: other trials than LoRA's, study by study"
            continue
        own, most = cell.parameters, MOST_PARAMETERS * (lora.parameters or 0)
        if own is None or own > most:
            yield f"{cell.method} on {cell.setting}: {cell_text(own)} parameters; at most {most:,.0f} fit"


def _disagreements(cells: Iterable[Cell], packs: Iterable[Path]) -> Iterator[str]:
    """Yields a sentence for each task on which LoRA's mean score differs from that in a published pack.

    The mean is over the trials that studies of LoRA kept in this pack and that the other has too. The check
    reveals a LoRA that was weakened to make other methods look better, even if its scores agree with its
    stored predictions.
    """
    kept = {
        f"{cell.task} with {cell.backbone}": {
            trial.trial_id: trial.score for trial in cell.kept.values() if trial and trial.score is not None
        }
        for cell in cells
    }
    for pack in packs:
        published = {
            seed.trial_id: seed.score for seed in load_results(pack).all_seeds if seed.score is not None
        }
        for where, scores in kept.items():
            if common := scores.keys() & published.keys():
                here, there = (fmean(each[id_] for id_ in common) for each in (scores, published))
                if abs(here - there) > AGREES:
                    means = f"a mean of {here:.4f} here and {there:.4f} in {pack.name}"
                    yield f"LoRA's trials on {where} have {means}: more than {AGREES} apart"


def submit(
    pack: Path | str,
    *,
    by: str = "",
    code: str = "",
    board: Path | str = BOARD,
    watching: Callable[[str], None] = lambda what: None,
) -> Submission:
    """Checks and verifies a pack for the board, and returns it with the text of its pull request.

    The pack must have all LoRA studies of a suite of the board, and as many studies of each other method. Its
    trials are verified by `tensorbench.verify`, without opening any file or repository that the pack names.

    Args:
        by: The GitHub name of the person who ran the suite. By default, the name on the card beside the pack.
        code: The https address of the method's code, for a method that this package lacks.
        board: The folder of the published entries. The pack's LoRA scores have to agree with theirs.
        watching: Called with a description of each check.

    Raises UserError for a malformed name or address, and as `read_submission` does.
    """
    pack, board = Path(pack), Path(board)
    if code and not by:
        raise UserError("--code needs --by, the name of who submits")
    card = read_card(pack)
    if by:
        stated = {"by": by} | ({"code": code} if code else {})
        # A pack that is published already keeps the reruns of others.
        card = validate(Card, (card.model_dump() if card else {}) | stated, "submission")
    packs = [*board.glob(f"*{ENDING}"), *board.parent.glob(f"study{ENDING}")]
    published = [path for path in packs if not (pack.is_file() and path.samefile(pack))]
    submission = read_submission(pack, card, sorted(published))
    verification = verify(str(pack), watching=watching)
    broken = [
        f"{each.what}: stored {each.stored}, recomputed {each.recomputed}" for each in verification.faults
    ]
    faults = (*submission.faults, *broken)
    return replace(submission, faults=faults, verification=verification)


def open_pull_request(submission: Submission, board: Path | str = BOARD) -> str:
    """Commits the pack to a new branch of the checkout that has `board`, and opens the pull request.

    The pull request is opened by `gh`, from the account that `gh` is logged in to. Returns its address.

    If a step fails, the next call continues on the branch. Raises UserError if the submission has faults or
    no name, if git or gh is missing or fails, if `gh` is not logged in, and if another entry or branch has
    the name.
    """
    board, name = Path(board), submission.name
    if submission.faults or submission.card is None:
        raise UserError(f"{submission.pack} is not ready: {first_few([*submission.faults, '--by NAME'], 3)}")
    if not board.is_dir():
        raise UserError(f"{board} is not a folder: run this in a checkout of your fork")
    if missing := next((program for program in ("git", "gh") if shutil.which(program) is None), None):
        raise UserError(f"{missing} is not installed; without it, open the pull request by hand")
    target, file = board / f"{name}{ENDING}", board / f"{name}.yaml"
    branch, content = f"board-{name}", submission.pack.read_bytes()
    if target.exists() and target.read_bytes() != content:
        raise UserError(f"{target} exists: name the pack otherwise")

    def call(*command: str, text: str | None = None) -> str:
        done = subprocess.run(command, cwd=root, input=text, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"{' '.join(command[:3])}: {visible(done.stderr.strip())}")
        return done.stdout.strip()

    root = board.resolve()
    root = Path(call("git", "rev-parse", "--show-toplevel"))
    call("gh", "auth", "status")
    if call("git", "branch", "--show-current") != branch:
        call("git", "switch", "--create", branch)
    target.write_bytes(content)
    file.write_text(written(submission.card.model_dump(mode="json", exclude_defaults=True)), encoding="utf-8")
    page = root / "docs" / "board.md"
    call(sys.executable, str(page.with_suffix(".py")))
    paths = [str(path.resolve()) for path in (target, file, page)]
    call("git", "add", *paths)
    if call("git", "status", "--porcelain", "--", *paths):
        # Other staged changes stay staged and are not committed.
        call("git", "commit", "--message", visible(submission.title), "--", *paths)
    call("git", "push", "--set-upstream", "origin", branch)
    title = ("--title", visible(submission.title))
    return call("gh", "pr", "create", *title, "--body-file", "-", text=submission.text())
