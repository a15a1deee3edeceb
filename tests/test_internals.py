"""What libraries have no public interface for is used in one module a library, and is as expected.

A failure says what changed in the installed library and what to do.
"""

from __future__ import annotations

import ast
import logging
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tensorbench.backbones import timm_internals, transformers_internals
from tensorbench.methods import bitsandbytes_internals, torch_internals
from tensorbench.store import mlflow_internals

ROOT = Path(__file__).parent.parent
#: The files that users install.
FILES = [
    file for folder in ("bench", "methods", "baselines", "reports") for file in (ROOT / folder).rglob("*.py")
]
#: The public names that begin with an underscore.
PUBLIC = {"_asdict", "_exit", "_value_"}
#: Modules whose names do not say that they are inner ones.
INNER = ("mlflow.store", "mlflow.utils", "peft.mapping", "timm.layers")


def changed(library: str, part: str, instead: str) -> str:
    return f"{library} {version(library)} changed {part}, which it has no public interface for: {instead}"


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC


def private_parts(tree: ast.AST) -> Iterator[str]:
    """Yields what a module takes of the private parts of others, as Python source."""
    own = {"_"}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            own.add(node.id if isinstance(node, ast.Name) else node.attr)
    for node in ast.walk(tree):
        text = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        mine = text.startswith(("self.", "cls.", "super()."))
        if text and private(text.rpartition(".")[2]) and not mine and node.attr not in own:
            yield text
        elif isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            names = [module, *(alias.name for alias in node.names)]
            inner = any(name == each or name.startswith(f"{each}.") for name in names for each in INNER)
            foreign = isinstance(node, ast.Import) or not (node.level or module.startswith("tensorbench"))
            if foreign and (inner or any(private(part) for name in names for part in name.split("."))):
                yield ast.unparse(node)
        else:
            places = node.targets if isinstance(node, ast.Assign) else []
            kernels = isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.library.Library"
            if kernels or any("sys.modules" in ast.unparse(place) for place in places):
                yield ast.unparse(node)


@pytest.mark.parametrize(
    "file", [f for f in FILES if not f.name.endswith("_internals.py")], ids=lambda f: str(f.relative_to(ROOT))
)
def test_private_parts_of_libraries_are_used_in_modules_of_internals_only(file: Path) -> None:
    found = [*private_parts(ast.parse(file.read_text(encoding="utf-8")))]
    # The modules of plug-ins are registered there.
    assert not [part for part in found if file.name != "registry.py" or "sys.modules" not in part]


def test_the_scan_finds_each_kind_of_private_part() -> None:
    taken = [
        *("import torch._dynamo", "from peft.mapping import X", "from torchvision import _color"),
        *(
            "model.config._attn_implementation",
            "sys.modules['x'] = None",
            "torch.library.Library('aten', 'IMPL')",
        ),
    ]
    free = ["self._of_a_base_class", "import torch", "row._asdict()", "def _mine(): ...\nother._mine()"]
    assert [bool([*private_parts(ast.parse(text))]) for text in taken + free] == [True] * 6 + [False] * 4


def test_autograd_numbers_nodes_and_calls_back_at_the_end_of_a_backward() -> None:
    told: list[bool] = []
    ended: list[bool] = []
    seen: list[tuple[int, int, int]] = []

    class Layer(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            told.append(torch_internals.in_backward())
            if told[-1]:
                torch_internals.at_end_of_backward(lambda: ended.append(torch_internals.in_backward()))
                seen.append((start, torch_internals.current_node(), end))
            return super().forward(x)

    layer, x = Layer(2, 2), torch.ones(1, 2, requires_grad=True)
    start = torch_internals.next_node()
    y = checkpoint(layer, x * 1, use_reentrant=False).sum()
    end = torch_internals.next_node()
    assert end > start, changed(
        "torch", "torch._C._autograd._get_sequence_nr", "dropout cannot number forwards"
    )
    y.backward()
    assert told == [False, True], changed(
        "torch",
        "torch._C._current_graph_task_id",
        "find how torch.utils.checkpoint knows that a backward runs",
    )
    assert [low <= node < high for low, node, high in seen] == [True], changed(
        "torch", "the sequence numbers of autograd's nodes", "masks of recomputed layers need another key"
    )
    assert len(ended) == 1, changed(
        "torch",
        "Variable._execution_engine.queue_callback",
        "see what torch's DDP calls at the end of a backward",
    )


def test_a_reshaped_tensor_takes_an_operation_in_place_without_a_copy_of_gradients() -> None:
    x = torch.ones(2, 6, requires_grad=True)
    y = torch_internals.reshaped(x * 2, (4, 3))
    y.mul_(3).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[6.0] * 6] * 2
    assert type(y.grad_fn).__name__ != "AsStridedBackward0", changed(
        "torch",
        "aten._unsafe_view",
        "use `view`, at the price of a copy of gradients (methods/lowrank/linear.py)",
    )


def test_torch_has_the_other_parts() -> None:
    module = nn.Linear(2, 2)
    hooks = [module.register_forward_hook(lambda *_: None), module.register_forward_pre_hook(lambda *_: None)]
    assert torch_internals.hook_count(module) == len(hooks), changed(
        "torch", "Module._forward_hooks", "count the hooks of a module otherwise: fingerprints depend on it"
    )
    with torch_internals.compiled_in_place(module):
        assert module._compiled_call_impl is not None, changed(
            "torch", "Module._compiled_call_impl", "see how Module.compile() keeps its compiled call"
        )
    assert module._compiled_call_impl is None
    assert isinstance(torch_internals.multiplies_bf16(), bool)


