"""Tests of modules in the working folder: none of them runs, and hidden packages of ours are named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tensorbench

from .toy_suites import plan, write

pytestmark = pytest.mark.processes

HOME = str(Path(tensorbench.__file__).parents[1])

#: A script that makes Python search for our packages as an editable installation does: `sys.path` first, our
#: code last. `bench` is an exception and comes from our code, so that the script can import it. The script
#: needs Python's option `-S`, because otherwise an installed copy is found first.
EDITABLE = f"""
import sys
from importlib.machinery import PathFinder

class Editable:
    def __init__(self, *packages):
        self.packages = packages

    def find_spec(self, name, path=None, target=None):
        return PathFinder.find_spec(name, [{HOME!r}]) if name in self.packages else None

sys.meta_path[:] = [Editable("bench"), *sys.meta_path, Editable("methods", "baselines", "reports")]
import tensorbench
"""


def python(folder: Path, *arguments: str, path: str = HOME) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("kind", ["package", "module", "folder"])
@pytest.mark.parametrize("name", ["methods", "baselines", "reports"])
def test_a_hiding_folder_is_named_on_import(tmp_path: Path, name: str, kind: str) -> None:
    place = tmp_path / name
    if kind == "module":
        place = tmp_path / f"{name}.py"
        place.write_text("")
    else:
        place.mkdir()
        if kind == "package":
            (place / "__init__.py").write_text("")
    if kind == "folder":
        ended = python(tmp_path, "-S", "-c", EDITABLE, path="")
    else:
        ended = python(tmp_path, "-c", "import tensorbench")
    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: {place} hides the package '{name}'")
    assert "rename it" in last


def test_the_program_names_a_hiding_file_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "methods.py").write_text("")
    ended = python(tmp_path, "-m", "tensorbench", "--version")
    assert ended.returncode != 0
    assert f"{tmp_path / 'methods.py'} hides the package 'methods'" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_hidden_bench_is_recognised_by_the_reports(tmp_path: Path) -> None:
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "__init__.py").write_text("")
    ended = python(tmp_path, "-c", "import tensorbench.reports")
    assert ended.returncode == 1
    assert f"{tmp_path / 'bench'} hides the package 'bench'" in ended.stderr.splitlines()[-1]


def test_other_folders_hide_nothing(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    # A folder without Python files does not hide an installed package.
    (tmp_path / "reports").mkdir()
    assert python(tmp_path, "-c", "import tensorbench, reports, methods, baselines").returncode == 0


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
