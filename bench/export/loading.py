"""Loads an export without the program that wrote it: `load(".")` in its folder.

Needs torch, safetensors, transformers or timm, peft unless the adapter was merged, and bitsandbytes if it was
trained on quantised weights. This file is the same in all exports. Their differences are data, in
loading.json and the files beside it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

#: The file that holds the model's class and arguments, and says how logits follow from its outputs.
SETTINGS = "loading.json"

#: The file with the state of a head that fits no module of the model.
HEAD = "head.safetensors"

#: The folder of the frozen model, if the export contains it.
ORIGINAL = "original"


def load(folder: str | Path = ".", original: str | Path | None = None) -> Export:
    """Loads the export in a folder, in float32, for evaluation.

    `original` is the location of the frozen model: a transformers folder or a timm safetensors file. By
    default the location comes from loading.json. Raises ValueError if loading.json names another library.
    """
    folder = Path(folder)
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    builders = {"timm": _timm_model, "transformers": _transformers_model}
    if settings["library"] not in builders:
        raise ValueError(f"{folder / SETTINGS}: library should be one of {', '.join(builders)}")
    model = builders[settings["library"]](folder, settings, original)
    if rounding := settings.get("quantise"):
        _round(model, **rounding)
    if not settings["merged"]:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, folder)
    head = load_file(folder / HEAD) if (folder / HEAD).exists() else None
    return Export(model.eval(), head, settings)


class Export:
    """A loaded export: the model, and the head's tensors if the head is in a file beside the model."""

    def __init__(self, model: Any, head: dict[str, Tensor] | None, settings: dict[str, Any]) -> None:
        self.model, self.head, self.settings = model, head, settings

    @torch.no_grad()
    def logits(self, **batch: Tensor) -> Tensor:
        """Returns logits (batch, classes) of `pixel_values`, or of `input_ids` and `attention_mask`.

        A language model may have words for each class instead of a head. Its prompts are padded on the
        right, and its logits are the log-likelihoods of each class's words after the prompt. For a language
        model that writes its answers, the result is (batch, 1): the log-likelihood of the tokens that the
        argument `scored` marks, for example those of an answer.
        """
        if "words" in self.settings:
            return _likelihoods_of_words(self, **batch)
        if "new_tokens" in self.settings:
            return _likelihood_of_scored(self, **batch)
        outputs = self.outputs(**batch)
        if self.head is not None:
            features = FEATURES[self.settings["features"]](outputs, batch)
            return F.linear(features, self.head["weight"], self.head["bias"])
        logits: Tensor = outputs if isinstance(outputs, Tensor) else outputs.logits
        return logits

    @torch.no_grad()
    def write(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Returns the tokens that a language model writes after prompts, which are padded on the left."""
        end = self.settings["end"]
        written: Tensor = self.model.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            max_new_tokens=self.settings["new_tokens"],
            eos_token_id=end,
            pad_token_id=end,
            # Always take the likeliest token, whatever the checkpoint's generation_config says.
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
        )
        return written[:, input_ids.shape[1] :]

    def outputs(self, **batch: Tensor) -> Any:
        """Returns the model's own outputs. Arguments that the model does not accept are left out."""
        if self.settings["library"] == "timm":
            return self.model(batch["pixel_values"])
        inputs: dict[str, Any] = {name: batch[name] for name in self.settings["inputs"] if name in batch}
        if self.settings["counts_positions"]:
            # Positions count from the first token that is not padding.
            inputs["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        if self.settings["interpolates"]:
            inputs["interpolate_pos_encoding"] = True
        return self.model(**inputs)


# --- models ---


def _transformers_model(folder: Path, settings: dict[str, Any], original: str | Path | None) -> Any:
    model_class = _model_class(settings["model_class"])
    options = {**settings["arguments"], "dtype": torch.float32}
    if settings["merged"]:
        return model_class.from_pretrained(folder, **options)
    if original is None and settings["repository"]:
        return model_class.from_pretrained(settings["repository"], revision=settings["revision"], **options)
    return model_class.from_pretrained(_place(folder, settings, original), **options)


def _round(model: Any, form: str, layers: list[str]) -> None:
    """Rounds the weights of these layers to values that int8 or nf4 can hold. They stay float32 tensors."""
    from bitsandbytes import functional

    for path in layers:
        weight = model.get_submodule(path).weight
        if form == "int8":
            numbers, largest, _ = functional.int8_vectorwise_quant(weight.data)
            weight.data = numbers * (largest[:, None] / 127)
        else:
            packed = functional.quantize_4bit(weight.data, blocksize=64, quant_type=form)
            weight.data = functional.dequantize_4bit(*packed)


def _model_class(name: str) -> Any:
    import transformers

    model_class = getattr(transformers, name)
    if not (isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)):
        raise ValueError(f"{SETTINGS}: model_class should be a model of transformers, got {name!r}")
    return model_class


def _timm_model(folder: Path, settings: dict[str, Any], original: str | Path | None) -> Any:
    import timm

    name, arguments = settings["architecture"], settings["arguments"]
    if settings["merged"]:
        model = timm.create_model(name, **arguments)
        model.load_state_dict(load_file(folder / "model.safetensors"))
        return model
    if original is None and settings["repository"]:
        from huggingface_hub import hf_hub_download

        file = hf_hub_download(settings["repository"], "model.safetensors", revision=settings["revision"])
    else:
        place = _place(folder, settings, original)
        file = str(place / "model.safetensors" if place.is_dir() else place)
    overlay = {"file": file, "custom_load": False}
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **arguments).float()
    if size := settings["resized"]:
        model.set_input_size(img_size=(size, size))
    return model


