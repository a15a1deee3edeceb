"""Tests the workflows and scripts by which pull requests of strangers join the board."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = ROOT / ".github" / "workflows"


def workflow(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((WORKFLOWS / f"{name}.yml").read_text(encoding="utf-8"))
    return loaded


def test_only_jobs_that_run_nothing_of_the_repository_or_a_pull_request_may_write() -> None:
    writing = []
    for path in WORKFLOWS.glob("*.yml"):
        general = workflow(path.stem)["permissions"]
        for name, job in workflow(path.stem)["jobs"].items():
            # A job's own permissions take the place of the workflow's.
            if set(job.get("permissions", general).values()) - {"read"}:
                writing.append((path.stem, name))
    assert sorted(writing) == [("comment", "post"), ("weekly", "issue")]
    assert not [step for step in workflow("weekly")["jobs"]["issue"]["steps"] if "uses" in step]
    # Tags of actions move, commits do not.
    (job,) = workflow("comment")["jobs"].values()
    assert all(re.search("@[0-9a-f]{40}$", step["uses"]) for step in job["steps"] if "uses" in step)
    # YAML reads the key `on` as a boolean.
    assert workflow("comment")[True]["workflow_run"]["workflows"] == [workflow("board")["name"]]
    checkouts = {
        name: step["with"]["ref"]
        for name in ("board", "comment")
        for job in workflow(name)["jobs"].values()
        for step in job["steps"]
        if "checkout" in step.get("uses", "")
    }
    assert checkouts == {
        "board": "${{ github.event.pull_request.base.sha }}",
        "comment": "${{ github.event.repository.default_branch }}",
    }


def test_no_workflow_writes_what_others_named_into_a_shell() -> None:
    for path in WORKFLOWS.glob("*.yml"):
        for job in workflow(path.stem)["jobs"].values():
            assert not [step for step in job["steps"] if "${{" in step.get("run", "")], path.name


def program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}")
    (folder / name).chmod(0o755)


def git(folder: Path, *arguments: str) -> None:
    names = {f"GIT_{role}_{key}": "a@b" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
    names["GIT_CONFIG_GLOBAL"] = os.devnull
    subprocess.run(["git", *arguments], cwd=folder, env=os.environ | names, check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout of the base branch with the script, and a remote with no pull request yet."""
    git(tmp_path, "init", "-q", "--bare", "-b", "main", "remote")
    git(tmp_path, "clone", "-q", "remote", "checkout")
    checkout = tmp_path / "checkout"
    (checkout / ".ci").mkdir()
    (checkout / ".ci" / "board").write_bytes((ROOT / ".ci" / "board").read_bytes())
    (checkout / ".ci" / "board").chmod(0o755)
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "base")
    git(checkout, "push", "-q", "origin", "HEAD:main")
    return checkout


def comment(
    checkout: Path, files: Mapping[str, str | None], board: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """The exit code of `.ci/board` on a pull request with these files, and the comment.

    `board` holds files that the branch to merge into has already. A file without text is deleted.
    """
    for name, content in (board or {}).items():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(content)
    git(checkout, "add", ".")
    git(checkout, "commit", "--allow-empty", "-qm", "board")
    git(checkout, "switch", "-qc", "pull")
    for name, text in files.items():
        if text is None:
            (checkout / name).unlink()
            continue
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(text)
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "pull")
    git(checkout, "push", "-q", "origin", "+HEAD:refs/pull/7/head")
    git(checkout, "switch", "-q", "-")
    programs = checkout.parent / "programs"
    # It prints the pack's name and content, and refuses one.
    program(
        programs,
        "tensorbench",
        'grep -q bad "$2" && { printf "<b>bad\\r@all" >&2; exit 1; }; echo "ran $2"; cat "$2"',
    )
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    out = checkout.parent / "out"
    done = subprocess.run([".ci/board", "7", out], cwd=checkout, env=os.environ | {"PATH": path}, check=False)
    assert (out / "number").read_text() == "7\n"
    return done.returncode, (out / "comment.md").read_text()


def test_a_pull_request_s_packs_are_read_and_nothing_of_it_is_run(checkout: Path) -> None:
    card = {"results/board/mine.yaml": "by: ada\n"}
    run = {".ci/board": "#!/bin/sh\nexit 0\n", "pyproject.toml": "[project]", "results/board/sub/a.py": "1"}
    code, text = comment(checkout, {"results/board/mine.tensorbench.zip": "a pack"} | card)
    assert code == 0
    assert re.search(r"^ran /\S+/mine\.tensorbench\.zip\na pack", text)
    git(checkout, "branch", "-qD", "pull")
    code, text = comment(checkout, {"results/board/mine.tensorbench.zip": "a pack"} | run)
    assert (code, "results/board holds packs" in text) == (1, True)


PACK, CARD = "results/board/mine.tensorbench.zip", "results/board/mine.yaml"
#: An entry of the board.
ENTRY = {PACK: "a pack", CARD: "by: ada\n"}
LONG = "a pack" * 100

