"""Tests the SLURM scripts in docs/guides/clusters.md on a cluster of two nodes that runs on this machine."""

from __future__ import annotations

import os
import platform
import re
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tensorbench.store.store import Store

from .. import holding
from ..services import free_port, wait_until
from ..toy_suites import write
from .slurm import Slurm, missing, started

PAGE = Path(__file__).parents[3] / "docs" / "guides" / "clusters.md"

#: The script that jobs call in place of `tensorbench`. It runs the program on one core. Files in a folder of
#: its own hold it at each trial (see `holding.py`).
HELD = f"""\
#!/bin/bash
folder=$HELD/${{SLURM_ARRAY_TASK_ID:-0}}.$SLURM_PROCID.${{SLURM_RESTART_COUNT:-0}}
mkdir -p $folder
echo "$SLURMD_NODENAME $CUDA_VISIBLE_DEVICES" > $folder/where
[ ! -e $HELD/go ] || touch $folder/go
export {holding.FORK_WORKERS}=1
exec taskset --cpu-list {min(os.sched_getaffinity(0))} {sys.executable} {holding.__file__} 0 $folder "$@"
"""

TRIALS = 4

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(
        bool(missing()), reason=f"not installed: {', '.join(missing())} (apt-get install slurm-wlm)"
    ),
]


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    if "slurm" not in request.config.option.markexpr:
        pytest.skip("nearly a minute of CPU time: python -m pytest tests -m slurm")
    with started(tmp_path_factory.mktemp("slurm")) as made:
        yield made


@pytest.fixture
def held(tmp_path: Path, cluster: Slurm) -> Path:
    """A folder with one subfolder per driver. The files in a subfolder hold and release its driver.

    Jobs that call `tensorbench` run `HELD`.
    """
    program = tmp_path / "bin" / "tensorbench"
    program.parent.mkdir()
    program.write_text(HELD)
    program.chmod(0o755)
    folders = (str(program.parent), str(Path(sys.executable).parent), cluster.environment["PATH"])
    folder = tmp_path / "held"
    folder.mkdir()
    cluster.environment.update(PATH=os.pathsep.join(folders), HELD=str(folder))
    return folder


@pytest.fixture
def scripts(tmp_path: Path, store: Store) -> list[str]:
    """The SLURM scripts on the page, with the suite, the store and the port of this test."""
    suite = write(tmp_path, seeds=list(range(TRIALS)), training={"batch_size": 16, "steps": 2})
    blocks = re.findall(r"^    #!/bin/bash\n(?:    .*\n)+", PAGE.read_text(), re.M)
    own = {"suites/registry.yaml": str(suite), "http://SERVER:5000": store.uri, "6379": str(free_port())}
    for there, here in own.items():
        assert all(there in script for script in blocks) or there == "6379"
        blocks = [script.replace(there, here) for script in blocks]
    return [textwrap.dedent(script) for script in blocks]


def let_through(held: Path) -> None:
    """Lets all drivers go on that are held now, and those that start later."""
    for folder in (held, *filter(Path.is_dir, held.iterdir())):
        (folder / "go").touch()


def counted(store: Store) -> Counter[str]:
    """Checks that each trial has finished once and none is running. Returns the number of runs by status."""
    records = store.records()
    finished = [record.trial_id for record in records if record.status == "FINISHED"]
    assert len(finished) == len(set(finished)) == TRIALS
    assert not store.running()
    return Counter(record.status for record in records)


def test_drivers_on_two_nodes_share_a_suite_and_go_on_after_the_limit(
    cluster: Slurm, held: Path, store: Store, scripts: list[str]
) -> None:
    job = cluster.submit(scripts[0], "--nodes=2")
    starts = [held / f"0.{node}.0" for node in (0, 1)]
    cluster.await_there(job, *(folder / "held" for folder in starts))
    # Each task sees the GPUs of its node.
    assert len({(folder / "where").read_text() for folder in starts}) == 2
    assert all("0,1,2,3" in (folder / "where").read_text() for folder in starts)
    assert len({record.trial_id for record in store.running() if record.trial_id}) == 2
    # Before the time limit, the script's `--signal` makes SLURM send the same.
    cluster.ask("scancel", "--signal=TERM", job)
    cluster.await_there(job, *(held / f"0.{node}.1" / "held" for node in (0, 1)))
    assert [record.status for record in store.records()].count("KILLED") == 2
    let_through(held)
    assert cluster.ended(job) == {job: "COMPLETED"}, cluster.printed(job)
    assert counted(store) == {"FINISHED": TRIALS, "KILLED": 2}


def test_a_task_of_an_array_goes_on_alone_and_a_cancelled_job_when_submitted_again(
    cluster: Slurm, held: Path, store: Store, scripts: list[str]
) -> None:
    array = cluster.submit(scripts[0], "--nodes=1", "--array=1-2")
    cluster.await_there(array, held / "1.0.0" / "held", held / "2.0.0" / "held")
    # The array's job id is that of its last task.
    cluster.ask("scancel", "--signal=TERM", f"{array}_2")
    wait_until(lambda: cluster.states(array)[f"{array}_2"] == "PENDING")
    assert cluster.states(array)[f"{array}_1"] == "RUNNING"
    cluster.ask("scancel", array)
    assert cluster.ended(array) == {f"{array}_{task}": "CANCELLED" for task in (1, 2)}
    wait_until(lambda: not store.running())
    let_through(held)
    resubmitted = cluster.submit(scripts[0], "--nodes=1")
    assert cluster.ended(resubmitted) == {resubmitted: "COMPLETED"}, cluster.printed(resubmitted)
    assert counted(store) == {"FINISHED": TRIALS, "KILLED": 2}


@pytest.mark.ray
def test_one_driver_runs_a_suite_by_ray(cluster: Slurm, held: Path, store: Store, scripts: list[str]) -> None:
    pytest.importorskip("ray")
    let_through(held)
    cluster.environment["RAY_AUTH_TOKEN"] = "0" * 32
    job = cluster.submit(scripts[1], "--nodes=1", "--cpus-per-task=1", f"--nodelist={platform.node()}")
    assert cluster.ended(job) == {job: "COMPLETED"}, cluster.printed(job)
    assert counted(store) == {"FINISHED": TRIALS}