def _place(folder: Path, settings: dict[str, Any], original: str | Path | None) -> Path:
    return folder / settings["original"] if original is None else Path(original)


# --- features (batch, hidden) for a head beside the model ---


def mean_of_tokens(outputs: Any, batch: dict[str, Tensor]) -> Tensor:
    states: Tensor = outputs.last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
    return (states * mask).sum(1) / mask.sum(1).clamp(min=1)


def last_token(outputs: Any, batch: dict[str, Tensor]) -> Tensor:
    states, mask = outputs.last_hidden_state, batch["attention_mask"]
    last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)
    features: Tensor = states[torch.arange(len(states), device=mask.device), last]
    return features


def class_token(outputs: Any, batch: dict[str, Tensor]) -> Tensor:
    features: Tensor = outputs.last_hidden_state[:, 0]
    return features


def pooled(outputs: Any, batch: dict[str, Tensor]) -> Tensor:
    features: Tensor = outputs.pooler_output
    return features


#: The functions that compute the features (batch, hidden), by the name of the pooling in training.
FEATURES = {
    "mean_of_tokens": mean_of_tokens,
    "mean_of_windows": mean_of_tokens,
    "mean_of_one_segment": mean_of_tokens,
    "last_token": last_token,
    "class_token": class_token,
    "normed_class_token": pooled,
    "pooled_by_attention": pooled,
}


# --- language models without a head ---


def _likelihoods_of_words(
    export: Export, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
) -> Tensor:
    """The log-likelihoods (batch, classes) of each class's words after prompts."""
    scores = []
    for word in export.settings["words"]:
        places = attention_mask.sum(1, keepdim=True) + torch.arange(len(word), device=input_ids.device)
        tokens = torch.tensor(word, device=input_ids.device).expand(len(input_ids), -1)
        ids = F.pad(input_ids, (0, len(word))).scatter(1, places, tokens)
        mask = F.pad(attention_mask, (0, len(word))).scatter(1, places, 1)
        logits = export.outputs(input_ids=ids, attention_mask=mask).logits.float().log_softmax(-1)
        rows = torch.arange(len(ids), device=ids.device)[:, None]
        scores.append(logits[rows, places - 1, tokens].sum(1))
    return torch.stack(scores, 1)


def _likelihood_of_scored(
    export: Export, input_ids: Tensor, attention_mask: Tensor, scored: Tensor
) -> Tensor:
    """The log-likelihood (batch, 1) of the tokens marked in `scored`."""
    outputs = export.outputs(input_ids=input_ids, attention_mask=attention_mask)
    logits = outputs.logits[:, :-1].float().log_softmax(-1)
    likelihoods = logits.gather(2, input_ids[:, 1:, None])[:, :, 0]
    return (likelihoods * scored[:, 1:]).sum(1, keepdim=True)
