"""Tests that spectra of trained updates equal those of dense tensors, and show ranks that are known."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tensorbench.backbones import load
from tensorbench.machine.outputs import prepare_plot
from tensorbench.methods import Adapter, Geometry, Site, UserError, create, from_identity
from tensorbench.plan.make import make_plan
from tensorbench.store.store import Store
from tensorbench.tools.redundancy import (
    ATTENTION,
    MODES,
    Component,
    analyse,
    components,
    effective_rank,
    held_rank,
    merged,
    spectrum,
    squared_norms,
)
from tensorbench.training.trial import Resources, run_trial

from ...fixtures import Call
from ...messages import naming
from ...methods.toy import ToyBackbone, scatter
from ..synthetic import GEOMETRY, TRUE_RANKS, registered, true_update
from ..toy_suites import suite, write

SMALL = Geometry(8, 2, 3, 32)
SHARED = Geometry(10, 4, 2, 15, kv_heads=2, head_size=3, gated=True)

METHODS: list[dict[str, Any]] = [
    {"name": "lora", "rank": 2, "targets": "qkvo+mlp"},
    {"name": "tenslora", "variant": "att_qkv_depth", "targets": "qkvo", "ranks": (3, 2, 2, 3, 2)},
    {"name": "lotr", "rank": 3},
    {"name": "cara", "rank": 2, "dropout": 0.0},
]


def attached(options: dict[str, Any], geometry: Geometry = SMALL) -> Adapter:
    fields = {key: value for key, value in options.items() if key != "name"}
    method = create(options["name"], **fields)
    adapter = method.attach(ToyBackbone(geometry), torch.Generator().manual_seed(0))
    scatter(adapter.named_parameters())
    return adapter


def dense(adapter: Adapter, geometry: Geometry) -> Tensor:
    """Returns an adapter's updates as a dense tensor (input, head size, head, projection, layer)."""
    deltas = {site: delta.detach().double() for site, delta in adapter.deltas()}
    names = [name for name in ATTENTION if Site(0, name) in deltas]
    tensor = torch.zeros(
        geometry.hidden, geometry.head_size, geometry.heads, len(names), geometry.layers, dtype=torch.float64
    )
    for (p, name), layer in product(enumerate(names), range(geometry.layers)):
        delta = deltas[Site(layer, name)]
        # (in, out), or (out, in) for the output projection, whose heads are on its input.
        split = (delta if name == "output" else delta.T).unflatten(1, (-1, geometry.head_size))
        # A shared head appears once for each query head that uses it.
        split = split.repeat_interleave(geometry.heads // split.shape[1], 1)
        tensor[:, :, :, p, layer] = split.transpose(1, 2)
    return tensor


@pytest.mark.parametrize("geometry", [SMALL, SHARED], ids=str)
@pytest.mark.parametrize("options", METHODS, ids=str)
def test_the_spectrum_is_that_of_the_dense_tensor(options: dict[str, Any], geometry: Geometry) -> None:
    adapter = attached(options, geometry)
    tensor = dense(adapter, geometry)
    spectra = spectrum(adapter, geometry)
    assert tuple(spectra) == MODES
    for index, mode in enumerate(MODES):
        expected = torch.linalg.svdvals(tensor.movedim(index, 0).flatten(1))
        values = torch.tensor(spectra[mode].singular_values, dtype=torch.float64)[: len(expected)]
        assert torch.allclose(values, expected, atol=1e-5 * float(expected[0])), mode


@pytest.mark.parametrize("geometry", [SMALL, SHARED], ids=str)
@pytest.mark.parametrize("options", METHODS, ids=str)
def test_the_norms_are_those_of_the_updates(options: dict[str, Any], geometry: Geometry) -> None:
    adapter = attached(options, geometry)
    deltas = {site: delta.detach().double() for site, delta in adapter.deltas()}
    norms = squared_norms(adapter, geometry)
    assert set(norms) == set(deltas)
    for site, values in norms.items():
        assert float(values.sum()) == pytest.approx(float(deltas[site].square().sum()), rel=1e-5)
        if site.projection in ATTENTION:
            axis = 1 if site.projection == "output" else 0
            rows = deltas[site].split(geometry.head_size, axis)
            assert values.tolist() == pytest.approx([float(r.square().sum()) for r in rows], rel=1e-5)


def test_effective_ranks() -> None:
    assert effective_rank([2.0, 2.0, 2.0, 0.0]) == pytest.approx(3)
    assert 1 < effective_rank([1.0, 0.1]) < 2
    assert effective_rank([0.0, 0.0]) == 0
    assert held_rank([10.0, 0.5, 0.5]) == 1
    assert held_rank([10.0, 2.0, 0.5]) == 2
    assert held_rank([0.0]) == 0


def test_a_part_is_taken_from_the_weights_and_given_back() -> None:
    adapter = attached(METHODS[0])
    deltas = {site: delta.detach().clone() for site, delta in adapter.deltas()}
    plain = {site: base.weight.detach().clone() for site, base in adapter.bases.items()}
    size = SMALL.head_size

    def difference(site: Site) -> Tensor:
        return adapter.bases[site].weight.data - plain[site]

    def unchanged() -> bool:
        return all(torch.allclose(difference(site), delta, atol=1e-6) for site, delta in deltas.items())

    with merged(adapter, "cpu") as without:
        assert unchanged()
        with without(Component(layer=1)):
            assert not difference(Site(1, "query")).any()
            assert difference(Site(0, "query")).any()
        with without(Component(projection="fc1")):
            assert not difference(Site(2, "fc1")).any()
            assert difference(Site(2, "fc2")).any()
        with without(Component(head=1)):
            assert not difference(Site(0, "key"))[size:].any()
            assert difference(Site(0, "key"))[:size].any()
            assert not difference(Site(0, "output"))[:, size:].any()
            assert difference(Site(0, "fc1")).any()
        assert unchanged()
    assert not adapter.merged
    assert not any(difference(site).any() for site in deltas)


@pytest.mark.parametrize("bias", [True, False])
def test_a_trained_bias_is_taken_with_its_site(bias: bool) -> None:
    backbone = ToyBackbone(SMALL)
    if not bias:
        for site in SMALL.sites(SMALL.projections):
            backbone.module.get_submodule(backbone.path(site)).register_parameter("bias", None)
    adapter = create("cara", rank=2).attach(backbone, torch.Generator().manual_seed(0))
    scatter(adapter.named_parameters())
    before = {site: base.bias for site, base in adapter.bases.items()}
    fc1 = adapter.bases[Site(1, "fc1")]
    with merged(adapter, "cpu") as without:
        after = fc1.bias
        with without(Component()):
            assert all(base.bias is before[site] for site, base in adapter.bases.items())
        with without(Component(layer=0)):
            assert fc1.bias is after
            assert adapter.bases[Site(0, "fc1")].bias is before[Site(0, "fc1")]
        with without(Component(head=1)):
            assert fc1.bias is after
        assert fc1.bias is after is not before[Site(1, "fc1")]


def test_a_shared_head_is_part_of_no_query_head() -> None:
    adapter = attached(METHODS[0], SHARED)
    parts = components(list(adapter.bases), SHARED)
    assert sum(part.projection == "key" and part.head is not None for part in parts) == 2 * SHARED.layers
    before = {site: base.weight.detach().clone() for site, base in adapter.bases.items()}
    with merged(adapter, "cpu") as without, without(Component(head=3)):
        changed = {site: adapter.bases[site].weight.data - plain for site, plain in before.items()}
        assert not changed[Site(0, "query")][9:].any()
        assert changed[Site(0, "key")].any(1).all()


def test_an_adapter_without_attention_or_factors_is_refused() -> None:
    with pytest.raises(UserError, match="attention projection"):
        spectrum(attached({"name": "head_only"}), SMALL)
    with pytest.raises(UserError, match="no low-rank factors"):
        spectrum(attached({"name": "peft", "type": "LOHA", "rank": 2}), SMALL)


def test_the_true_update_has_the_ranks_that_it_is_said_to_have() -> None:
    tensor = true_update()
    for index, mode in enumerate(MODES):
        values = torch.linalg.svdvals(tensor.movedim(index, 0).flatten(1))
        assert int((values > 1e-5).sum()) == TRUE_RANKS[mode]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_trained_adapter_with_ranks_to_spare_shows_the_true_ones(seed: int) -> None:
    with registered():
        made = make_plan(
            suite(
                backbones=["synthetic"],
                tasks=["synthetic"],
                methods=[{"method": "tenslora", "variant": "att_qkv_depth", "ranks": [6, 3, 4, 3, 4]}],
                seeds=[seed],
                training={"lr": 2e-2, "batch_size": 32, "epochs": 6, "weight_decay": 0},
            )
        )
        (trial,) = made.trials
        outcome = run_trial(trial, Resources("cpu"), lambda _: None)
        backbone = load("synthetic")
    assert outcome.final.metric > 0.9
    adapter = from_identity(trial.method).attach(backbone, torch.Generator())
    adapter.load(outcome.adapter)
    spectra = spectrum(adapter, GEOMETRY)
    assert {mode: values.rank_99 for mode, values in spectra.items()} == TRUE_RANKS
    assert {mode: round(values.effective_rank) for mode, values in spectra.items()} == TRUE_RANKS


# --- the command ---


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], str], call: Call) -> Any:
    folder = tmp_path_factory.mktemp("finished")
    uri = new_store(folder)
    methods = [{"method": "lora", "rank": 2}, {"method": "tenslora", "variant": "qkv_depth"}, "head_only"]
    file = write(folder, methods=methods, training={"lr": 1e-2, "batch_size": 16, "epochs": 3})
    assert call("run", file, "--store", uri).code == 0
    return folder, Store.existing(uri, "toy"), uri


