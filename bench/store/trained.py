"""Loads finished trials in the state in which they were scored."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from tensorbench.backbones import LoadedBackbone, load
from tensorbench.backbones.answers import put_head
from tensorbench.methods import Adapter, Method, UserError, from_identity
from tensorbench.methods.validation import explained
from tensorbench.plan.trial import Trial
from tensorbench.records.record import Record
from tensorbench.records.words import Artifact
from tensorbench.store.access import Access, is_foreign
from tensorbench.store.artifacts import broken, hashes
from tensorbench.store.finding import find_finished
from tensorbench.store.store import Store


@dataclass(frozen=True)
class StoredTrial:
    """A finished trial in the state in which it was scored, with adapter and head on the backbone."""

    store: Store = field(repr=False)
    record: Record
    trial: Trial
    method: Method
    backbone: LoadedBackbone
    adapter: Adapter

    @property
    def verified(self) -> bool:
        """Whether configuration and adapter have stored hashes, with which they were compared on loading."""
        return {Artifact.CONFIG, Artifact.ADAPTER} <= hashes(self.record).keys()

    @property
    def ranks(self) -> tuple[int, ...]:
        """The method's ranks. For AdaLoRA, this is the mean over sites. Empty for methods without ranks."""
        return self.method.size or ()


@contextmanager
def stored_trial(store: str, run: str, opened: Sequence[str] = ()) -> Iterator[StoredTrial]:
    """Loads the adapter and head of a finished trial. At the end of the context, the adapter is detached.

    `run` is an MLflow run id or a trial id, or the beginning of one. `opened` matters only for a trial that
    came from a pack: it lists the folders that the trial may open, or "hub" for the Hugging Face hub.

    Raises UserError for each of these:
    - the run is unknown, ambiguous or not finished
    - an artifact is missing or changed
    - the backbone or the method changed since the trial
    - the trial's data or backbone may not be opened
    """
    access = Access(opened)
    source, record = find_finished(store, run)
    trial = _trial(record, _content(source, record, Artifact.CONFIG))
    if is_foreign(source, record):
        trial = access.trial(trial)
    weights = _content(source, record, Artifact.ADAPTER)
    backbone = load(trial.backbone)
    if backbone.info.weights_hash != trial.weights_hash:
        raise UserError(
            f"backbone '{backbone.info.name}' is not the one of the trial: that had weights "
            f"{trial.weights_hash}, these are {backbone.info.weights_hash}"
        )
    with put_back(record, trial, weights, backbone, trial.task.lookup().outputs) as (method, adapter):
        yield StoredTrial(source, record, trial, method, backbone, adapter)


@contextmanager
def put_back(
    record: Record, trial: Trial, weights: bytes, backbone: LoadedBackbone, outputs: int
) -> Iterator[tuple[Method, Adapter]]:
    """Puts a trial's stored adapter and head on its backbone. At the end, the adapter is detached.

    `weights` is the content of the stored file. `outputs` is the number of the head's outputs. Raises
    UserError if the weights do not belong to this method and backbone.
    """
    try:
        state = load_tensors(weights)
    except SafetensorError as error:
        raise broken(record, Artifact.ADAPTER, f"{error}") from error
    method = from_identity(trial.method)
    model_input = trial.task.input(backbone.info.input)
    put_head(backbone, model_input, outputs, torch.Generator(), fitted=method.fits_head)
    adapter = method.attach(backbone, torch.Generator())
    try:
        adapter.load(_part(state, "adapter"))
        try:
            backbone.head.load_state_dict(_part(state, "head"))
        except RuntimeError as error:
            raise UserError(
                f"the stored head does not fit backbone '{backbone.info.name}': {error}"
            ) from error
        yield method, adapter
    finally:
        adapter.detach()


def _content(store: Store, record: Record, name: Artifact) -> bytes:
    content = store.read(record, name)
    if content is None:
        hint = ""
        if name == Artifact.ADAPTER and record.origin != record.run_id:
            hint = "; its pack may hold no adapters, which `tensorbench pack --adapters` takes along"
        raise UserError(f"{name} of run {record.run_id} is not available: the store has none{hint}")
    return content


def _trial(record: Record, config: bytes) -> Trial:
    try:
        stored = json.loads(config)
        return Trial.model_validate(stored.get("trial") if isinstance(stored, dict) else None)
    except ValidationError as error:
        raise broken(record, Artifact.CONFIG, explained(error, Trial)[0]) from error
    except (ValueError, RecursionError) as error:
        raise broken(record, Artifact.CONFIG, f"{error}") from error


def _part(state: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(f"{part}."): tensor for name, tensor in state.items() if name.startswith(f"{part}.")
    }
