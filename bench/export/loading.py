"""Loads an export without the program that wrote it: `load(".")` in its folder.

Needs torch, safetensors, transformers or timm, peft unless the adapter was merged, and bitsandbytes if it was
trained on quantised weights. This file is the same in all exports. Their differences are data, in
loading.json and the files beside it. Those are not trusted: they choose no code, weights are read from
safetensors alone, and nothing is downloaded but the weights and the configuration of the frozen model.
"""

from __future__ import annotations

import inspect
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

#: The file with the weights of an adapter.
ADAPTER = "adapter_model.safetensors"

#: The folder of the frozen model, if the export contains it.
ORIGINAL = "original"

#: The types of transformers' models in exports. Some other types load files that their configuration names.
MODEL_TYPES = (
    *("bert", "roberta", "xlm-roberta", "distilbert", "electra", "deberta-v2", "modernbert", "t5", "mt5"),
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "gpt2", "gpt_neox"),
    *("vit", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit", "beit", "clip_vision_model"),
    "siglip_vision_model",
)

#: The arguments of a transformers model that loading.json may hold, with the types of their values.
ARGUMENTS = {
    "num_labels": int,
    "ignore_mismatched_sizes": bool,
    "add_pooling_layer": bool,
    "attn_implementation": str,
}

#: The implementations of attention in exports. The first is transformers' default.
ATTENTION = ("sdpa", "eager")

#: What a model's configuration may name for attention, without effect. Other names are those of kernels,
#: which transformers would download and run.
OTHER_ATTENTION = ("flex_attention", "flash_attention_2", "flash_attention_3")

#: Fields of a model's configuration that make transformers run or load something else.
CHOICES = ("quantization_config", "fusion_config", "experts_implementation", "_experts_implementation")


def load(folder: str | Path = ".", original: str | Path | None = None) -> Export:
    """Loads the export in a folder, in float32, for evaluation.

    `original` is the location of the frozen model: a transformers folder or a timm safetensors file. By
    default the location comes from loading.json. Raises ValueError if loading.json, or a configuration of
    the model or of peft, asks for anything but a model of these libraries with weights in safetensors.
    """
    folder = Path(folder)
    settings = _read(folder / SETTINGS)
    builders = {"timm": _timm_model, "transformers": _transformers_model}
    if settings["library"] not in builders:
        raise ValueError(f"{folder / SETTINGS}: library should be one of {', '.join(builders)}")
    model = builders[settings["library"]](folder, settings, original)
    if rounding := settings.get("quantise"):
        _round(model, **rounding)
    if not settings["merged"]:
        from peft import PeftModel

        _check_adapter(folder)
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
    model_class, arguments = _model_class(settings["model_class"]), settings["arguments"]
    for name, value in arguments.items():
        known = ARGUMENTS.get(name) is type(value)
        if not known or (name == "attn_implementation" and value not in ATTENTION):
            raise ValueError(f"{SETTINGS}: arguments should not hold {name}: {value!r}")
    if settings["merged"]:
        place = folder
    elif original is None and settings["repository"]:
        from huggingface_hub import snapshot_download

        files = ["config.json", *WEIGHTS]
        place = Path(
            snapshot_download(settings["repository"], revision=settings["revision"], allow_patterns=files)
        )
    else:
        place = _place(folder, settings, original)
    labels = {name: arguments[name] for name in ("num_labels",) if name in arguments}
    options = {name: value for name, value in arguments.items() if name not in labels}
    _check_config(place, model_class.config_class.get_config_dict(place)[0])
    # Without a path, transformers looks for no pickles, no adapters and no index of other files.
    return model_class.from_pretrained(
        None,
        config=model_class.config_class.from_pretrained(place, **labels),
        state_dict=_weights(place),
        **{"dtype": torch.float32, "attn_implementation": ATTENTION[0], **options},
    )


#: The names of weight files: one file, or else parts.
WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors")


