"""Converts GGUF files, the format of llama.cpp, to checkpoint folders of transformers."""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tensorbench.backbones.backbone import LARGEST, MOST_KEYS
from tensorbench.backbones.huggingface import quiet
from tensorbench.methods.errors import UserError, first_few

#: The largest number of values read from a file's header: eight per token for a million tokens.
MOST_VALUES = 1 << 23


def convert_gguf(source: Path, target: Path, quantisation: str | None = None) -> None:
    """Writes the tokenizer and the model of a GGUF file to a folder. Weights are dequantised to float32.

    `quantisation` is the expected quantisation of most weights, such as "Q4_1". None accepts any. Raises
    UserError without the package gguf, for a file that is invalid or lacks weights, and for a quantisation
    that gguf cannot undo or that differs from `quantisation`.
    """
    if find_spec("gguf") is None:
        raise UserError(f"{source.name} is read by the package gguf: pip install 'tensorpeft-bench[gguf]'")
    actual = _quantisation(source)
    if quantisation not in (None, actual):
        raise UserError(f"{source}: its weights are {actual}, the backbone is named after {quantisation}")
    import torch
    from gguf.quants import dequantize
    from safetensors.torch import save_file
    from transformers import AutoModel, AutoTokenizer

    where: dict[str, Any] = {"gguf_file": source.name, "local_files_only": True, "trust_remote_code": False}
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            model, report = AutoModel.from_pretrained(
                source.parent, dtype=torch.float32, output_loading_info=True, use_kernels=False, **where
            )
            tokenizer = AutoTokenizer.from_pretrained(source.parent, **where)
    except Exception as error:  # transformers may raise anything for an invalid file
        raise UserError(f"{source} does not load: {type(error).__name__}: {error}") from error
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"{source} lacks weights, which would stay random: {first_few(missing, MOST_KEYS)}")
    # transformers would refuse to save it as a quantised model, but it is dequantised.
    del model.config.quantization_config
    model.config.save_pretrained(target)
    tokenizer.save_pretrained(target)
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items()}
    # The output layer (vocabulary, hidden) is missing if it is tied to the embeddings.
    for tensor in _tensors(source):
        if tensor.name == "output.weight":
            weights["lm_head.weight"] = torch.tensor(dequantize(tensor.data, tensor.tensor_type))
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})


def _quantisation(source: Path) -> str:
    """Returns the name of the quantisation that most weights have, such as "Q4_1".

    Raises UserError for an invalid file, for a file without weights, and for a quantisation that gguf cannot
    undo.
    """
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    weights: Counter[str] = Counter()
    try:
        tensors = _tensors(source)
    except (ValueError, OSError, KeyError, IndexError, OverflowError) as error:
        raise UserError(f"{source} is not a GGUF file with a known quantisation: {error}") from error
    plain = (GGMLQuantizationType.F32, GGMLQuantizationType.F16)
    for tensor in tensors:
        kind = tensor.tensor_type
        try:
            if kind not in plain and not weights[kind.name]:
                dequantize(tensor.data[:1], kind)
        except NotImplementedError as error:
            raise UserError(
                f"{source}: {tensor.name} is quantised as {kind.name}, which the package gguf cannot undo"
            ) from error
        weights[kind.name] += tensor.n_elements
    if not weights:
        raise UserError(f"{source} contains no weights")
    return weights.most_common(1)[0][0]


def _tensors(source: Path) -> list[Any]:
    """Reads the tensors of a file.

    Raises ValueError for a header that reaches beyond the end of the file, has more than `MOST_VALUES`
    values, or gives an implausible number of layers.
    """
    import numpy as np
    from gguf import GGUFReader

    class Bounded(GGUFReader):
        values = 0

        def _get(self, offset: int, dtype: Any, count: int = 1, *args: Any, **options: Any) -> Any:
            self.values += 1
            if offset + np.dtype(dtype).itemsize * int(count) > len(self.data):
                raise ValueError(f"its header asks for {count:,} values at byte {offset:,}, beyond its end")
            if self.values > MOST_VALUES:
                raise ValueError(f"its header holds more than {MOST_VALUES:,} values")
            return super()._get(offset, dtype, count, *args, **options)

    reader = Bounded(source)
    for name, field in reader.fields.items():
        if name.endswith(".block_count") and not 1 <= (layers := field.contents()) <= LARGEST["depth"]:
            raise ValueError(f"{name} should be from 1 to {LARGEST['depth']:,}, got {layers:,}")
    return reader.tensors
