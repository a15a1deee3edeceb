"""Runs a trial: puts a fresh adapter on a clean backbone, trains it, evaluates it once, takes measures."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from tensorbench.backbones import BackboneSpec, LoadedBackbone, load
from tensorbench.backbones.answers import has_vocabulary, put_head, token_logits, unembedding_of
from tensorbench.backbones.inputs import ModelInput, TextInput
from tensorbench.backbones.padding import ANY_SIDE, RIGHT, padded
from tensorbench.backbones.pooling import decoded
from tensorbench.methods import Adapter, UserError
from tensorbench.plan.recipe import Recipe
from tensorbench.plan.trial import Trial
from tensorbench.records.measures import Measure, Measures
from tensorbench.records.predictions import Predictions
from tensorbench.records.record import Progress, Record
from tensorbench.records.text import storable
from tensorbench.records.words import Artifact, Status, Tag
from tensorbench.tasks import PreparedData, Split, data_key, prepare
from tensorbench.tasks.plain_text import plain_tokens
from tensorbench.training.converged import fit_head
from tensorbench.training.inference import EXAMPLES, Forward, Inference, timed_sizes
from tensorbench.training.loop import Diverged, Evaluation, Trained, autocast, evaluate, head_state, train
from tensorbench.training.measure import PeakMemory
from tensorbench.training.numerics import compiled, deterministic, frozen_in_bf16, take_device, tf32
from tensorbench.training.saving import PLAIN, Saving, checkpointed, draws, switch_of
from tensorbench.training.seeding import generator, stream_seed

#: The largest number of tokens in a batch of several documents, including padding. It is small, since each
#: token has logits over the whole vocabulary.
TOKENS_AT_ONCE = 1024


@dataclass
class Outcome:
    """The result of a finished trial: predictions, trained adapter and head, and all measures."""

    trained: Trained
    final: Evaluation
    #: Source ids and labels of the examples in `final`, in the same order.
    example_ids: Tensor
    labels: Tensor
    adapter: dict[str, Tensor]
    head: dict[str, Tensor]
    #: All measures. A measure that could not be taken is None or absent.
    measures: Measures
    tags: dict[str, str]

    def record(self) -> Record:
        """Returns the outcome as a record of plain values and bytes."""
        tensors = {f"adapter.{name}": value for name, value in self.adapter.items()}
        tensors |= {f"head.{name}": value for name, value in self.head.items()}
        texts, logits = self.final.texts, self.final.logits.numpy()
        predictions = Predictions(
            self.example_ids.numpy(),
            self.labels.numpy(),
            self.final.answers,
            logits,
            logits.shape[1],
            text=None if texts is None else tuple(map(storable, texts)),
        )
        return Record(
            status=Status.FINISHED,
            tags=self.tags,
            metrics={key: float(value) for key, value in self.measures.items() if value is not None},
            files={Artifact.PREDICTIONS: predictions.file(), Artifact.ADAPTER: save(tensors)},
        )


class DataWarning(UserWarning):
    """A warning on a task's data, which every worker gives alike."""


