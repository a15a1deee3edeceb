"""Tests the plans of the paper's suites, made only from the metadata of backbones and data on the hub."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tensorbench.methods import UserError
from tensorbench.methods.tenslora import VARIANTS
from tensorbench.plan.make import make_plan
from tensorbench.plan.rows import Plan
from tensorbench.plan.suite import load_suite
from tensorbench.records.stored_plan import Row

from ..hub_stand_in import client, serve

SUITES = Path(__file__).parents[3] / "suites"
TASKS = ("dtd", "eurosat", "cola", "mrpc")


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Plan]]:
    """Plans the paper's two suites for a GPU. Backbones have configurations only, and data are missing."""
    from transformers import RobertaConfig, ViTConfig, ViTImageProcessor

    from tensorbench.backbones.random_weights import byte_tokenizer

    folder = tmp_path_factory.mktemp("paper")
    ViTConfig().save_pretrained(folder / "vit")
    ViTImageProcessor().save_pretrained(folder / "vit")
    roberta = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
    RobertaConfig(**roberta).save_pretrained(folder / "roberta")
    byte_tokenizer(512).save_pretrained(folder / "roberta")
    (folder / "card").mkdir()
    (folder / "card" / "README.md").write_text("# a data set\n")
    with serve() as hub:
        hub.folders = {
            "models/google/vit-base-patch16-224": folder / "vit",
            "models/FacebookAI/roberta-base": folder / "roberta",
            "datasets/nyu-mll/glue": folder / "card",
            "datasets/timm/eurosat-rgb": folder / "card",
            "datasets/HuggingFaceM4/DTD_Describable-Textures-Dataset": folder / "card",
        }
        with client(folder / "cache", hub.endpoint):
            yield {
                name: make_plan(load_suite(SUITES / f"{name}.yaml"), "cuda")
                for name in ("paper_untuned", "paper_reference")
            }


def rows(plan: Plan, task: str = "dtd") -> dict[str, Row]:
    return {
        f"{row.method}, {row.budget}" if row.budget else f"{row.method} {row.ranks}": row
        for row in plan.rows
        if row.task == task
    }


def test_the_tuned_suite_differs_from_the_untuned_one_in_its_studies_and_the_decay_of_adapters() -> None:
    tuned, untuned = (load_suite(SUITES / f"{name}.yaml") for name in ("paper", "paper_untuned"))
    assert tuned.tuning is not None
    assert untuned.tuning is None
    fields = {"name", "description", "closing", "tuning", "seeds", "training"}
    # A centre is of studies only.
    centres: Any = {"methods": {"__all__": {"centre"}}}
    assert tuned.model_dump(exclude=dict.fromkeys(fields, True) | centres) == untuned.model_dump(
        exclude=dict.fromkeys(fields, True) | centres
    )
    assert tuned.training.adapter_weight_decay == 0
    # Studies choose the rate.
    update = {"adapter_weight_decay": 0.01, "lr": untuned.training.lr}
    assert tuned.training.model_copy(update=update) == untuned.training


def test_every_task_meets_the_backbone_of_its_modality_with_five_seeds(plans: dict[str, Plan]) -> None:
    for plan in plans.values():
        assert {(row.task, row.backbone) for row in plan.rows} == {
            ("dtd", "google/vit-base-patch16-224"),
            ("eurosat", "google/vit-base-patch16-224"),
            ("cola", "FacebookAI/roberta-base"),
            ("mrpc", "FacebookAI/roberta-base"),
        }
        assert all(len(row.trials) == 5 for row in plan.rows)
        assert len(set(Counter(row.task for row in plan.rows).values())) == 1