def test_graphs_and_breaks_are_counted() -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        torch._dynamo.graph_break()
        return y * 2

    with torch_internals.graph_counts() as counts:
        torch.compile(broken, backend="eager")(torch.ones(2))
        assert counts() == (2, 1), changed(
            "torch", "torch._dynamo.utils.counters", "`conformance` cannot count graphs: read them elsewhere"
        )


#: Multiplies a bfloat16 matrix with and without the kernels, and prints how often each rounding differs.
KERNELS = """
import torch
from tensorbench.methods.torch_internals import multiply_bf16_in_float32
a = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
kernels = multiply_bf16_in_float32()
exact = (a.float() @ a.float()).bfloat16()
print(torch.equal(a @ a, exact), torch.equal(torch.ones(2) @ torch.ones(2, 2), torch.full((2,), 2.0)))
"""


@pytest.mark.processes
def test_products_of_bfloat16_can_be_replaced() -> None:
    ended = subprocess.run([sys.executable, "-c", KERNELS], capture_output=True, text=True)
    assert ended.stdout.split() == ["True", "True"], ended.stderr + changed(
        "torch", "how kernels are replaced", "torch.library.Library('aten', 'IMPL', 'CPU').impl"
    )


def test_transformers_lets_a_configuration_choose_its_attention() -> None:
    from transformers import BertConfig

    config = BertConfig(num_hidden_layers=1)
    transformers_internals.choose_attention(config, "sdpa")
    assert (transformers_internals.attention_of(config), config.to_dict().get("attn_implementation")) == (
        *("sdpa", None),
    ), changed("transformers", "config._attn_implementation", "see what `set_attn_implementation` sets")


def test_timm_converts_the_original_layouts() -> None:
    from timm.models import vision_transformer

    model = vision_transformer.VisionTransformer(img_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=1)
    assert hasattr(vision_transformer, "checkpoint_filter_fn"), changed(
        "timm", "checkpoint_filter_fn", "find what create_model converts files of the original authors with"
    )
    state = timm_internals.in_timms_layout(model, {"model": model.state_dict()})
    assert state.keys() == model.state_dict().keys()


def test_torchvision_turns_the_hue_of_each_image() -> None:
    from torchvision.transforms.v2 import functional

    from tensorbench.training.torchvision_internals import turn_hues

    images = torch.randint(256, (3, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    factors = [-0.25, 0.0, 0.4]
    turned = turn_hues(images, torch.tensor(factors)[:, None, None, None])
    alone = [functional.adjust_hue(image, factor) for image, factor in zip(images, factors, strict=True)]
    assert torch.equal(turned, torch.stack(alone)), changed(
        "torchvision",
        "_rgb_to_hsv and _hsv_to_rgb",
        "use `adjust_hue` image by image, or see how it computes",
    )


def test_mlflow_makes_the_tables_that_queries_read(tmp_path: Path) -> None:
    mlflow_internals.make_tables(file := tmp_path / "mlflow.db")
    with closing(sqlite3.connect(file)) as connection:
        for table, columns in mlflow_internals.COLUMNS.items():
            there = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
            assert there >= {*columns}, changed(
                "mlflow",
                f"its table {table}",
                "bench/store/queries.py and sqlite_file.py read it by these columns",
            )
            assert table in mlflow_internals.tables()
    for name in ("SqlRun", "SqlTag", "SqlMetric", "SqlLatestMetric"):
        assert hasattr(mlflow_internals.models(), name), changed(
            "mlflow", name, "stores are read by MLflow's client then, run by run: find the class's new name"
        )


def test_mlflow_deletes_artifacts_and_forgets_places(tmp_path: Path) -> None:
    (tmp_path / "artifacts" / "x").mkdir(parents=True)
    mlflow_internals.forget_places()
    mlflow_internals.delete_artifacts(
        (tmp_path / "artifacts").as_uri(), f"sqlite:///{tmp_path}/mlflow.db", "x"
    )
    assert not (tmp_path / "artifacts" / "x").exists(), changed(
        "mlflow", "delete_artifacts", "see what `mlflow artifacts` offers to delete a folder"
    )


@pytest.mark.processes
def test_bitsandbytes_asks_for_no_kernels_and_does_not_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes")
    program = "import tensorbench.methods, bitsandbytes"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert bitsandbytes_internals.KERNELS not in ended.stderr, changed(
        "bitsandbytes",
        f"the logger {bitsandbytes_internals.LOGGER}",
        "find who says that its kernels are missing",
    )


def test_a_place_of_kernels_that_a_user_named_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_KERNELS", "mine/kernel=/there")
    bitsandbytes_internals.use_own_code()
    bitsandbytes_internals.use_own_code()
    nowhere = f"{bitsandbytes_internals.KERNELS}={os.devnull}"
    assert os.environ["LOCAL_KERNELS"].split(":") == ["mine/kernel=/there", nowhere]
    logger = logging.getLogger(bitsandbytes_internals.LOGGER)
    assert not logger.filter(
        logging.makeLogRecord({"msg": f"Failed to load {bitsandbytes_internals.KERNELS}"})
    )
    assert logger.filter(logging.makeLogRecord({"msg": "something else"}))


def test_a_child_that_does_not_end_is_forgotten() -> None:
    import multiprocessing

    from tensorbench.execution.multiprocessing_internals import forget

    child = multiprocessing.get_context("spawn").Process(target=print)
    child.start()
    assert child in multiprocessing.active_children()
    forget(child)
    assert child not in multiprocessing.active_children(), "Python keeps its children elsewhere than before"
    child.join()
