"""Tests submissions to the board: the text, what is refused, what is escaped, and the pull request."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tensorbench.checks import submission
from tensorbench.checks.submission import open_pull_request, read_submission, submit
from tensorbench.methods import UserError
from tensorbench.records.measures import Measure
from tensorbench.store.store import Store

from ..packs import Files, changed, edit_json, packed
from .toy_runs import SHORT, run_inline
from .toy_suites import UNSEEDED, plan, write
from .verify.forged import Forged

#: The board's suite in these tests.
BOARD: dict[str, Any] = {
    **UNSEEDED,
    "methods": ["converged_head", "lora", {"method": "tenslora", "variant": "att"}],
    "budgets": [{"isoparameters": 2, "tolerance": 0.5}],
    "training": SHORT,
    "tuning": {"studies": 3, "points": 2, "lr": {"around": 5e-3}},
}
#: The rows of the newcomer's plan.
HEAD, LORA, _, LOTR = range(4)

EVIL = "@everyone #1 [x](https://evil.example) | <img src=x> `rm` www.evil.example \u202e" + "A" * 500


@pytest.fixture(autouse=True)
def suites(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "SUITES", (str(write(tmp_path_factory.mktemp("board"), BOARD)),))


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], str]) -> Path:
    """The board's suite with LoTR as the newcomer."""
    folder = tmp_path_factory.mktemp("newcomer")
    store = Store.create(new_store(folder), "toy")
    run_inline(store, plan(BOARD, methods=[*BOARD["methods"], "lotr"]))
    return packed(store.uri, "toy", folder)


def named(pack: Path, folder: Path, name: str = "mine") -> Path:
    return Path(shutil.copy(pack, folder / f"{name}.tensorbench.zip"))


def test_a_newcomer_stands_beside_lora_with_its_interval(
    pack: Path, tmp_path: Path, call: Callable[..., Any]
) -> None:
    ended = call("submit", pack, "--by", "ada", "--board", tmp_path)
    assert ended.code == 0, ended.out + ended.err
    lines = [[cell.strip() for cell in line.split("|")] for line in ended.out.splitlines() if line[:1] == "|"]
    heads, methods = lines[0], {line[1]: dict(zip(lines[0], line, strict=True)) for line in lines[2:]}
    assert [line[1] for line in lines[2:3]] == ["LoRA"]
    assert heads[-4:-1] == ["difference", "95% interval", "verdict"]
    own = read_submission(pack)
    (entrant,) = own.newcomers
    low, high = entrant.differences[own.block.k].interval or (0, 0)
    assert methods["LoTR"]["95% interval"] == f"{100 * low:+.2f} to {100 * high:+.2f}".replace("-", "−")
    assert "TensLoRA att" in methods
    assert "19 finished trials, 19 of them without a finding" in ended.out
    assert "by ada" in ended.out
    assert "Nothing was sent" in ended.err


def forged(pack: Path, folder: Path, change: Callable[[Forged], None]) -> Path:
    content = Forged(pack)
    change(content)
    return content.write(folder / "mine.tensorbench.zip")


def no_newcomer(content: Forged) -> None:
    content.keep(lambda trial: trial.row != LOTR)


def another_recipe(content: Forged) -> None:
    for trial in content.trials:
        trial.trial["recipe"]["batch_size"] = 8


def another_window_for_lora(content: Forged) -> None:
    for trial in content.trials:
        if trial.row == LORA:
            trial.rate(1e-5)


def a_choice_of_studies(content: Forged) -> None:
    content.keep(lambda trial: trial.study < 2)
    content.plan_studies(2)
    content.rewrite_suites(lambda suite: suite["tuning"].update(studies=2))
    content.suite["suite"]["tuning"]["studies"] = 2