class Resources:
    """The backbone and the data that a worker keeps between trials.

    If a trial needs another backbone or other data, the old ones are dropped first, so that the trial's peak
    memory does not include them.
    """

    def __init__(self, device: str, saving: Saving = PLAIN) -> None:
        self.device = torch.device(device)
        #: Options that save memory.
        self.saving = saving
        #: Whether the device no longer computes in this process, after an error of a trial.
        self.broken = False
        self._backbone: tuple[BackboneSpec, LoadedBackbone, str] | None = None
        self._data: tuple[tuple[object, ...], PreparedData] | None = None
        #: Losses of the backbone without adapter, by text and precision.
        self._bare: dict[tuple[str, str], float] = {}
        #: Forward times by method, data and precision. The first trial of each combination measures them.
        self.forward_times: dict[str, Measures] = {}

    def backbone(self, trial: Trial) -> LoadedBackbone:
        """Returns the trial's backbone, without an adapter. Makes the worker's GPU the thread's default.

        Raises the errors of `load`, and UserError if the loaded weights are not the planned ones.
        """
        take_device(self.device)
        spec = trial.backbone
        if self._backbone is None or self._backbone[0] != spec:
            # Free the old one first, so that memory never holds both.
            self._backbone = None
            self._bare.clear()
            self.forward_times.clear()
            if self.device.type == "cuda":
                # Other workers on the GPU can use the memory meanwhile.
                torch.cuda.empty_cache()
            loaded = load(spec)
            loaded.module.to(self.device)
            self._backbone = (spec, loaded, loaded.fingerprint())
        _, backbone, _ = self._backbone
        if backbone.info.weights_hash != trial.weights_hash:
            raise UserError(
                f"backbone '{backbone.info.name}' changed since the plan: weights {trial.weights_hash} "
                f"were planned, {backbone.info.weights_hash} loaded; start again"
            )
        return backbone

    def check_saving(self, trial: Trial) -> None:
        """Raises UserError if `saving` would change the trial's result, or if the backbone cannot use it."""
        if self.saving == PLAIN:
            return
        backbone, splits = self.backbone(trial), self.saving.splits(trial)
        data = self.data(trial, backbone.info.input)
        model_input = trial.task.input(backbone.info.input)
        put_head(backbone, model_input, data.classes, generator(trial.seed, "head_start"))
        example = data.train.batch(torch.tensor([0]))
        with autocast(trial.recipe, self.device):
            drawn = splits and draws(backbone.module, example, str(self.device))
        name, encoder, method = backbone.info.name, backbone.module.encoder, trial.build_method()
        if self.saving.checkpointing and switch_of(encoder) is None:
            raise UserError(f"--checkpointing: backbone '{name}' has no gradient checkpointing")
        if drawn:
            raise UserError(
                f"{self.saving.options()}: backbone '{name}' has dropout of its own, which would drop other "
                "entries in parts of a batch; accepted are backbones without"
            )
        # DeBERTa's layers get relative positions too, which belong to no example of the batch.
        shared = getattr(getattr(encoder, "config", None), "share_att_key", False)
        if splits and shared and getattr(method, "dropout", 0):
            raise UserError(
                f"{self.saving.options()}: {method.label} would drop other entries in parts of a batch, "
                f"since its layers in backbone '{name}' get positions, too; without dropout it can be run so"
            )

    def check(self) -> None:
        """Drops the backbone, with a warning, if a trial changed it. The next trial loads it again."""
        assert self._backbone is not None
        _, backbone, fingerprint = self._backbone
        if backbone.fingerprint() != fingerprint:
            warnings.warn(
                f"a trial left traces on backbone '{backbone.info.name}'; it is loaded again", stacklevel=2
            )
            self._backbone = None

    def data(self, trial: Trial, model_input: ModelInput) -> PreparedData:
        """Returns the trial's data on the device.

        Raises UserError if the data are not the planned ones, or if the train split is smaller than a batch.
        """
        row, seed = trial.task, trial.task.split_seed(trial.seed)
        # Tokens also depend on the tokenizer's class, which the data's identity does not name.
        key = (json.dumps(trial.data, sort_keys=True), model_input, *row.sizes, seed)
        if self._data is None or self._data[0] != key:
            self._data = None
            task, model_input = row.lookup(), row.input(model_input)
            now = data_key(task, model_input, row.max_tokens, per_seed=seed is not None)
            if changed := [name for name in now if trial.data.get(name) != now[name]]:
                raise UserError(
                    f"task '{row.task}' changed since the plan ({', '.join(changed)}); start again"
                )
            made = prepare(task, model_input, row.max_tokens, *row.sizes, split_seed=seed)
            if cut := made.cut:
                what, how = "texts", ""
                if task.target == "generation":
                    what, how = "prompts with their answers", ", an answer behind a long prompt to one token"
                elif isinstance(model_input, TextInput) and model_input.prompt is not None:
                    what, how = "prompts", " from the left"
                warnings.warn(
                    f"task '{row.task}': {cut:,} of {made.sizes.all:,} {what} have more than "
                    f"{now['max_tokens']} tokens and were cut{how}; raise max_tokens, or accept this",
                    DataWarning,
                    stacklevel=2,
                )
            if made.unwritable:
                warnings.warn(
                    f"task '{row.task}': {made.unwritable:,} of {len(made.validation) + len(made.test):,} "
                    f"right answers do not survive: in this tokenizer they exceed {task.new_tokens} tokens "
                    "(new_tokens) or the room beside the prompt, or decode to another text. A model that "
                    "writes them exactly is still scored wrong",
                    DataWarning,
                    stacklevel=2,
                )
            self._data = (key, made.to(self.device))
        _, data = self._data
        trial.recipe.check_batch(row.task, len(data.train))
        return data

    def text(self, trial: Trial, backbone: LoadedBackbone) -> tuple[Tensor, ...] | None:
        """Returns the token ids of each document on which forgetting is measured.

        None if the trial does not measure forgetting, or if the backbone cannot predict tokens. Raises
        UserError if the text is not available.
        """
        if trial.forgetting is None or not has_vocabulary(backbone):
            return None
        assert isinstance(backbone.info.input, TextInput)
        return plain_tokens(trial.forgetting, backbone.info.input)

    def bare_loss(self, trial: Trial, backbone: LoadedBackbone, text: Sequence[Tensor]) -> float:
        """Returns the mean loss per token of the backbone without adapter.

        It is measured once per text and precision.
        """
        key = (str(trial.forgetting), trial.recipe.precision)
        if key not in self._bare:
            self._bare[key], _ = text_loss(backbone, text, trial.recipe)
        return self._bare[key]


