"""Measures forgetting: the rise of a language model's loss on text that no task trains on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from tensorbench.backbones import LoadedBackbone
from tensorbench.backbones.answers import token_logits, unembedding_of
from tensorbench.backbones.pooling import decoded
from tensorbench.plan.recipe import Recipe
from tensorbench.training.loop import autocast

#: The largest number of tokens in a batch of several documents, including padding. It is small, since each
#: token has logits over the whole vocabulary.
TOKENS_AT_ONCE = 1024


def text_loss(backbone: LoadedBackbone, text: Sequence[Tensor], recipe: Recipe) -> tuple[float, int]:
    """Returns the mean loss over all tokens except the first of each document, and their number.

    `text` has the token ids (tokens,) of each document. The backbone is left in evaluation mode. If it has an
    adapter, call this inside `Adapter.hold`, so that the adapter contracts its factors only once.
    """
    encoder, table = backbone.module.encoder, unembedding_of(backbone)
    device = next(encoder.parameters()).device
    backbone.module.eval()
    total = torch.zeros((), dtype=torch.float64)
    count = 0
    with torch.inference_mode(), autocast(recipe, device):
        for documents in _batches(text):
            ids = pad_sequence(list(documents), batch_first=True).to(device)
            lengths = torch.tensor([len(document) for document in documents], device=device)
            mask = (torch.arange(ids.shape[1], device=device) < lengths[:, None]).long()
            predicted = mask[:, 1:].bool()
            states = decoded(encoder, ids, mask)[:, :-1][predicted]
            logits = token_logits(encoder, states, table)
            total += F.cross_entropy(logits, ids[:, 1:][predicted], reduction="sum").double().cpu()
            count += int(predicted.sum())
    return float(total) / count, count


def _batches(text: Sequence[Tensor]) -> Iterator[Sequence[Tensor]]:
    size = max(1, TOKENS_AT_ONCE // max(map(len, text)))
    for start in range(0, len(text), size):
        yield text[start : start + size]
