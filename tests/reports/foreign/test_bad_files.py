"""Tests that files which are no tables end in one clear line, soon and in little memory."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from ...messages import naming

#: The limits of what a bad file may take: processor seconds, and MiB of memory.
SECONDS, MEMORY = 10, 500
HEADING = "method,task,seed,score\n"
RUNS = "".join(f"{method},t,{seed},.5{seed}\n" for method in "AB" for seed in range(3))
COLUMNS = [f"c{number}" for number in range(1_000_000)]

#: Opens each file, and prints the seconds that it took, the most memory so far in MiB, and what was said.
PROGRAM = textwrap.dedent(
    """
    import json, re, sys, time, tensorbench
    from pathlib import Path
    from tensorbench.methods import UserError
    for name in sys.argv[1:]:
        before = time.process_time()
        try:
            answer = "accepted: " + tensorbench.load_results(name).answer
        except UserError as error:
            answer = str(error)
        # Unlike `ru_maxrss`, this is not inherited from the process that started this one.
        peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
        print(json.dumps([time.process_time() - before, int(peak[1]) / 1024, answer]))
    """
)


def text(content: str) -> Callable[[Path], object]:
    return lambda file: file.write_text(content, encoding="utf-8")


def sparse(start: bytes) -> Callable[[Path], None]:
    """Makes a file of a gigabyte that begins with these bytes and goes on with zeros."""

    def make(file: Path) -> None:
        file.write_bytes(start)
        os.truncate(file, 10**9)

    return make


def bomb(file: Path) -> None:
    """A file of gzip that unpacks to a gigabyte."""
    part = gzip.compress(bytes(10**7))
    file.write_bytes(part * 100)


#: The name of a file, how it is made, and what is said about it.
FILES: list[tuple[str, Callable[[Path], object], str]] = [
    (
        "runs.csv",
        text("algorithm,seed,score\nA,0,.5\n"),
        naming("runs.csv", "no column 'method'", "--method"),
    ),
    ("runs.csv", text(HEADING), naming("runs.csv has no line")),
    ("runs.csv", text(HEADING + "A,t,0,good\n"), naming("line 2", "score 'good' is no number")),
    ("runs.csv", text(HEADING + "A,t,0,nan\nB,t,0,nan\n"), naming("no finished trial", "2 failed")),
    ("runs.csv", text(HEADING + "A,t,0,inf\nB,t,0,-inf\n"), naming("no finished trial", "2 failed")),
    ("runs.csv", text(HEADING + RUNS + "A,t,0,.6\n"), naming("line 8", "seed 0 of A", "line 2")),
    ("runs.csv", text(",".join(COLUMNS) + "\n"), naming("line 1", "1,000,000 columns")),
    ("runs.jsonl", text(json.dumps(dict.fromkeys(COLUMNS, 1))), naming("line 1", "1,000,000 columns")),
    ("runs.csv", sparse(b"method,score\n"), naming("line 2", "16,777,216 characters")),
    ("runs.jsonl", sparse(b'{"method":"'), naming("line 1", "16,777,216 characters")),
    ("results_1.json", sparse(b"["), naming("1,000,000,000 bytes", "67,108,864")),
    ("runs.parquet", text("PAR1" * 9), naming("runs.parquet")),
    ("runs.csv.gz", bomb, naming("runs.csv.gz is compressed", "unpack")),
    ("runs.csv", bomb, naming("runs.csv", "is compressed", "unpack")),
    ("runs.csv", Path.mkdir, naming("runs.csv is no file")),
    ("runs.csv", os.mkfifo, naming("runs.csv is no file")),
    ("results_1.json", os.mkfifo, naming("results_1.json", "not a file")),
    ("absent.csv", lambda file: None, naming("there is no file", "absent.csv")),
]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[float, float, str]]:
    files = [tmp_path_factory.mktemp("bad") / name for name, _, _ in FILES]
    for file, (_, make, _) in zip(files, FILES, strict=True):
        make(file)
    done = subprocess.run([sys.executable, "-c", PROGRAM, *files], capture_output=True, text=True, check=True)
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", range(len(FILES)), ids=[name for name, _, _ in FILES])
def test_a_bad_file_ends_in_one_clear_line(answers: list[tuple[float, float, str]], number: int) -> None:
    seconds, memory, answer = answers[number]
    assert re.search(FILES[number][2], answer)
    assert "\n" not in answer
    assert seconds < SECONDS
    assert memory < MEMORY
