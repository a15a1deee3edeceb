"""The conformance checks of a backbone, alone and with methods attached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tensorbench.backbones import BACKBONES, BackboneInfo, BackboneKind, LoadedBackbone, describe, load
from tensorbench.backbones.inputs import TextInput
from tensorbench.checks.conformance.checks import CHECKS
from tensorbench.checks.conformance.subject import (
    CLASSES,
    Finding,
    LoadedSubject,
    expect,
    expect_equal,
    judge,
    load_tiny,
    outputs,
    snapshot,
    tiny,
    undisturbed,
)
from tensorbench.methods import Method, UserError, create
from tensorbench.methods.backbone import Site
from tensorbench.methods.sizes import ANY_TARGETS

#: The methods that are attached to all projections of a backbone: one with peft's matrices per layer, and one
#: with tensors over the whole model. If a backbone lacks projections, they take narrower `targets`.
ATTACHED: tuple[Method, ...] = (
    create("lora", rank=2, targets="qkvo+mlp"),
    create("tenslora", variant="qkv_depth", factorization="cp", targets="qkvo+mlp").isorank(2),
)

#: The names of the checks of methods that involve the backbone's modules. `start` is left out. It demands
#: updates so close to zero that the rounding of real weights would fail it.
BACKBONE_CHECKS = ("training", "merge", "detach", "interruption", "transients", "state")


def check_backbone(name: str) -> list[Finding]:
    """Checks a registered backbone alone and with two methods. Downloads its weights if necessary.

    Raises UserError if the name is unknown, and if the backbone cannot be described or loaded.
    """
    BACKBONES.get(name)
    return _check(name, partial(describe, name), partial(load, name), ATTACHED)


def check_kind(kind: BackboneKind, methods: Sequence[Method] = ATTACHED) -> list[Finding]:
    """Checks a small random backbone of a kind, alone and with these methods. Downloads nothing."""
    entry = tiny(kind)
    return _check(entry.name, partial(entry.describe, None), partial(load_tiny, kind), methods)


def _check(
    name: str,
    described: Callable[[], BackboneInfo],
    loaded: Callable[[], LoadedBackbone],
    methods: Sequence[Method],
) -> list[Finding]:
    with undisturbed():
        info, backbone = described(), loaded()

        def loaded_again() -> None:
            same = loaded().fingerprint() == backbone.fingerprint()
            expect(same, "loaded twice, its weights are others")

        findings = [
            judge("described", lambda: _described(name, info, described(), backbone)),
            judge("loaded again", loaded_again),
            judge("frozen", lambda: _frozen(backbone)),
            judge("head", lambda: _head(backbone)),
        ]
        tokenizer: list[Any] = []
        if isinstance(info.input, TextInput):
            findings.append(judge("tokenizer", partial(_tokenizer, info.input, tokenizer)))
            if not tokenizer:
                return findings
        subjects = [
            LoadedSubject(_fitting(method, info), info.kind, backbone, *tokenizer) for method in methods
        ]
        findings.append(judge("adapted", lambda: _adapted(subjects, info)))
        findings.append(judge("sites", lambda: _sites(subjects[0])))
        findings.append(judge("forward", lambda: _forward(subjects[0])))
        findings += [
            judge(f"{subject.method.title}: {check}", partial(CHECKS[check].run, subject))
            for subject in subjects
            for check in BACKBONE_CHECKS
        ]
    return findings


def _fitting(method: Method, info: BackboneInfo) -> Method:
    """Returns the method with the most targets that a backbone has. Unchanged if it has too few."""
    for targets in (None, *reversed(ANY_TARGETS)):
        with suppress(UserError, ValueError):
            options = {**method.model_dump(), "targets": targets}
            fitting = method if targets is None else type(method).model_validate(options)
            fitting.check(info.geometry, info.projections)
            return fitting
    return method


def _adapted(subjects: Sequence[LoadedSubject], info: BackboneInfo) -> str:
    adapted = dict[str, None]()
    for subject in subjects:
        with suppress(UserError):
            subject.method.check(info.geometry, info.projections)
            adapted |= dict.fromkeys(info.geometry.having(subject.method.projections))
    expect(
        bool(adapted),
        f"it has {', '.join(info.projections)}: no method is checked on it, since each takes at least query "
        "and value",
    )
    return ", ".join(adapted)


def _described(name: str, info: BackboneInfo, second: BackboneInfo, backbone: LoadedBackbone) -> str:
    expect(info.name == name, f"describe() calls it '{info.name}', it is registered as '{name}'")
    expect(second == info, "asked twice, describe() says something else")
    expect(backbone.info == info, "load() gives a backbone with another description than describe()")
    # Loading has already checked that every site is a Linear of the described shape.
    sites = len(info.geometry.sites(info.projections))
    return f"{info.kind}, {info.geometry}, {sites} sites: {', '.join(info.projections)}"


def _frozen(backbone: LoadedBackbone) -> str:
    encoder = backbone.module.encoder
    for name, parameter in encoder.named_parameters():
        expect(parameter.device.type == "cpu", f"{name} is on {parameter.device}, not on the CPU")
        expect(parameter.dtype == torch.float32, f"{name} is {parameter.dtype}, not float32")
        expect(not parameter.requires_grad, f"{name} is not frozen")
    training = [name or "the encoder" for name, module in encoder.named_modules() if module.training]
    expect(not training, f"not in eval mode: {training[:4]}")
    return f"{sum(parameter.numel() for parameter in encoder.parameters()):,} parameters"


def _head(backbone: LoadedBackbone) -> None:
    # `reset` should draw the complete head from its generator alone, and leave the encoder unchanged.
    before = backbone.fingerprint()
    heads = []
    for seed, ambient in ((2, 0), (2, 1), (3, 1)):
        torch.default_generator.manual_seed(ambient)
        state = torch.get_rng_state()
        backbone.reset(CLASSES, torch.Generator().manual_seed(seed))
        expect(torch.equal(torch.get_rng_state(), state), "making a head moves the global random state")
        heads.append({name: tensor.clone() for name, tensor in backbone.head.state_dict().items()})
    drawn = {
        id(parameter)
        for layer in backbone.head.modules()
        if isinstance(layer, nn.Linear)
        for parameter in layer.parameters(recurse=False)
    }
    undrawn = [name for name, parameter in backbone.head.named_parameters() if id(parameter) not in drawn]
    expect(not undrawn, f"learned in the head, but in no Linear layer, so that nothing draws it: {undrawn}")
    expect_equal(heads[0], heads[1], "heads of one seed")
    other = not drawn or any(not torch.equal(heads[1][name], tensor) for name, tensor in heads[2].items())
    expect(other, "heads of two seeds are equal")
    expect(backbone.fingerprint() == before, "making a head changes the encoder")


def _tokenizer(text_input: TextInput, loaded: list[Any]) -> None:
    tokenizer = text_input.load_tokenizer()
    expect(tokenizer.pad_token_id is not None, "it has no padding token, so that texts cannot be batched")
    loaded.append(tokenizer)


def _sites(subject: LoadedSubject) -> str:
    # An adapter has an effect only at a site that runs in a forward pass.
    backbone = subject.backbone()
    run: set[Site] = set()
    sites = backbone.geometry.sites(backbone.projections)
    for site in sites:
        layer = backbone.module.get_submodule(backbone.path(site))
        layer.register_forward_hook(lambda *_, site=site: run.add(site))
    outputs(backbone, subject.batch())
    idle = [str(site) for site in sites if site not in run]
    expect(not idle, f"the forward does not run {idle[:6]}")
    return f"all {len(run)} are run by a forward"


def _forward(subject: LoadedSubject) -> None:
    backbone, batch = subject.backbone(), subject.batch()
    before = snapshot(backbone)
    logits: Tensor = outputs(backbone, batch)
    shape = (len(next(iter(batch.values()))), CLASSES)
    expect(tuple(logits.shape) == shape, f"logits have the shape {tuple(logits.shape)}, not {shape}")
    expect(bool(torch.isfinite(logits).all()), "logits are not finite")
    expect(torch.equal(outputs(backbone, batch), logits), "in eval mode, two forwards differ")
    features = backbone.module.pool(backbone.module.encoder, **batch)
    expected = (shape[0], backbone.geometry.hidden)
    actual = tuple(features.shape)
    expect(actual == expected, f"features have the shape {actual}, not {expected}")
    backbone.module.train()
    backbone.module(**batch)
    expect_equal(snapshot(backbone), before, "after a forward in training")
