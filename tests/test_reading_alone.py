"""Tests what works without the extra `run`: reading results, and with the extra `methods` `wrap`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Collection
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PACK = Path(__file__).parent.parent / "results" / "smollm2_quantised.tensorbench.zip"


def needed(name: str, extras: Collection[str] = ()) -> set[str]:
    """The names of a distribution and of all that it needs with these extras, as far as installed."""
    found = set[str]()
    left = [(name, ("", *extras))]
    while left:
        name, extras = left.pop()
        with suppress(PackageNotFoundError):
            for each in map(Requirement, requires(name) or ()):
                asked = any(each.marker is None or each.marker.evaluate({"extra": extra}) for extra in extras)
                if asked and canonicalize_name(each.name) not in found:
                    left.append((each.name, ("", *each.extras)))
                    found.add(canonicalize_name(each.name))
    return found


def of_run(*extras: str) -> list[str]:
    """The names by which packages are imported that the extra `run` brings, beyond these extras."""
    own = "tensorpeft-bench"
    brought = needed(own, ["run"]) - needed(own, extras) - {own}
    return sorted(
        module
        for module, owners in packages_distributions().items()
        if {*map(canonicalize_name, owners)} <= brought
    )


HIDDEN = """
import sys
from importlib.machinery import PathFinder

NAMES = sys.argv.pop(1).split(",")

class Hidden(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in NAMES else PathFinder.find_spec(name, path, target)

sys.meta_path = [Hidden if finder is PathFinder else finder for finder in sys.meta_path]
"""
MAIN = "from tensorbench.__main__ import main; main()"


def program(code: str, *arguments: str, extras: Collection[str] = ()) -> subprocess.CompletedProcess[str]:
    """Runs code in a Python that finds nothing of what the extra `run` installs beyond these extras."""
    command = [sys.executable, "-c", HIDDEN + code, ",".join(of_run(*extras)), *arguments]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=600)


def test_a_pack_is_read_and_reported_without_torch(tmp_path: Path) -> None:
    assert {"torch", "mlflow", "transformers", "peft"} <= {*of_run()}
    code = "import tensorbench; print(len(tensorbench.load_results(sys.argv[1]).cells))"
    read = program(code, str(PACK))
    assert read.returncode == 0, read.stderr
    assert int(read.stdout) > 0
    packs = tmp_path / "packs"
    packs.mkdir()
    shutil.copy(PACK, packs)
    for command in (["report", str(PACK)], ["tools", "site", str(packs)]):
        ended = program(MAIN, *command, "--out", str(tmp_path / command[0]))
        assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "report" / "index.html").is_file()


def test_a_table_of_runs_is_reported_without_torch(tmp_path: Path) -> None:
    runs = Path(__file__).parents[1] / "docs" / "results" / "learning-rate-matters.csv"
    columns = ["--seed", "run", "--lr", "learning_rate"]
    ended = program(MAIN, "report", str(runs), *columns, "--out", str(tmp_path / "report"))
    assert ended.returncode == 0, ended.stderr
    assert "no method is significantly better" in ended.stdout


@pytest.mark.parametrize("command", [["run", "quickstart"], ["plan", "quickstart"]])
def test_what_runs_trials_says_what_to_install(command: list[str]) -> None:
    ended = program(MAIN, *command)
    assert ended.returncode == 2
    assert "pip install 'tensorpeft-bench[run]'" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    "code",
    [
        "tensorbench.run_suite",
        "tensorbench.load_results('study')",
        "tensorbench.methods.create('lora')",
        "tensorbench.methods.Method",
        "tensorbench.methods.load_methods('own.py')",
    ],
)
def test_python_says_what_to_install(code: str) -> None:
    ended = program(f"import tensorbench; {code}")
    assert ended.stderr.splitlines()[-1].startswith("ModuleNotFoundError: ")
    assert "pip install 'tensorpeft-bench[run]'" in ended.stderr


#: A loop of a user's own: every method adapts a module, trains, is saved and loaded.
WRAPPED = """
import torch
from torch import nn
from tensorbench import wrap
from tensorbench.methods import create

paths = {role: f"layers.{{layer}}.{role}" for role in ("query", "key", "value")}

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.ModuleDict({role: nn.Linear(8, 8) for role in paths}) for _ in range(2)]
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        return sum(layer[role](x) for layer in self.layers for role in paths)

x = torch.randn(4, 8)
for method in (create("tenslora", variant="att_qkv_depth"), create("lora"), create("peft", type="DORA")):
    first, second = Own(), Own()
    adapter = wrap(first, method.isorank(2), projections=paths, heads=2)
    optimizer = torch.optim.AdamW([p for p in first.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        first(x).square().mean().backward()
        optimizer.step()
    adapter.save_adapter(sys.argv[1])
    wrap(second, method.isorank(2), projections=paths, heads=2).load_adapter(sys.argv[1])
    assert torch.equal(first(x), second(x)) and not torch.equal(first(x), Own()(x))
import tensorbench
tensorbench.run_suite  # asks for more
"""


def test_methods_adapt_a_module_without_what_runs_trials(tmp_path: Path) -> None:
    hidden = {*of_run("methods")}
    assert {"mlflow", "optuna", "datasets", "timm", "sklearn", "sqlalchemy"} <= hidden
    assert not {"torch", "peft", "tltorch"} & hidden
    ended = program(WRAPPED, str(tmp_path), extras=["methods"])
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("ModuleNotFoundError: "), ended.stderr
    assert "pip install 'tensorpeft-bench[run]'" in last
