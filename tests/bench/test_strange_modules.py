"""Tests that no module of the working folder runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .toy_suites import plan, write

pytestmark = pytest.mark.processes

#: A script that runs the program with each line of its standard input as arguments.
PROGRAM = """
import sys
from tensorbench.cli.program import main
if __name__ == "__main__":
    for line in sys.stdin:
        sys.argv = ["tensorbench", *line.split()]
        try:
            main()
        except SystemExit as end:
            assert not end.code, line
"""


def test_no_command_runs_code_of_the_working_folder(tmp_path: Path) -> None:
    changes = {
        "methods": [{"method": "tenslora", "variant": "qkv_depth"}],
        "seeds": [0, 1],
        "training": {"batch_size": 16, "steps": 2},
        "search": {"trials": 1},
    }
    suite, store = write(tmp_path, **changes), f"--store sqlite:///{tmp_path}/store.db"
    lines = [
        f"run {suite} {store} --seed 0",
        f"run {suite} {store} --seed 1 --executor local --workers 1",
        f"search {suite} {store}",
        f"export {plan(**changes).trials[0].id} {store} --out adapter",
        f"report toy {store} --out page",
        "check head_only --quick",
    ]
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("signal", "random", "re", "pip", "torch", "peft", "sitecustomize"):
        (folder / f"{name}.py").write_text(
            f"open({str(tmp_path / 'marks')!r}, 'a').write('{name} ')\nraise Exception\n"
        )
    # Like the installed program, a file in a folder of its own. An option of Python would reach its workers.
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    ended = subprocess.run(
        [sys.executable, program], input="\n".join(lines), cwd=folder, capture_output=True, text=True
    )
    assert not (tmp_path / "marks").exists()
    assert ended.returncode == 0, ended.stderr
