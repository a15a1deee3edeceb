"""A language model's answers in the place of a head: the log-likelihood of each class's words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.backbones.base import LoadedBackbone
from bench.backbones.generation import Writer
from bench.backbones.pooling import decoded
from bench.backbones.vocabulary import has_vocabulary, token_logits, unembedding_of
from bench.inputs import ModelInput, TextInput
from methods.errors import UserError


class Answers:
    """Takes the place of pooling and head: scores (batch, classes).

    `words` are the token ids of each class's words. `unembedding` (vocabulary, hidden) turns states to logits
    of tokens; None: the encoder's input embeddings do. The score of a class is the sum over its tokens of
    log p(token | prompt and the tokens before). Classes whose words begin alike share a forward.
    """

    def __init__(self, words: Sequence[Sequence[int]], unembedding: Tensor | None) -> None:
        self.words, self.unembedding = [tuple(one) for one in words], unembedding

    def __call__(
        self,
        encoder: Any,
        *,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        lengths = attention_mask.sum(1, keepdim=True)
        states: dict[tuple[int, ...], Tensor] = {}
        for begun in dict.fromkeys(word[:-1] for word in self.words):
            states[begun] = _after(encoder, input_ids, attention_mask, lengths, begun)
        scores = [
            self._likelihoods(encoder, states[word[:-1]])[:, range(len(word)), word].sum(1)
            for word in self.words
        ]
        return torch.stack(scores, 1)

    def _likelihoods(self, encoder: Any, states: Tensor) -> Tensor:
        """log p of every token, (batch, places, vocabulary), from states (batch, places, hidden)."""
        return F.log_softmax(token_logits(encoder, states, self.unembedding), -1)


def _after(encoder: nn.Module, ids: Tensor, mask: Tensor, lengths: Tensor, begun: tuple[int, ...]) -> Tensor:
    """The states (batch, 1 + n, hidden) of the last token of each prompt, and of n tokens put after it.

    Prompts are padded on the right.
    """
    places = torch.arange(len(begun) + 1, device=ids.device)
    if begun:
        ids, mask = F.pad(ids, (0, len(begun))), F.pad(mask, (0, len(begun)))
        behind = lengths + places[:-1]
        tokens = torch.tensor(begun, device=ids.device).expand(len(ids), -1)
        ids, mask = ids.scatter(1, behind, tokens), mask.scatter(1, behind, 1)
    states = decoded(encoder, ids, mask)
    wanted = (lengths - 1 + places).unsqueeze(-1).expand(-1, -1, states.shape[-1])
    return states.gather(1, wanted)


def check_answers(backbone: LoadedBackbone, wanted: ModelInput) -> None:
    """Raises UserError where a model that is to answer by words lacks what turns its states to tokens."""
    if isinstance(wanted, TextInput) and wanted.answers_by_words and not has_vocabulary(backbone):
        raise UserError(
            f"backbone '{backbone.info.name}' cannot answer a prompt: its checkpoint has no lm_head, and its "
            "embeddings are not tied"
        )


def put_head(
    backbone: LoadedBackbone,
    wanted: ModelInput,
    classes: int,
    generator: torch.Generator,
    *,
    fitted: bool = False,
) -> None:
    """A fresh head for a task whose examples are `wanted` so; a prompt none, but the answers' words, or what
    writes answers. `fitted` as in `LoadedBackbone.reset`.

    Raises UserError for words without tokens, and for a checkpoint without what turns states to tokens.
    """
    backbone.reset(classes, generator, fitted=fitted)
    if not isinstance(wanted, TextInput) or not wanted.answers_by_words:
        return
    check_answers(backbone, wanted)
    module = backbone.module
    table = unembedding_of(backbone)
    with wanted.blaming():
        tokenizer = wanted.load_tokenizer()
        if wanted.prompt is not None:
            module.answers = Answers(wanted.prompt.word_tokens(tokenizer), table)
        elif wanted.writing is not None:
            module.answers = Writer(tokenizer, table, wanted.writing.new_tokens, wanted.max_tokens)
    module.head = nn.Identity()
