"""Tests errors for missing repositories and files, and that backbones from the hub load their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors

from tensorbench.backbones import BackboneSpec, load
from tensorbench.machine.hub import snapshot
from tensorbench.methods import UserError
from tensorbench.tasks import DataSource

from ..hub_stand_in import Hub, client
from .paper_hub import (
    GLUE,
    ROBERTA,
    VIT,
    plan,
    task_of,
)

# --- no network, no such thing ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tasks": ["cola"], "backbones": ["tiny-random-bert"]},
            r"hub data set nyu-mll/glue can be neither .*`tensorbench tools fetch SUITE.yaml`.*"
            r"`hf download nyu-mll/glue --repo-type dataset`.*`source: \{local: FOLDER\}`",
        ),
        (
            {"tasks": ["digits"], "backbones": [{"hub": "google/tiny-vit"}]},
            r"hub model google/tiny-vit can be .*`hf download google/tiny-vit`.*HF_HOME.*`local:`",
        ),
    ],
)
def test_without_network_the_message_says_what_to_download_and_where_to_put_it(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    for offline in (False, True):
        with (
            client(tmp_path, "http://127.0.0.1:9", offline=offline),
            pytest.raises(UserError, match=f"(?s){message}"),
        ):
            plan(**changes)


def test_files_of_a_locked_data_set_that_are_missing_offline_are_named(online: Hub, tmp_path: Path) -> None:
    task = task_of("cola", DataSource(revision=online.commit(GLUE)))
    with client(tmp_path / "none", "http://127.0.0.1:9", offline=True):
        # The task's identity needs no network; its examples do.
        assert task.identity_hash()
        with pytest.raises(UserError, match=r"--revision [0-9a-f]{40} --include 'cola/\*"):
            task.examples()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbones": [{"hub": "google/no-vit"}, {"hub": "me/tiny-roberta"}]}, "google/no-vit"),
        (
            {
                "tasks": [{"task": "mrpc", "source": {"hub": "me/glue"}}],
                "backbones": [{"hub": "me/tiny-roberta"}],
            },
            "me/glue",
        ),
        (
            {
                "tasks": [{"task": "mrpc", "source": {"revision": "v9"}}],
                "backbones": [{"hub": "me/tiny-roberta"}],
            },
            "nyu-mll/glue.* v9",
        ),
        (
            {
                "tasks": [{"task": "mrpc", "source": {"hub": "no spaces please"}}],
                "backbones": ["tiny-random-bert"],
            },
            "'no spaces please'",
        ),
    ],
)
def test_names_that_the_hub_does_not_have(online: Hub, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(**changes)


# --- backbones in the formats of the paper's ---


def test_checkpoints_as_the_hub_has_them_load_with_their_weights(online: Hub) -> None:
    from transformers import RobertaForMaskedLM, ViTForImageClassification

    vit = load(BackboneSpec(hub="google/tiny-vit"))
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        own = (
            ViTForImageClassification.from_pretrained(online.folders[VIT]).vit(pixels).last_hidden_state[:, 0]
        )
        ours = vit.module.pool(vit.module.encoder, pixel_values=pixels)
    torch.testing.assert_close(ours, own, atol=1e-5, rtol=0)
    roberta = load(BackboneSpec(hub="me/tiny-roberta"))
    tokens = {"input_ids": torch.randint(4, 200, (2, 9)), "attention_mask": torch.ones(2, 9).long()}
    with torch.no_grad():
        model = RobertaForMaskedLM.from_pretrained(online.folders[ROBERTA])
        own = model.roberta(**tokens).last_hidden_state[:, 0]
        ours = roberta.module.pool(roberta.module.encoder, **tokens)
    torch.testing.assert_close(ours, own, atol=1e-5, rtol=0)
    assert sum(p.numel() for p in roberta.head.parameters()) == 32 * 32 + 32 + 2 * 32 + 2


def test_a_connection_that_is_reset_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def reset(*_: object, **__: object) -> None:
        raise errors.HTTPError("Connection reset by peer")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", reset)
    with pytest.raises(UserError, match="owner/reset"):
        snapshot("owner/reset", None, ("README.md",))