def test_the_command_shows_stores_and_draws(finished: Any, call: Call) -> None:
    folder, store, uri = finished
    records = [record for record in store.records() if record.tags["method"] != "head only"]
    plot = folder / "plots" / "spectra.svg"
    ids = [record.trial_id for record in records]
    ended = call("tools", "redundancy", *ids, "--store", uri, "--plot", plot)
    assert ended.code == 0, ended.err
    assert ended.out.count("effective rank") == 2
    assert "validation accuracy" in ended.out
    assert plot.read_text().lstrip().startswith("<?xml")
    for record in records:
        assert store.client.get_run(record.run_id).data.tags["redundancy"] == "yes"
        path = store.client.download_artifacts(record.run_id, "redundancy.json")
        document = json.loads(Path(path).read_text())
        assert document["trial_id"] == record.trial_id
        assert set(document["modes"]) == set(MODES)
        parts = {(c["layer"], c["projection"], c["head"]): c for c in document["components"]}
        for mask in ((True, False, False), (False, True, False), (False, False, True)):
            shares = [c["share"] for key, c in parts.items() if tuple(k is not None for k in key) == mask]
            assert sum(shares) == pytest.approx(1)
        all_parts = parts[None, None, None]
        assert all_parts["share"] == pytest.approx(1)
        assert document["norm"] > 0
        sites = [c for key, c in parts.items() if None not in key[:2] and key[2] is None]
        assert len(sites) == 6
        assert all(-1 <= c["drop"] <= 1 for c in sites)
        assert all(c["drop"] is None for key, c in parts.items() if None not in key)


