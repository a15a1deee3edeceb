"""A language model that writes its answers, in the place of a head."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.backbones.pooling import decoded
from bench.backbones.vocabulary import token_logits


class Writer:
    """Takes the place of pooling and head: outputs (batch, 3), of which the first is for the one who judges.

    The second is the log-likelihood of the tokens to be predicted, the third is how many they are. `limit` is
    how many tokens the model reads, `new_tokens` how many an answer may have.
    """

    def __init__(self, tokenizer: Any, unembedding: Tensor | None, new_tokens: int, limit: int) -> None:
        self.tokenizer, self.unembedding = tokenizer, unembedding
        self.new_tokens, self.limit = new_tokens, limit

    def __call__(self, encoder: Any, *, input_ids: Tensor, attention_mask: Tensor, scored: Tensor) -> Tensor:
        """All (batch, tokens); `scored` says which tokens are to be predicted, never the first."""
        states = decoded(encoder, input_ids, attention_mask)[:, :-1]
        wanted, following = scored[:, 1:].bool(), input_ids[:, 1:]
        logits = token_logits(encoder, states[wanted], self.unembedding)
        losses = F.cross_entropy(logits, following[wanted], reduction="none")
        likelihood = losses.new_zeros(wanted.shape).masked_scatter(wanted, -losses).sum(1)
        return torch.stack([torch.zeros_like(likelihood), likelihood, wanted.sum(1).to(likelihood)], 1)

    # Every token makes keys and values longer, for each of which a compiled encoder would be compiled again.
    @torch.compiler.set_stance("force_eager")
    def write(self, encoder: Any, input_ids: Tensor, attention_mask: Tensor) -> list[str]:
        """What the model writes behind each prompt: always the likeliest token, up to that which ends a text.

        Prompts (batch, tokens) are padded on the left. What one of them gets does not depend on the others.
        """
        from transformers import DynamicCache

        tokenizer, cache = self.tokenizer, DynamicCache(config=encoder.config)
        # Before its version 5.24 transformers had the longer name.
        takes = inspect.signature(encoder.forward).parameters
        remembered = {"cache" if "cache" in takes else "past_key_values": cache}
        lengths = attention_mask.sum(1)
        room = (self.limit - lengths).clamp(max=self.new_tokens)
        positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
        ids, mask, told = input_ids, attention_mask, list[Tensor]()
        for count in range(int(room.max())):
            states = encoder(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                use_cache=True,
                **remembered,
            ).last_hidden_state[:, -1]
            token = token_logits(encoder, states, self.unembedding).argmax(-1)
            ended = told[-1] == tokenizer.eos_token_id if told else torch.zeros_like(token, dtype=torch.bool)
            told.append(token.masked_fill(ended | (count >= room), tokenizer.eos_token_id))
            if bool((told[-1] == tokenizer.eos_token_id).all()):
                break
            ids = told[-1][:, None]
            mask = F.pad(mask, (0, 1), value=1)
            # A row that is full waits for the others at its last position, for the model may have no more.
            positions = (positions[:, -1:] + 1).clamp(max=self.limit - 1)
        rows = torch.stack(told, 1).tolist() if told else [[] for _ in range(len(input_ids))]
        return [
            tokenizer.decode(_before(row, tokenizer.eos_token_id), skip_special_tokens=True) for row in rows
        ]


def _before(row: list[int], end: int) -> list[int]:
    return row[: row.index(end)] if end in row else row