def test_the_comparison_has_what_the_paper_has_and_lacks(plans: dict[str, Plan]) -> None:
    by_name = rows(plans["paper_untuned"])
    counts = {name: row.parameters for name, row in by_name.items()}
    lora = 221_184
    assert counts["LoRA, isorank 4"] == counts["LoRA (targets=qkvo) (3,)"] == lora
    assert counts["LoRA (targets=qkvo+mlp) (1,)"] == 165_888
    assert counts["FacT-TT (8,)"] == 21_504
    assert counts["FacT-TK (32,)"] == 86_528
    assert counts["LoTR (32,)"] == 73_728
    assert counts["LoRTA (64,)"] == 55_040
    assert counts["CaRA (32,)"] == 85_440
    assert counts["TensLoRA att_qkv_depth, isorank 4"] == 4_460
    for variant in VARIANTS:
        budgets = {
            row.budget for row in by_name.values() if row.budget and row.title == f"TensLoRA {variant}"
        }
        assert budgets == {"isorank 4", *(f"isoparameters {rank}" for rank in (1, 2, 4, 8))}
        orders = [name for name in counts if name.startswith(f"TensLoRA {variant} (heads=interleaved)")]
        assert len(orders) == (2 if "att" in variant else 0)
    for variant in ("qkv_depth", "att_qkv_depth"):
        assert f"TensLoRA {variant} (targets=qkvo), isoparameters 4" in counts
    for name in ("FacT-TT", "FacT-TK", "LoTR", "LoRTA", "LoRTA (orientation=output_heads)", "CaRA"):
        assert abs(counts[f"{name}, isoparameters 4"] / lora - 1) < 0.05


def test_the_reference_s_switches_are_on_there_and_nowhere_else(plans: dict[str, Plan]) -> None:
    reference = {trial.task.task: trial for trial in plans["paper_reference"].trials if trial.seed == 0}
    assert set(reference) == set(TASKS)
    for task, trial in reference.items():
        recipe, vision = trial.recipe, task in ("dtd", "eurosat")
        assert (recipe.lr, recipe.weight_decay, recipe.batch_size, recipe.epochs) == (5e-4, 0.01, 64, 10)
        assert (recipe.select, recipe.adapter_weight_decay) == ("last", 0.01)
        assert (recipe.warmup, recipe.lr_floor) == ((0.0, 1e-6) if vision else (0.1, 0.0))
        assert recipe.augmentation == (("colour_jitter", "flip") if task == "eurosat" else ())
        assert trial.task.split == ("per_seed" if vision else "fixed")
        if vision:
            assert (trial.data["mean"], trial.data["std"]) == ((0.0,) * 3, (1.0,) * 3)
            assert trial.data["resize"] == (224 if task == "dtd" else 300)
        else:
            assert (trial.data["padding"], trial.data["max_tokens"]) == ("max_tokens", 512)
    assert reference["dtd"].task.train_size == 1000
    tensors = [
        trial.method for trial in plans["paper_reference"].trials if trial.method["method"] == "tenslora"
    ]
    for method in tensors:
        assert method["heads"] == ("interleaved" if "att" in method["variant"] else "aligned")
        assert method["starts"] == ("independent" if "qkv_depth" in method["variant"] else "identical")
    for trial in plans["paper_untuned"].trials:
        assert (trial.recipe.select, trial.recipe.augmentation) == ("loss", ())
        assert (trial.task.split, trial.task.normalise, trial.task.resize) == ("fixed", True, None)
        assert trial.method.get("starts") in (None, "independent")


def test_the_reference_trains_in_fp32_on_a_gpu_too(plans: dict[str, Plan]) -> None:
    used = {name: {trial.recipe.precision for trial in plan.trials} for name, plan in plans.items()}
    assert used == {"paper_reference": {"fp32"}, "paper_untuned": {"bf16"}}


@pytest.mark.parametrize("name", ["paper", "paper_untuned", "paper_reference"])
def test_without_network_the_plan_is_refused_with_what_to_do(name: str, tmp_path: Path) -> None:
    with client(tmp_path, "http://127.0.0.1:9", offline=True), pytest.raises(UserError) as refused:
        make_plan(load_suite(SUITES / f"{name}.yaml"))
    assert "tensorbench tools fetch" in str(refused.value)


def test_start_and_scale_are_crossed_for_every_variant_without_a_hub(tmp_path: Path) -> None:
    with client(tmp_path, "http://127.0.0.1:9", offline=True):
        plan = make_plan(load_suite(SUITES / "init_scale.yaml"))
    methods = [trial.method for trial in plan.trials if trial.method["method"] == "tenslora"]
    assert len({(m["variant"], m["init"], m["scale"]) for m in methods}) == 7 * 3 * 3
    assert len(methods) == 378
    # Two tasks have a floor of three seeds each.
    assert len(plan.trials) == 384
    assert {trial.evaluate for trial in plan.trials} == {"validation"}