def test_drops_can_be_left_out(finished: Any) -> None:
    _, store, uri = finished
    record = next(record for record in store.records() if record.tags["method"] == "LoRA")
    result = analyse(uri, record.run_id, drops=False)
    assert {component.drop for component in result.components} == {None}


def test_a_run_that_cannot_be_analysed_ends_with_2(finished: Any, call: Call, tmp_path: Path) -> None:
    _, store, uri = finished
    head = next(record for record in store.records() if record.tags["method"] == "head only")
    ended = call("tools", "redundancy", head.trial_id, "--store", uri)
    assert (ended.code, "no attention projection" in ended.err) == (2, True)
    ended = call("tools", "redundancy", "zzzz", "--store", uri)
    assert (ended.code, "there is no run or trial 'zzzz'" in ended.err) == (2, True)
    lora = next(record for record in store.records() if record.tags["method"] == "LoRA")
    ended = call("tools", "redundancy", lora.trial_id, "zzzz", "--store", uri)
    assert (ended.code, "there is no run or trial 'zzzz'" in ended.err, ended.out) == (2, True, "")
    ended = call(
        "tools", "redundancy", lora.trial_id, "--store", uri, "--no-drops", "--plot", tmp_path / "x.nothing"
    )
    assert (ended.code, "--plot" in ended.err, ended.out) == (2, True, "")


def test_a_plot_that_could_not_be_written_is_refused_beforehand(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=naming("--plot", ".png, .svg, .pdf")):
        prepare_plot(tmp_path / "new" / "x.txt")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=naming("--plot", "File exists")):
        prepare_plot(tmp_path / "file" / "x.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match=naming("--plot", "Is a directory")):
        prepare_plot(tmp_path / "folder.png")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder.png"}
    prepare_plot(tmp_path / "new" / "x.png")
    assert list((tmp_path / "new").iterdir()) == []


def test_components_are_each_kind_once() -> None:
    sites = [Site(layer, name) for layer in range(2) for name in ("query", "fc1")]
    parts = components(sites, SMALL)
    assert len(parts) == len(set(parts)) == 1 + 2 + 2 + 2 + 4 + 2 * 2