def run_trial(trial: Trial, resources: Resources, report: Callable[[Progress], None]) -> Outcome:
    """Trains and scores one trial, and passes its progress to `report`.

    Raises Diverged if a loss is not finite. Every error of `report` and every other error of the trial,
    such as too little memory, is raised as well. The backbone is always left without adapter.
    """
    backbone = resources.backbone(trial)
    data = resources.data(trial, backbone.info.input)
    text = resources.text(trial, backbone)
    before = None if text is None else resources.bare_loss(trial, backbone, text)
    started = time.perf_counter()  # Loading is not counted, since only a worker's first trial loads.
    model_input = trial.task.input(backbone.info.input)
    method = trial.build_method()
    put_head(
        backbone, model_input, data.classes, generator(trial.seed, "head_start"), fitted=method.fits_head
    )
    # The backbone's dropout draws from torch's global generators (the device's on a GPU).
    torch.manual_seed(stream_seed(trial.seed, "dropout"))
    try:
        adapter = method.attach(backbone, generator(trial.seed, "adapter_start"))
        try:
            # The peak of training and evaluation only: memory used for attaching is free again.
            memory = PeakMemory(resources.device)
            started_with = adapter.parameter_count
            split = data.test if trial.evaluate == "test" else data.validation
            trained, final = _trained(
                trial, backbone, adapter, data, split, report, resources.saving, fits_head=method.fits_head
            )
            # The measurements below are excluded from the trial's costs.
            seconds, peak = time.perf_counter() - started, memory.mib()
            state, count = adapter.state(), adapter.parameter_count
            measures: Measures = {
                Measure.SCORE: final.metric,
                Measure.SCORE_LOSS: final.loss,
                Measure.SECONDS: seconds,
                Measure.PEAK_MIB: peak,
                Measure.ADAPTER_PARAMETERS: count,
                Measure.PEAK_PARAMETERS: started_with if started_with != count else None,
                Measure.HEAD_PARAMETERS: sum(tensor.numel() for tensor in backbone.head.parameters()),
                Measure.ADAPTER_BYTES: sum(tensor.nbytes for tensor in state.values()),
                Measure.FROZEN_BYTES: sum(tensor.nbytes for tensor in adapter.frozen().values()),
                **trained.measures,
                **_of_data(data),
                **_forgetting(trial, backbone, adapter, text, before),
            }
            tags: dict[str, str] = {}
            if ranks := adapter.final_ranks():
                tags[Tag.FINAL_RANKS] = json.dumps(ranks, separators=(",", ":"))
            if Measure.TEXT_LOSS in measures:
                tags[Tag.TEXT] = str(trial.forgetting)
            outcome = Outcome(
                trained=trained,
                final=final,
                example_ids=split.ids.cpu(),
                labels=data.objective.targets(split.labels.cpu()),
                adapter=state,
                head=head_state(backbone),
                measures=measures,
                tags=tags,
            )
            # Last, because it detaches the adapter.
            measures |= _in_use(trial, resources, backbone, adapter, data)
            return outcome
        finally:
            adapter.detach()
    finally:
        # The next trial gets a clean backbone, whatever failed.
        backbone.module.eval()
        resources.check()