def lora_named_otherwise(content: Forged) -> None:
    """Gives LoRA's name to another LoRA of two parameters, and another name to LoRA."""
    content.rows[LORA].update(method="LoRA (old)")
    content.rows[LOTR].update(method="LoRA", title="LoRA", family="lora")
    for trial in content.trials:
        if trial.row == LOTR:
            trial.trial["method"] = {"method": "lora", "version": 1, "rank": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_newcomer, "adds 0 methods to suite"),
        (another_recipe, "no trial of LoRA of a suite of the board"),
        (another_window_for_lora, "no trial of LoRA of a suite of the board"),
        (a_choice_of_studies, "plans 4 of the 6 trials of LoRA"),
        (lora_named_otherwise, "its reference is another one"),
    ],
)
def test_another_reference_is_refused(
    pack: Path, tmp_path: Path, change: Callable[[Forged], None], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        submit(forged(pack, tmp_path, change))


def a_study_of_the_newcomer_gone(content: Forged) -> None:
    content.keep(lambda trial: (trial.row, trial.study) != (LOTR, 1))


def a_trial_of_lora_gone(content: Forged) -> None:
    content.of(LORA, 1)[0].ran = False


def the_head_gone(content: Forged) -> None:
    for trial in content.of(HEAD):
        trial.ran = False


def many_parameters(content: Forged) -> None:
    content.rows[LOTR]["parameters"] *= 10


def no_parameters(content: Forged) -> None:
    content.rows[LOTR]["parameters"] = None


def an_unknown_method(content: Forged) -> None:
    for trial in content.trials:
        if trial.row == LOTR:
            trial.trial["method"] = {"method": "mine", "version": 1}
    content.suite["suite"]["methods"][LOTR] = "mine"
    content.rewrite_suites(lambda suite: suite["methods"].__setitem__(LOTR, "mine"))


def a_score(content: Forged) -> None:
    content.of(LOTR, 0)[0].metrics[Measure.SCORE] += 0.1


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (a_study_of_the_newcomer_gone, "other trials than LoRA's, study by study"),
        (a_trial_of_lora_gone, "1 planned trial without a result"),
        (the_head_gone, "they tell whether LoRA learned anything"),
        (many_parameters, "parameters; at most"),
        (no_parameters, "– parameters; at most"),
        (an_unknown_method, "--code URL"),
        (a_score, "score: stored"),
    ],
)
def test_a_pack_with_a_fault_is_not_accepted(
    pack: Path, tmp_path: Path, change: Callable[[Forged], None], fault: str, call: Callable[..., Any]
) -> None:
    mine = forged(pack, tmp_path, change)
    found = submit(mine, by="ada")
    assert [each for each in found.faults if fault in each], found.faults
    assert "Not accepted" in found.text()
    with pytest.raises(UserError, match="is not ready"):
        open_pull_request(found, tmp_path)


def test_a_method_of_others_needs_its_address_and_runs_nowhere(pack: Path, tmp_path: Path) -> None:
    mine = forged(pack, tmp_path, an_unknown_method)
    found = submit(mine, by="ada", code="https://example.org/mine/blob/0123abc/mine.py")
    assert not found.faults
    assert "not checkable here" in found.text()
    assert "code at https://example.org/mine/blob/0123abc/mine.py" in found.text()
    assert "Read the method's code" in found.text()


def test_a_weakened_reference_disagrees_with_published_packs(pack: Path, tmp_path: Path) -> None:
    board = tmp_path / "board"
    board.mkdir()
    named(pack, board, "first")
    mine = named(pack, tmp_path)
    assert not submit(mine, board=board).faults
    own = read_submission(mine)
    lora = own.results.all_cells[LORA]

    def faults(*changes: float) -> list[str]:
        """What is found if each trial's score changes by its number."""
        seeds = (
            replace(seed, measures=dict(seed.measures) | {"score": seed.score + change})
            for seed, change in zip(lora.trials, changes, strict=True)
            if seed.score is not None
        )
        changed = replace(lora, trials=tuple(seeds))
        return list(submission._disagreements([changed], [board / "first.tensorbench.zip"]))

    kept = [trial in lora.kept.values() for trial in lora.trials]
    assert kept.count(True) == 3
    (fault,) = faults(*(-0.03 * each for each in kept))
    assert fault.startswith("LoRA's trials on digits with tiny-random-vit have a mean of ")
    # Rounding may change a single score by more, in either direction.
    signs = iter([0.05, -0.05, 0.05])
    assert not faults(*(next(signs) if each else 0.0 for each in kept))


def evil(content: Files) -> None:
    def rename(stored: dict[str, Any]) -> None:
        for row in stored["rows"]:
            row.update(method=row["method"] + EVIL, title=row["title"] + EVIL, task=EVIL, backbone=EVIL)

    edit_json("plan.json", rename)(content)
    name = next(path for path in content if path.endswith("runs.jsonl"))
    runs = [json.loads(line) for line in content[name].splitlines()]
    for run in runs:
        run["tags"].update({key: EVIL for key in run["tags"] if key.startswith("provenance.")})
    content[name] = "".join(json.dumps(run) + "\n" for run in runs).encode()


def test_names_of_strangers_are_text(pack: Path, tmp_path: Path) -> None:
    text = submit(changed(pack, tmp_path / "mine.tensorbench.zip", evil)).text()
    assert "everyone" in text
    for pattern in (
        r"@\w",
        r"#\d",
        r"(?<!\\)\[x",
        r"://",
        r"www\.",
        "<img",
        r"(?<!\\)`rm",
        "\u202e",
        "A{250}",
    ):
        # GitHub makes no link where a space without width is.
        assert not re.search(pattern, text.replace("&#8203;", "\u200b")), pattern
    assert len(text) < 20_000


@pytest.mark.parametrize("name", ["a b", "-x", "é", "x" * 80, "a;b"])
def test_a_name_of_a_pack_is_a_name_of_a_branch(pack: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="the pack's name"):
        submit(named(pack, tmp_path, name))