#: The files of a pull request, those of the board, the exit code, and a pattern of the comment.
PULLS: dict[str, tuple[dict[str, str | None], dict[str, str], int, str]] = {
    # What cannot be read is shown as it is.
    "unreadable": ({PACK: "bad", CARD: "by: ada\n"}, {}, 1, "\n    <b>bad\n    @all"),
    # Somebody who ran an entry again changes its card alone.
    "rerun": ({CARD: "by: ada\nreruns: []\n"}, ENTRY, 0, r"^ran /\S+/mine\.tensorbench\.zip\na pack"),
    "replaced": ({PACK: "another pack"}, ENTRY, 1, "has mine.tensorbench.zip already"),
    # Git takes the entry for another one renamed.
    "renamed": (
        {"results/board/other.tensorbench.zip": None, PACK: LONG, CARD: "by: ada\n"},
        {"results/board/other.tensorbench.zip": LONG, CARD: ""},
        0,
        LONG,
    ),
    # Refused unread.
    "no card": ({PACK: "a pack"}, {}, 1, "mine.yaml is missing"),
    "shell": ({"results/board/$(touch x).tensorbench.zip": ""}, {}, 1, "holds packs"),
    "newline": ({"results/board/a\nb.tensorbench.zip": ""}, {}, 1, "holds packs"),
    "letter": ({"results/board/é.tensorbench.zip": ""}, {}, 1, "holds packs"),
    "code": ({"results/board/run.py": ""}, {}, 1, "holds packs"),
    "size": ({"results/board/big.tensorbench.zip": "x" * (8 * 2**20 + 1)}, {}, 1, "at most 8 MiB"),
    "no pack": ({CARD: ""}, {}, 1, "adds no pack"),
    "many": ({f"results/board/p{n}.tensorbench.zip": "" for n in range(4)}, {}, 1, "more than 3 packs"),
}


@pytest.mark.parametrize("pull", PULLS)
def test_a_pull_request_is_read_or_refused_unread(checkout: Path, pull: str) -> None:
    files, board, code, message = PULLS[pull]
    ended, text = comment(checkout, files, board)
    assert (ended, bool(re.search(message, text))) == (code, True), text


#: Answers as GitHub's interface gives them, with jq's expressions applied by the real jq.
GH = """
case "$*" in
    *actions/runs*) file=artifacts ;;
    *zip*) cat "$ANSWERS/comment.zip"; exit ;;
    */compare/ba5e...c0ffee*) file=files ;;
    *"pr comment"*) shift 4; cat "$1" > "$ANSWERS/posted"; exit ;;
    *) file=pull ;;
esac
while [ "$1" != --jq ]; do shift; done
jq -r "$2" "$ANSWERS/$file"
"""


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")
@pytest.mark.parametrize(
    ("change", "posted"),
    [
        ({}, True),
        ({"files": ["results/board/a.tensorbench.zip", ".github/workflows/board.yml"]}, False),
        ({"files": ["docs/board.md.py"]}, False),
        ({"number": "8; touch x"}, False),
        ({"number": ""}, False),
        ({"head": "another"}, False),
        ({"files": [f"results/board/{n}.yaml" for n in range(100)]}, False),
        ({"size": 10**6}, False),
        ({"comment": "x" * 60_001}, False),
        ({"name": "../comment.md"}, False),
    ],
    ids=["fine", "workflow", "page", "shell", "none", "commit", "many", "archive", "text", "path"],
)
def test_a_comment_is_posted_only_on_the_pull_request_that_changes_the_board_alone(
    tmp_path: Path, change: dict[str, Any], posted: bool
) -> None:
    given = {
        "files": ["results/board/a.yaml", "docs/board.md"],
        "number": "7\n",
        "head": "c0ffee",
    }
    given |= {"size": 1000, "comment": "| LoRA |", "name": "comment.md"} | change
    artifacts = [{"name": "comment", "id": 5, "size_in_bytes": given["size"]}]
    answers: dict[str, Any] = {
        "artifacts": {"artifacts": artifacts},
        "files": {"files": [{"filename": name} for name in given["files"]]},
        "pull": {"head": {"sha": given["head"]}},
    }
    for name, answer in answers.items():
        (tmp_path / name).write_text(json.dumps(answer))
    with zipfile.ZipFile(tmp_path / "comment.zip", "w") as archive:
        archive.writestr("number", given["number"])
        archive.writestr(given["name"], given["comment"])
    program(tmp_path / "programs", "gh", GH)
    path = f"{tmp_path / 'programs'}{os.pathsep}{os.environ['PATH']}"
    names = {"PATH": path, "ANSWERS": str(tmp_path), "GH_REPO": "a/b", "BASE": "ba5e"}
    command = [ROOT / ".ci" / "comment", "1", "c0ffee"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | names, check=False)
    assert (done.returncode == 0) is posted
    assert (tmp_path / "posted").exists() is posted
    assert not (tmp_path / "x").exists()


def test_issue_forms_ask_what_they_need() -> None:
    forms = [yaml.safe_load(path.read_text()) for path in (ROOT / ".github" / "ISSUE_TEMPLATE").iterdir()]
    assert len(forms) == 3
    for form in forms:
        labels = [part["attributes"]["label"] for part in form["body"] if part["type"] != "markdown"]
        assert len(set(labels)) == len(labels) > 3
        assert any(part.get("validations", {}).get("required") for part in form["body"])