@contextmanager
def computing(encoder: Any, recipe: Recipe, saving: Saving = PLAIN) -> Iterator[None]:
    """A context in which an encoder computes as in a trial, with the recipe's and the saving options."""
    with (
        # This also applies to the backward pass.
        tf32(recipe.precision == "tf32"),
        deterministic(recipe.deterministic),
        compiled(encoder, recipe.compile),
        # A compiled graph has its own casts, which it merges with other kernels.
        frozen_in_bf16(encoder, recipe.precision == "bf16" and not recipe.compile),
        checkpointed(encoder, saving.checkpointing),
        # With `RIGHT` the host never waits for the GPU. On a CPU nothing waits, so results keep their bits.
        padded(encoder, RIGHT if next(encoder.parameters()).is_cuda else ANY_SIDE),
    ):
        yield


def _trained(
    trial: Trial,
    backbone: LoadedBackbone,
    adapter: Adapter,
    data: PreparedData,
    split: Split,
    report: Callable[[Progress], None],
    saving: Saving,
    *,
    fits_head: bool,
) -> tuple[Trained, Evaluation]:
    """Trains adapter and head, or fits only the head if `fits_head`. Then evaluates on `split`.

    Raises Diverged if a loss, or a feature for fitting the head, is not finite.
    """
    with computing(backbone.module.encoder, trial.recipe, saving):
        if fits_head:
            trained = fit_head(backbone, adapter, data, trial.recipe, saving)
        else:
            trained = train(backbone, adapter, data, trial.recipe, trial.seed, report, saving)
        final = evaluate(backbone, adapter, split, trial.recipe, data.objective, saving)
    if not math.isfinite(final.loss):
        raise Diverged(trained.steps, final.loss)
    return trained, final


