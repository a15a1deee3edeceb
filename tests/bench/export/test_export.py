"""Exports, loaded by the very code in their README.md, beside the harness that trained them."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import peft
import pytest
import timm
import torch
from mlflow.tracking import MlflowClient
from peft.utils.other import get_pattern_key
from safetensors.torch import save_file
from torch import Tensor, nn

import bench.export.write
import bench.store.trained
from baselines.full import FullFineTuning
from baselines.peft_method import Peft
from bench.backbones import BACKBONES, BackboneSpec, LoadedBackbone, catalog, load
from bench.backbones.random_weights import RandomBackbone
from bench.execution.driver import execute
from bench.execution.inline import Inline
from bench.execution.session import session
from bench.export import Exported, export_run, write_export
from bench.export.updates import Update, fuse
from bench.process.outputs import output_folder
from bench.store.records import Record
from bench.store.store import Store
from bench.store.writer import begin_trial
from bench.tasks import TASKS, prepare
from methods import Adapter, Geometry, Method, NotLowRank, Site, UserError, create
from methods.lowrank import Contracted, LowRankAdapter, Parametrisation

from ..local_checkpoints import KINDS, batch, encoder, write
from ..toy_suites import VISION, plan

CLASSES = ("heron", "ibis", "stork")
SOURCES = [*KINDS, "timm", "timm-random"]

RANDOM_TIMM = RandomBackbone("timm-random", "timm", Geometry(32, 4, 2, 128), image_size=32, patch=8)
PLUGIN_TIMM = type("Plugin", (), {"describe": RANDOM_TIMM.describe, "load": RANDOM_TIMM.load})()
#: The MLP is four times as wide as the rest: some methods cut it into such slices.
WIDE = {"dinov2": {"mlp_ratio": 4}}

METHODS = {
    "att": create("tenslora", variant="att", ranks=(3, 3, 2)),
    "qkv_depth": create("tenslora", variant="qkv_depth", ranks=(4, 3, 2, 2)),
    "att_qkv_depth": create("tenslora", variant="att_qkv_depth", ranks=(3, 3, 2, 2, 2)),
    "cp": create("tenslora", variant="qkv_depth", factorization="cp").isorank(3),
    "lora": create("lora", rank=3, scale=2.0),
    "lora on all": create("lora", rank=2, targets="qkvo+mlp"),
    "fact_tt": create("fact_tt", rank=3),
    "fact_tk": create("fact_tk", rank=3),
    "lotr": create("lotr", rank=2),
    "lorta": create("lorta", rank=3),
    "cara": create("cara", rank=3),
}
SOME = ("qkv_depth", "lora", "cara")


@dataclass
class Case:
    """A backbone with a head, and where to export to."""

    spec: BackboneSpec
    backbone: LoadedBackbone
    folder: Path

    @property
    def kind(self) -> str:
        return self.backbone.info.kind

    def attach(self, method: Method | Callable[[LoadedBackbone], Adapter], size: float = 0.2) -> Adapter:
        """An adapter whose every parameter, and the head's, is random."""
        make = method.put if isinstance(method, FullFineTuning) else getattr(method, "attach", None)
        adapter = make(self.backbone, generator(1)) if make else method(self.backbone)  # type: ignore[operator]
        draws = generator(2)
        with torch.no_grad():
            for parameter in (*adapter.named_parameters().values(), *self.backbone.head.parameters()):
                parameter.add_(torch.randn(parameter.shape, generator=draws), alpha=size)
        return adapter

    def export(self, adapter: Adapter, **options: Any) -> Exported:
        return write_export(self.backbone, adapter, self.spec, self.folder, CLASSES, **options)

    def inputs(self, seed: int = 5) -> dict[str, Tensor]:
        wanted = self.backbone.info.input
        return batch(self.kind, getattr(wanted, "size", 0), seed)

    def logits(self, seed: int = 5) -> Tensor:
        self.backbone.module.eval()
        with torch.no_grad():
            return self.backbone.module(**self.inputs(seed))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shown(folder: Path) -> dict[str, Any]:
    """What the code in an export's README.md defines."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    assert code
    names: dict[str, Any] = {}
    exec(code[1], names)
    return names


def close(found: Tensor, expected: Tensor) -> None:
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found, expected, atol=1e-5 * scale, rtol=0)


@pytest.fixture(scope="session")
def timm_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_timm(tmp_path_factory.mktemp("timm") / "weights.safetensors", "test_vit")


def save_timm(file: Path, name: str) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = timm.create_model(name)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    save_file({key: tensor.clone() for key, tensor in model.state_dict().items()}, file)
    return file


@pytest.fixture
def case(tmp_path: Path, timm_file: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Case]:
    for name, entry in (("timm-random", RANDOM_TIMM), ("timm-plugin", PLUGIN_TIMM)):
        monkeypatch.setattr(catalog, name, entry, raising=False)
        monkeypatch.setitem(BACKBONES._targets, name, f"{catalog.__name__}:{name}")

    def make(source: str, image_size: int | None = None, **config: Any) -> Case:
        if source in KINDS:
            changes = WIDE.get(source, {"intermediate_size": 64}) | config
            folder = write(tmp_path / "model", source, encoder(source, **changes), version=4, prefix=True)
            spec = BackboneSpec(local=folder, image_size=image_size)
        elif source == "timm":
            spec = BackboneSpec(timm="test_vit", local=timm_file, image_size=image_size)
        else:
            spec = BackboneSpec(name=source, image_size=image_size)
        backbone = load(spec)
        backbone.reset(len(CLASSES), generator(0))
        return Case(spec, backbone, tmp_path / "export")

    return make


# --- the same logits ---


LORA_CASES = [
    *((source, name) for source in SOURCES for name in SOME),
    *(("timm-random", name) for name in METHODS if name not in SOME),
    *(("bert", "att_qkv_depth"), ("dinov2", "fact_tt"), ("roberta", "lorta"), ("vit", "lora on all")),
]
MERGED_CASES = [
    *((source, name) for source in SOURCES for name in ("cara", "full", "head_only")),
    *((source, name) for source in ("bert", "timm-random") for name in ("lora", "DORA", "IA3", "LOKR")),
]
# CaRA wants an MLP four times as wide as the rest, timm's smallest model has one three times as wide.
LORA_CASES.remove(("timm", "cara"))
MERGED_CASES.remove(("timm", "cara"))


@pytest.mark.parametrize(("source", "name"), LORA_CASES)
def test_a_lora_checkpoint_gives_the_same_logits(case: Callable[..., Case], source: str, name: str) -> None:
    made = case(source)
    adapter = made.attach(METHODS[name])
    before, fingerprint = made.logits(), made.backbone.fingerprint()
    exported = made.export(adapter)
    assert exported.difference <= 1e-5 * max(1.0, float(before.abs().max()))
    assert torch.equal(made.logits(), before)
    assert made.backbone.fingerprint() == fingerprint
    assert {path.suffix for path in made.folder.rglob("*.*")} <= {".json", ".safetensors", ".md"}
    names = shown(made.folder)
    assert isinstance(names["model"], peft.PeftModel)
    close(names["logits"](**made.inputs()), before)
    names["model"] = names["model"].merge_and_unload()
    assert not isinstance(names["model"], peft.PeftModel)
    close(names["logits"](**made.inputs()), before)


@pytest.mark.parametrize(("source", "name"), MERGED_CASES)
def test_a_merged_model_needs_no_peft(case: Callable[..., Case], source: str, name: str) -> None:
    methods: dict[str, Method] = {
        "cara": METHODS["cara"],
        "lora": METHODS["lora"],
        "full": FullFineTuning(),
        "head_only": create("head_only"),
    }
    made = case(source)
    method = methods.get(name) or Peft(type=name, rank=None if name == "IA3" else 2, targets="qkvo+mlp")
    adapter = made.attach(method, 0.05)
    before, fingerprint = made.logits(), made.backbone.fingerprint()
    made.export(adapter, merged=True)
    assert torch.equal(made.logits(), before)
    assert made.backbone.fingerprint() == fingerprint
    names = shown(made.folder)
    assert "PeftModel" not in names
    assert not list(made.folder.glob("adapter*"))
    close(names["logits"](**made.inputs()), before)
    if made.kind in ("vit", "roberta"):
        assert names["model"].config.id2label == dict(enumerate(CLASSES))


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("source", ["vit", "dinov2", "timm", "timm-random", "tiny-random-vit"])
def test_at_another_image_size(case: Callable[..., Case], source: str, merged: bool) -> None:
    made = case(source, image_size=96)
    made.export(made.attach(METHODS["qkv_depth"]), merged=merged)
    close(shown(made.folder)["logits"](**made.inputs()), made.logits())


@pytest.mark.parametrize("merged", [False, True])
def test_a_random_backbone_is_brought_along(case: Callable[..., Case], merged: bool) -> None:
    made = case("tiny-random-bert")
    exported = made.export(made.attach(METHODS["lora"]), merged=merged)
    assert ("original" in exported.files) is not merged
    assert ("tokenizer.json" in exported.files) is merged
    close(shown(made.folder)["logits"](**made.inputs()), made.logits())


def test_a_distilled_timm_model_gets_the_head_twice(tmp_path: Path) -> None:
    file = save_timm(tmp_path / "weights.safetensors", "deit_tiny_distilled_patch16_224")
    spec = BackboneSpec(timm="deit_tiny_distilled_patch16_224", local=file)
    backbone = load(spec)
    backbone.reset(3, generator(0))
    made = Case(spec, backbone, tmp_path / "export")
    made.export(made.attach(METHODS["cara"], 0.02))
    assert json.loads((made.folder / "adapter_config.json").read_text())["modules_to_save"] == [
        "head",
        "head_dist",
    ]
    close(shown(made.folder)["logits"](**made.inputs()), made.logits())


def test_a_hub_backbone_is_named_with_its_commit(
    case: Callable[..., Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    from bench.sources.hub import snapshot

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--me--tiny"
    write(repository / "snapshots" / commit, "vit", encoder("vit"))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot.cache_clear()
    try:
        spec = BackboneSpec(hub="me/tiny")
        backbone = load(spec)
        backbone.reset(3, generator(0))
        made = Case(spec, backbone, tmp_path / "export")
        made.export(made.attach(METHODS["lora"]))
    finally:
        snapshot.cache_clear()
    config = json.loads((made.folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("me/tiny", commit)
    assert f"'me/tiny', revision='{commit}'" in (made.folder / "README.md").read_text()


# --- ranks, biases, fused layers ---


class ByHand(Parametrisation):
    """A pair of any rank for each site, and biases for some."""

    def __init__(self, geometry: Geometry, ranks: dict[Site, int], biased: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.biased = biased
        self.down_of = {site: index for index, site in enumerate(ranks)}
        shapes = {site: geometry.shape(site.projection) for site in ranks}
        self.downs = nn.ParameterList(torch.zeros(r, shapes[site][1]) for site, r in ranks.items())
        self.ups = nn.ParameterList(torch.zeros(shapes[site][0], r) for site, r in ranks.items())
        self.moved = nn.ParameterList(torch.zeros(shapes[site][0]) for site in ranks)

    def contract(self) -> Contracted:
        biases = {s: b for s, b in zip(self.down_of, self.moved, strict=True) if s.projection in self.biased}
        return Contracted(list(self.downs), dict(zip(self.down_of, self.ups, strict=True)), biases)


@pytest.mark.parametrize("source", ["bert", "vit", "dinov2"])
def test_each_pattern_matches_one_layer(case: Callable[..., Case], source: str) -> None:
    made = case(source, num_hidden_layers=12)
    # Layer 1 and layer 11 end in the same digit, and so do the paths of query and of other queries.
    ranks = {Site(layer, "query"): 3 for layer in range(12)} | {Site(1, "value"): 4, Site(10, "fc2"): 1}
    ranks |= {Site(1, "query"): 2, Site(11, "query"): 5, Site(0, "query"): 1}
    adapter = made.attach(lambda b: LowRankAdapter(b, ByHand(b.geometry, ranks)))
    made.export(adapter)
    config = json.loads((made.folder / "adapter_config.json").read_text())
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert len(config["rank_pattern"]) == 5
    for pattern in config["rank_pattern"]:
        matched = [
            name for name in config["target_modules"] if get_pattern_key([pattern], name) == pattern != name
        ]
        assert len(matched) == 1
    names = shown(made.folder)
    prefix = "" if source == "bert" else f"{source}."
    for site, rank in ranks.items():
        path = prefix + made.backbone.path(site).removeprefix("encoder.")
        layer = names["model"].base_model.model.get_submodule(path)
        assert (layer.r["default"], layer.scaling["default"]) == (rank, 1.0)
    close(names["logits"](**made.inputs()), made.logits())


def test_biases_on_layers_that_have_none(case: Callable[..., Case]) -> None:
    made = case("dinov2", qkv_bias=False)
    adapter = made.attach(METHODS["cara"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.export(adapter)
        names = shown(made.folder)
    close(names["logits"](**made.inputs()), made.logits())
    assert "`merge_and_unload` refuses" in (made.folder / "README.md").read_text()
    with pytest.raises(RuntimeError, match="no bias"):
        names["model"].merge_and_unload()
    made.export(adapter, merged=True, force=True)
    close(shown(made.folder)["logits"](**made.inputs()), made.logits())


def test_a_trained_bias_without_a_place_cannot_be_merged(case: Callable[..., Case]) -> None:
    made = case("dinov2", qkv_bias=False)
    ranks = {Site(0, "query"): 2}
    adapter = made.attach(lambda b: LowRankAdapter(b, ByHand(b.geometry, ranks, ("query",))))
    with pytest.raises(UserError, match=r"differ in .*q_proj\.bias.* export without --merged"):
        made.export(adapter, merged=True)
    assert not made.folder.exists()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.export(adapter)
        close(shown(made.folder)["logits"](**made.inputs()), made.logits())


def test_fusing_shares_downs_and_leaves_rows_of_others_zero() -> None:
    down, other = torch.randn(2, 5), torch.randn(3, 5)
    query = Update(down, torch.randn(4, 2))
    key = Update(other, torch.randn(4, 3), torch.randn(4))
    value = Update(down.clone(), torch.randn(4, 2))
    whole = fuse([query, None, value], 4)
    assert whole.down.shape == (2, 5)
    assert whole.bias is None
    torch.testing.assert_close(
        whole.up @ whole.down, torch.cat((query.up @ down, torch.zeros(4, 5), value.up @ down))
    )
    whole = fuse([query, key, value], 4)
    assert whole.down.shape == (5, 5)
    assert whole.bias is not None
    torch.testing.assert_close(
        whole.up @ whole.down, torch.cat((query.up @ down, key.up @ other, value.up @ down))
    )
    torch.testing.assert_close(whole.bias[4:8], key.bias)
    assert int(whole.bias.count_nonzero()) == 4


# --- what cannot be exported ---


@pytest.mark.parametrize("type_", ["DORA", "LOKR", "IA3"])
def test_what_is_not_low_rank_is_referred_to_merged(case: Callable[..., Case], type_: str) -> None:
    made = case("bert")
    adapter = made.attach(Peft(type=type_, rank=None if type_ == "IA3" else 2))
    with pytest.raises(NotLowRank, match=r"no low-rank factors.*--merged"):
        made.export(adapter)
    assert not made.folder.exists()


def test_full_fine_tuning_and_a_lone_head_are_referred_to_merged(case: Callable[..., Case]) -> None:
    made = case("vit")
    adapter = made.attach(FullFineTuning())
    with pytest.raises(NotLowRank, match=r"full fine-tuning.*--merged"):
        made.export(adapter)
    adapter.detach()
    with pytest.raises(UserError, match="there is no adapter; --merged"):
        made.export(made.attach(create("head_only")))


def test_a_timm_model_of_a_plugin_has_no_name_to_load_it_by(case: Callable[..., Case]) -> None:
    made = case("timm-plugin")
    with pytest.raises(UserError, match="by which name timm makes it is not known"):
        made.export(made.attach(METHODS["lora"]))


def test_a_timm_head_that_is_not_linear(case: Callable[..., Case], monkeypatch: pytest.MonkeyPatch) -> None:
    made = case("timm")
    adapter = made.attach(METHODS["lora"])
    monkeypatch.setattr("timm.models.VisionTransformer.get_classifier", lambda self: nn.Identity())
    with pytest.raises(UserError, match="test_vit ends in a Identity, not in a linear layer"):
        made.export(adapter)


@pytest.mark.parametrize("off", [1e-3, float("nan")])
def test_an_export_that_computes_something_else_is_not_written(
    case: Callable[..., Case], monkeypatch: pytest.MonkeyPatch, off: float
) -> None:
    made = case("vit")
    adapter = made.attach(METHODS["lora"])
    honest = bench.export.write._logits
    monkeypatch.setattr(bench.export.write, "_logits", lambda *given: honest(*given) + off)
    with pytest.raises(UserError, match="logits differ from the trial's"):
        made.export(adapter)
    assert [path.name for path in made.folder.parent.iterdir()] == ["model"]


def test_an_original_that_is_gone(case: Callable[..., Case]) -> None:
    made = case("vit")
    adapter = made.attach(METHODS["lora"])
    shutil.rmtree(made.spec.local or "")
    with pytest.raises(UserError, match="loading the export fails with"):
        made.export(adapter)
    assert not made.folder.exists()


# --- the folder ---


def test_what_is_there_is_kept_unless_an_export_wrote_it(case: Callable[..., Case]) -> None:
    made = case("tiny-random-vit")
    adapter = made.attach(METHODS["lora"])
    made.folder.mkdir()
    made.export(adapter)  # an empty folder will do
    notes = made.folder / "notes.txt"
    notes.write_text("mine")
    with pytest.raises(UserError, match=r"is not empty.*--force"):
        made.export(adapter)
    exported = made.export(adapter, merged=True, force=True)
    assert {path.name for path in made.folder.iterdir()} == {*exported.files, "notes.txt"}
    assert exported.files == ("README.md", "config.json", "export.json", "model.safetensors")
    assert notes.read_text() == "mine"
    assert [path.name for path in made.folder.parent.iterdir()] == ["export"]


def test_folders_in_the_way(case: Callable[..., Case], tmp_path: Path) -> None:
    made = case("vit")
    adapter = made.attach(METHODS["lora"])
    made.folder.write_text("")
    with pytest.raises(UserError, match="is a file"):
        made.export(adapter, force=True)
    made.folder.unlink()
    (made.folder / "README.md").mkdir(parents=True)
    kept = made.folder / "adapter_config.json"
    kept.write_text("mine")
    with pytest.raises(UserError, match="a folder that no export wrote"):
        made.export(adapter, force=True)
    assert kept.read_text() == "mine"
    kept.unlink()
    with pytest.raises(UserError, match=r"--out ~nobody-has-this-name/x: .*home directory"):
        output_folder(Path("~nobody-has-this-name/x"), "export", force=False)
    made.folder = made.folder / "README.md" / "a" / "b"
    made.export(adapter)
    assert (made.folder / "adapter_config.json").is_file()


# --- from the store ---


@dataclass
class Stored:
    """A store with finished, failed and killed trials."""

    uri: str
    records: list[Record]

    def one(self, status: str, method: str = "") -> Record:
        return next(r for r in self.records if r.status == status and r.tags["method"].startswith(method))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], str]) -> Stored:
    uri = new_store(tmp_path_factory.mktemp("run"))
    store = Store.create(uri, "toy")
    wild = {"method": "lora", "rank": 1, "training": {"lr": 1e30}}
    made = plan(VISION, methods=["lora", {"method": "tenslora", "variant": "qkv"}, "head_only", wild])
    with session(store) as at_work, Inline("cpu") as place:
        execute(made, list(made.trials), at_work, place, lambda event: None)
    other = plan(VISION, seeds=[7])
    begin_trial(store, other.trials[0], list(other.rows), "accuracy", "none", {}).kill()
    return Stored(uri, store.records())


@pytest.mark.parametrize("method", ["LoRA", "TensLoRA"])
def test_a_stored_trial_gives_the_predictions_that_were_stored(
    stored: Stored, tmp_path: Path, method: str
) -> None:
    record = stored.one("FINISHED", method)
    exported = export_run(stored.uri, record.trial_id[:8], tmp_path / "export")
    file = MlflowClient(stored.uri).download_artifacts(record.run_id, "predictions.parquet", str(tmp_path))
    predictions = pd.read_parquet(file)
    task = VISION["tasks"][0]
    sizes = {key: task[key] for key in ("train_size", "validation_size", "test_size")}
    info = load("tiny-random-vit").info
    split = prepare(TASKS.get("digits"), info.input, max_tokens=128, **sizes).test
    found = shown(exported.folder)["logits"](**split.batch(torch.arange(len(split))))
    assert split.ids.tolist() == predictions["example"].tolist()
    stored_logits = torch.tensor(predictions[[f"logit_{i}" for i in range(10)]].to_numpy())
    close(found, stored_logits)
    readme = (exported.folder / "README.md").read_text()
    for told in (
        record.run_id,
        record.trial_id,
        info.weights_hash,
        "digits",
        "accuracy, test split",
        "| seed | 0",
    ):
        assert told in readme
    assert f"{record.metrics['score']:.4f}" in readme
    again = export_run(stored.uri, record.run_id, tmp_path / "again", merged=True)
    close(shown(again.folder)["logits"](**split.batch(torch.arange(len(split)))), stored_logits)


def test_runs_that_cannot_be_exported(stored: Stored, tmp_path: Path) -> None:
    out = tmp_path / "export"
    finished = stored.one("FINISHED")
    wrong = finished.trial_id[:-1] + "x"
    with pytest.raises(
        UserError, match=rf"no run or trial '{wrong}'.*nearest first:\n  trial {finished.trial_id}"
    ):
        export_run(stored.uri, wrong, out)
    with pytest.raises(UserError, match="no run or trial ''"):
        export_run(stored.uri, "", out)
    with pytest.raises(UserError, match=r"failed, diverged: .*left no adapter"):
        export_run(stored.uri, stored.one("FAILED").run_id, out)
    with pytest.raises(UserError, match="was stopped before it finished"):
        export_run(stored.uri, stored.one("KILLED").trial_id, out)
    with pytest.raises(UserError, match="there is no adapter; --merged"):
        export_run(stored.uri, stored.one("FINISHED", "head").run_id[:12], out)
    with pytest.raises(UserError, match="there is no store"):
        export_run(f"sqlite:///{tmp_path}/none.db", wrong, out)
    assert not out.exists()
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        export_run(stored.uri, finished.run_id, out)


def test_which_run_an_id_names(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(run_id: str, trial: str, status: str) -> Any:
        info = SimpleNamespace(run_id=run_id, status=status, start_time=0, artifact_uri="")
        tags = {"trial_id": trial, "mlflow.runName": f"name of {run_id}"}
        return SimpleNamespace(info=info, data=SimpleNamespace(tags=tags, metrics={}))

    runs = [
        run("aa01", "cc01", "FAILED"),
        run("aa02", "cc01", "FINISHED"),
        run("aa03", "cc01", "FINISHED"),
        run("bb01", "cc02", "FINISHED"),
        run("bb02", "cc03", "FINISHED"),
    ]
    monkeypatch.setattr(bench.store.trained, "find_runs", lambda *_: runs)
    client: Any = SimpleNamespace(search_experiments=list)
    expected = {
        "aa01": "aa01",
        "AA03": "aa03",
        "cc01": "aa02",
        "cc02": "bb01",
        "bb01": "bb01",
        "bb02": "bb02",
    }
    assert {one: bench.store.trained._find(client, one).run_id for one in expected} == expected
    with pytest.raises(UserError, match=r"(?s)'cc' is the beginning of several.*cc01.*aa02.*cc02.*cc03"):
        bench.store.trained._find(client, "cc")
    with pytest.raises(UserError, match=r"(?s)several.*aa01.*\(failed\).*aa02.*aa03"):
        bench.store.trained._find(client, "aa")
    with pytest.raises(UserError, match=r"(?s)no run or trial 'cc04'.*nearest first:\n  trial cc0"):
        bench.store.trained._find(client, "cc04")


def test_weights_that_are_not_the_trials(
    stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.backbones.random_weights.SEED", 1)
    with pytest.raises(UserError, match=r"is not the one of the trial.*seed=0.*seed=1"):
        export_run(stored.uri, stored.one("FINISHED", "LoRA").run_id, tmp_path / "export")


def test_an_empty_store(new_store: Callable[[Path], str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no trial yet"):
        export_run(new_store(tmp_path), "abc", tmp_path / "export")