def _weights(place: Path) -> dict[str, Tensor]:
    for pattern in WEIGHTS:
        if files := sorted(place.glob(pattern)):
            return {name: tensor for file in files for name, tensor in load_file(file).items()}
    raise ValueError(f"{place} should hold {WEIGHTS[0]}, alone or in parts; other weights are not read")


def _check_config(place: Path, config: dict[str, Any]) -> None:
    """Raises ValueError for a configuration, or a part of one, that chooses code or other weights."""
    for name, value in config.items():
        harmless = (None, *ATTENTION, *OTHER_ATTENTION) if "attn_implementation" in name else (None,)
        if ("attn_implementation" in name or name in CHOICES) and value not in harmless:
            raise ValueError(f"{place}: the configuration should not hold {name}: {value!r}")
        if isinstance(value, dict):
            _check_config(place, value)


def _check_adapter(folder: Path) -> None:
    """Raises ValueError if the adapter is pickled, or names anything to load besides its weights.

    peft's types that name files or repositories put them into objects, or adapt no modules.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    if not (folder / ADAPTER).exists():
        raise ValueError(f"{folder} should hold {ADAPTER}; other weights are not read")
    file = folder / "adapter_config.json"
    config = _read(file)
    kind = PEFT_TYPE_TO_CONFIG_MAPPING.get(config.get("peft_type"))
    if kind is None or "target_modules" not in inspect.signature(kind).parameters:
        raise ValueError(f"{file}: peft_type should adapt modules, got {config.get('peft_type')!r}")
    for name, value in config.items():
        if isinstance(value, dict) and value and not name.endswith(("_pattern", "_mapping")):
            raise ValueError(f"{file}: {name} should be empty, got {value!r}")


def _round(model: Any, form: str, layers: list[str]) -> None:
    """Rounds the weights of these layers to values that int8 or nf4 can hold. They stay float32 tensors."""
    from bitsandbytes import functional

    for path in layers:
        weight = model.get_submodule(path).weight
        if form == "int8":
            numbers, largest, _ = functional.int8_vectorwise_quant(weight.data)
            weight.data = numbers * (largest[:, None] / 127)
        else:
            # Flat, since bitsandbytes takes wrong scales for some widths on processors with AVX-512.
            packed = functional.quantize_4bit(weight.data.flatten(), blocksize=64, quant_type=form)
            weight.data = functional.dequantize_4bit(*packed).reshape(weight.shape)


def _model_class(name: str) -> Any:
    import transformers

    model_class: Any = getattr(transformers, name, None)
    is_model = isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)
    config_class: Any = getattr(model_class, "config_class", None) if is_model else None
    if getattr(config_class, "model_type", "") not in MODEL_TYPES:
        raise ValueError(
            f"{SETTINGS}: model_class should be a model of transformers of one of the types "
            f"{', '.join(MODEL_TYPES)}, got {name!r}"
        )
    return model_class


def _timm_model(folder: Path, settings: dict[str, Any], original: str | Path | None) -> Any:
    import timm

    name, arguments = settings["architecture"], settings["arguments"]
    if not timm.is_model(name):
        raise ValueError(f"{SETTINGS}: architecture should be a model of timm, got {name!r}")
    with torch.device("meta"):
        bases = type(timm.create_model(name)).__mro__
    accepted = {name for base in bases[:-1] for name in inspect.signature(base).parameters}
    # The others are arguments of timm.create_model itself, and could load other weights.
    if other := arguments.keys() - accepted:
        raise ValueError(f"{SETTINGS}: arguments of {name} should not hold {', '.join(sorted(other))}")
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
        if not file.endswith(".safetensors"):
            raise ValueError(f"the frozen model should be a file .safetensors, got {file}")
    overlay = {"file": file, "custom_load": False}
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **arguments).float()
    if size := settings["resized"]:
        model.set_input_size(img_size=(size, size))
    return model


def _read(file: Path) -> dict[str, Any]:
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{file} should hold an object")
    return content


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