def text_loss(backbone: LoadedBackbone, text: Sequence[Tensor], recipe: Recipe) -> tuple[float, int]:
    """Returns the mean loss over all tokens except the first of each document, and their number.

    Its rise by an adapter measures forgetting. `text` has the token ids (tokens,) of each document. The
    backbone is left in evaluation mode. If it has an adapter, call this inside `Adapter.hold`, so that the
    adapter contracts its factors only once.
    """
    encoder, table = backbone.module.encoder, unembedding_of(backbone)
    device = next(encoder.parameters()).device
    backbone.module.eval()
    total = torch.zeros((), dtype=torch.float64)
    count = 0
    size = max(1, TOKENS_AT_ONCE // max(map(len, text)))
    with torch.inference_mode(), autocast(recipe, device):
        for documents in (text[start : start + size] for start in range(0, len(text), size)):
            ids = pad_sequence(list(documents), batch_first=True).to(device)
            lengths = torch.tensor([len(document) for document in documents], device=device)
            mask = (torch.arange(ids.shape[1], device=device) < lengths[:, None]).long()
            predicted = mask[:, 1:].bool()
            states = decoded(encoder, ids, mask)[:, :-1][predicted]
            logits = token_logits(encoder, states, table)
            total += F.cross_entropy(logits, ids[:, 1:][predicted], reduction="sum").double().cpu()
            count += int(predicted.sum())
    return float(total) / count, count


def _forgetting(
    trial: Trial,
    backbone: LoadedBackbone,
    adapter: Adapter,
    text: Sequence[Tensor] | None,
    before: float | None,
) -> Measures:
    """Returns the mean losses per token on a text, without the adapter (`before`) and with it.

    Empty if forgetting is not measured.
    """
    if text is None or before is None:
        return {}
    with torch.inference_mode(), adapter.hold():
        after, tokens = text_loss(backbone, text, trial.recipe)
    return {Measure.TEXT_LOSS_BARE: before, Measure.TEXT_LOSS: after, Measure.TEXT_TOKENS: tokens}


def _in_use(
    trial: Trial, resources: Resources, backbone: LoadedBackbone, adapter: Adapter, data: PreparedData
) -> Measures:
    """Measures the adapter's inference time and its effect on a few examples. Detaches the adapter."""
    few = data.validation.batch(torch.arange(min(EXAMPLES, len(data.validation))))
    has_parameters = adapter.parameter_count > 0

    @torch.inference_mode()
    def outputs() -> Tensor:
        backbone.module.eval()
        with autocast(trial.recipe, resources.device):
            return backbone.module(**few).float().cpu()

    with adapter.hold():
        adapted = outputs()
    content = trial.model_dump(mode="json", include={"method", "data"})
    key = json.dumps([content, trial.recipe.precision], sort_keys=True)
    # A measurement that failed is repeated.
    if not resources.forward_times.get(key):
        resources.forward_times[key] = _inference(trial, backbone, adapter, data.validation)
    measures = dict(resources.forward_times[key])
    adapter.detach()
    if has_parameters:
        measures[Measure.ADAPTER_EFFECT] = effect(adapted, outputs())
    return measures


def effect(adapted: Tensor, bare: Tensor) -> float | None:
    """Returns how much an adapter changes the outputs (N, outputs), relative to their spread over examples.

    The change is the RMS difference of `adapted` (with the adapter) and `bare` (without it). The spread is
    the RMS deviation of `adapted` from its mean over examples. 0 means that the adapter changes nothing.
    Returns None if `adapted` is equal for all examples.
    """
    spread = (adapted - adapted.mean(0)).square().mean().sqrt().item()
    return (adapted - bare).square().mean().sqrt().item() / spread if spread > 0 else None


def _inference(trial: Trial, backbone: LoadedBackbone, adapter: Adapter, split: Split) -> Measures:
    """Times forward passes with the adapter, with its update merged, and without it. Detaches the adapter.

    If this fails, warns and returns no measures. The trial keeps its result.
    """
    device = next(backbone.module.parameters()).device
    try:
        batches = [split.batch(torch.arange(min(size, len(split)))) for size in timed_sizes(device)]
        forwards = [Forward(backbone.module, b, lambda: autocast(trial.recipe, device)) for b in batches]
        times = [(forward, *forward.with_adapter(adapter)) for forward in forwards]
        adapter.detach()
        measures: Measures = {}
        for forward, adapted, merged in times:
            measures |= Inference(forward.ms(), adapted, merged, forward.examples).measures
        return measures
    except Exception as error:  # memory may be too small for the larger batch, or for merged weights
        warnings.warn(f"the time of a forward could not be measured: {error}", stacklevel=2)
        return {}


def _of_data(data: PreparedData) -> Measures:
    """Returns the data's measures: sizes of splits, loss of guessing, scale of targets, and cut texts."""
    measures = data.sizes.measures
    measures[Measure.GUESSING_LOSS] = data.objective.guessing_loss(data.validation.labels.cpu())
    if data.objective.scale is not None:
        measures[Measure.TARGET_MEAN], measures[Measure.TARGET_SD] = data.objective.scale
    if (cut := data.cut) is not None:
        measures[Measure.CUT_TEXTS], measures[Measure.TEXTS] = cut, data.sizes.all
    return measures