@pytest.mark.parametrize("pack", ["", "."])
def test_a_pack_needs_a_name(pack: str) -> None:
    with pytest.raises(UserError, match="the pack's name ''"):
        submit(pack)


def test_a_large_pack_is_refused_unread(tmp_path: Path) -> None:
    file = tmp_path / "mine.tensorbench.zip"
    with file.open("wb") as pack:
        pack.truncate(submission.MOST_BYTES + 1)
    with pytest.raises(UserError, match="at most 8 MiB"):
        submit(file)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "a b"}, "by"),
        ({"by": "@ada"}, "by"),
        ({"by": "ada", "code": "http://example.org"}, "code"),
        ({"by": "ada", "code": "https://example.org/) [x](y"}, "code"),
        ({"by": "ada", "code": "https://github.com@example.org/mine"}, "code"),
        ({"by": "ada", "code": "https://-/@bob"}, "code"),
        ({"code": "https://example.org"}, "--code needs --by"),
    ],
)
def test_names_and_addresses_are_refused_by_field(pack: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        submit(pack, **options)


def test_only_somebody_else_verifies(pack: Path, tmp_path: Path) -> None:
    mine = named(pack, tmp_path)
    card: dict[str, Any] = {"by": "ada"}
    rerun = {"date": "2026-12-01", "trials": 3, "processor": "a processor"}
    for reruns, verified in (
        ([], False),
        ([{"by": "Ada", **rerun}], False),
        ([{"by": "bob", **rerun}], True),
    ):
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(card | {"reruns": reruns}))
        found = read_submission(mine).card
        assert found is not None
        assert found.verified is verified
    # Anybody can write a line into a card, so its person has to confirm it.
    assert "- The card says that bob ran 3 trials again. Let bob confirm it here.\n" in submit(mine).text()
    assert submit(mine, by="ada").card == found


GH = """#!/bin/sh
[ "$1" != "$FAILING" ] || exit 1
[ "$1" != auth ] || exit 0
echo "$@" > "$RECORD/arguments"
cat > "$RECORD/body"
echo https://example.org/pull/7
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with a remote, and a `gh` that records its arguments."""
    programs, remote, checkout = (tmp_path / name for name in ("programs", "remote", "checkout"))
    programs.mkdir()
    (programs / "gh").write_text(GH)
    (programs / "gh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("RECORD", str(tmp_path))
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "ada")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "ada@example.org")
    subprocess.run(["git", "init", "-q", "--bare", remote], check=True)
    subprocess.run(["git", "clone", "-q", remote, checkout], check=True, capture_output=True)
    (checkout / "docs").mkdir()
    (checkout / "docs" / "board.py").write_text("open('docs/board.md', 'w').write('the board')")
    (checkout / "results" / "board").mkdir(parents=True)
    (checkout / "other.txt").write_text("staged")
    subprocess.run(["git", "add", "other.txt"], cwd=checkout, check=True)
    return checkout


def test_the_pull_request_holds_pack_card_and_page_alone(
    pack: Path, tmp_path: Path, checkout: Path, call: Callable[..., Any]
) -> None:
    mine, board = named(pack, tmp_path, "toy-lotr"), checkout / "results" / "board"
    ended = call("submit", mine, "--by", "ada", "--board", board, "--pull-request")
    assert ended.code == 0, ended.err
    assert "https://example.org/pull/7" in ended.err
    assert (
        (tmp_path / "arguments").read_text().startswith("pr create --title Board, suite: LoTR --body-file -")
    )
    assert (tmp_path / "body").read_text() == ended.out
    shown = ["git", "show", "--name-only", "--format=", "board-toy-lotr"]
    files = subprocess.run(shown, cwd=tmp_path / "remote", capture_output=True, text=True, check=True).stdout
    names = ["docs/board.md", "results/board/toy-lotr.tensorbench.zip", "results/board/toy-lotr.yaml"]
    assert files.split() == names
    assert yaml.safe_load((board / "toy-lotr.yaml").read_text()) == {"by": "ada"}


@pytest.mark.parametrize("failing", ["auth", "pr"])
def test_a_pull_request_that_failed_is_opened_by_the_next_call(
    pack: Path, tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    board = checkout / "results" / "board"
    ready = submit(named(pack, tmp_path, "toy-lotr"), by="ada", board=board)
    monkeypatch.setenv("FAILING", failing)
    with pytest.raises(UserError, match=f"gh {failing}"):
        open_pull_request(ready, board)
    assert [*board.iterdir()] == [] or failing != "auth"
    monkeypatch.setenv("FAILING", "")
    assert open_pull_request(ready, board) == "https://example.org/pull/7"
    (board / "toy-lotr.tensorbench.zip").write_bytes(b"another's")
    with pytest.raises(UserError, match="exists: name the pack otherwise"):
        open_pull_request(ready, board)
