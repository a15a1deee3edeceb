"""Answers of language models without a head: texts that they write, or scores of each class's words."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tensorbench.backbones.backbone import LoadedBackbone
from tensorbench.backbones.inputs import ModelInput, TextInput
from tensorbench.backbones.padding import ANY_SIDE, padded
from tensorbench.backbones.pooling import decoded
from tensorbench.machine.cards import send
from tensorbench.methods.errors import UserError


def has_vocabulary(backbone: LoadedBackbone) -> bool:
    """Whether the backbone can compute logits of tokens from its hidden states."""
    if not getattr(backbone.info.input, "decodes", False):
        return False
    return _tied(backbone) or backbone.unembedding is not None


def unembedding_of(backbone: LoadedBackbone) -> Tensor | None:
    """Returns the weight (vocabulary, hidden) of the output layer, on the encoder's device.

    None if the output layer is tied to the input embeddings, or if the backbone has no output layer.
    """
    if _tied(backbone) or backbone.unembedding is None:
        return None
    return backbone.unembedding.to(next(backbone.module.encoder.parameters()).device)


def token_logits(encoder: Any, states: Tensor, unembedding: Tensor | None) -> Tensor:
    """Computes logits (..., vocabulary) in float32 from a language model's hidden states (..., hidden).

    `unembedding` is the weight (vocabulary, hidden) of the output layer. If it is None, the encoder's input
    embeddings are used.
    """
    table = encoder.get_input_embeddings().weight if unembedding is None else unembedding
    logits = F.linear(states, table.to(states.dtype)).float()
    cap = getattr(encoder.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _tied(backbone: LoadedBackbone) -> bool:
    config: Any = backbone.module.encoder.config
    return bool(config.tie_word_embeddings)


class Writer:
    """Replaces pooling and head of a language model that writes its answers. Outputs are (batch, 3).

    The first output is 0; evaluation sets it to 1 if the written answer is correct. The second is the
    log-likelihood of the tokens to predict, and the third is the number of these tokens. `limit` is the
    largest number of tokens that the model can read, and `new_tokens` the largest number that it may write.
    """

    def __init__(self, tokenizer: Any, unembedding: Tensor | None, new_tokens: int, limit: int) -> None:
        self.tokenizer, self.unembedding = tokenizer, unembedding
        self.new_tokens, self.limit = new_tokens, limit

    def __call__(self, encoder: Any, *, input_ids: Tensor, attention_mask: Tensor, scored: Tensor) -> Tensor:
        """Computes the outputs (batch, 3). All inputs are (batch, tokens).

        `scored` is nonzero for the tokens to predict. The first token of a text is never one of them. If
        `scored` is on the CPU, selecting these tokens does not wait for an accelerator.
        """
        states = decoded(encoder, input_ids, attention_mask)
        predicted = scored[:, 1:].bool().cpu()
        rows, places = (send(index, states.device) for index in predicted.nonzero().unbind(1))
        logits = token_logits(encoder, states[rows, places], self.unembedding)
        losses = F.cross_entropy(logits, input_ids[rows, places + 1], reduction="none")
        likelihood = losses.new_zeros(predicted.shape).index_put((rows, places), -losses).sum(1)
        counts = send(predicted.sum(1), states.device).to(likelihood)
        return torch.stack([torch.zeros_like(likelihood), likelihood, counts], 1)

    def write(self, encoder: Any, input_ids: Tensor, attention_mask: Tensor) -> list[str]:
        """Greedily continues prompts (batch, tokens) that are padded on the left. Returns only the new texts.

        A text stops before the tokenizer's end token, after `new_tokens` tokens, or when prompt and answer
        together have `limit` tokens. Other prompts of the batch do not affect it.
        """
        from transformers import DynamicCache

        tokenizer, cache = self.tokenizer, DynamicCache(config=encoder.config)
        # transformers before 5.24 uses the longer name.
        takes = inspect.signature(encoder.forward).parameters
        remembered = {"cache" if "cache" in takes else "past_key_values": cache}
        room = (self.limit - attention_mask.sum(1)).clamp(max=self.new_tokens)
        positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
        ids, mask, written = input_ids, attention_mask, list[Tensor]()
        # Without this, a compiled encoder is compiled again for each length of keys and values. A decorator
        # would import torch's compiler together with this module, which takes a second.
        with torch.compiler.set_stance("force_eager"), padded(encoder, ANY_SIDE):
            for count in range(int(room.max())):
                states = encoder(
                    input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, **remembered
                ).last_hidden_state[:, -1]
                token = token_logits(encoder, states, self.unembedding).argmax(-1)
                ended = (
                    written[-1] == tokenizer.eos_token_id
                    if written
                    else torch.zeros_like(token, dtype=torch.bool)
                )
                written.append(token.masked_fill(ended | (count >= room), tokenizer.eos_token_id))
                if bool((written[-1] == tokenizer.eos_token_id).all()):
                    break
                ids = written[-1][:, None]
                mask = F.pad(mask, (0, 1), value=1)
                # A full row stays at the last position until the other rows are done, as the model may have
                # no further position.
                positions = (positions[:, -1:] + 1).clamp(max=self.limit - 1)
        rows = torch.stack(written, 1).tolist() if written else [[] for _ in range(len(input_ids))]
        return [text_of(tokenizer, row) for row in rows]


def text_of(tokenizer: Any, tokens: Sequence[int]) -> str:
    """Decodes the tokens before the first that ends a text, without special tokens."""
    answer = list(takewhile(lambda token: token != tokenizer.eos_token_id, tokens))
    text: str = tokenizer.decode(answer, skip_special_tokens=True)
    return text


class Answers:
    """Replaces pooling and head of a language model that answers a prompt with the words of a class.

    Outputs (batch, classes) are the log-likelihoods of each class's words after the prompt: the sum over the
    words' tokens of log p(token | prompt and previous tokens). `words` are the token ids of each class's
    words, and `unembedding` is as in `token_logits`. Classes whose words share all tokens but the last share
    a forward pass.
    """

    def __init__(self, words: Sequence[Sequence[int]], unembedding: Tensor | None) -> None:
        self.words, self.unembedding = [tuple(tokens) for tokens in words], unembedding

    def __call__(
        self, encoder: Any, *, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        lengths = attention_mask.sum(1, keepdim=True)
        states: dict[tuple[int, ...], Tensor] = {}
        for begun in dict.fromkeys(word[:-1] for word in self.words):
            states[begun] = _after(encoder, input_ids, attention_mask, lengths, begun)
        scores = []
        for word in self.words:
            tokens = send(torch.tensor(word), input_ids.device)
            places = torch.arange(len(word), device=input_ids.device)
            logits = token_logits(encoder, states[word[:-1]], self.unembedding)
            scores.append(F.log_softmax(logits, -1)[:, places, tokens].sum(1))
        return torch.stack(scores, 1)


def _after(encoder: nn.Module, ids: Tensor, mask: Tensor, lengths: Tensor, begun: tuple[int, ...]) -> Tensor:
    """Returns hidden states (batch, 1 + n, hidden) after appending the n tokens of `begun` to each prompt.

    The first state is that of the prompt's last token. The others are those of the appended tokens. Prompts
    (batch, tokens) are padded on the right, and `lengths` (batch, 1) are their numbers of tokens.
    """
    places = torch.arange(len(begun) + 1, device=ids.device)
    if begun:
        ids, mask = F.pad(ids, (0, len(begun))), F.pad(mask, (0, len(begun)))
        behind = lengths + places[:-1]
        tokens = send(torch.tensor(begun), ids.device).expand(len(ids), -1)
        ids, mask = ids.scatter(1, behind, tokens), mask.scatter(1, behind, 1)
    states = decoded(encoder, ids, mask)
    positions = (lengths - 1 + places).unsqueeze(-1).expand(-1, -1, states.shape[-1])
    return states.gather(1, positions)


def check_answers(backbone: LoadedBackbone, model_input: ModelInput) -> None:
    """Raises UserError if the model should answer in words but cannot compute logits of tokens."""
    if isinstance(model_input, TextInput) and model_input.answers_by_words and not has_vocabulary(backbone):
        raise UserError(
            f"backbone '{backbone.info.name}' cannot answer a prompt: its checkpoint has no lm_head, and its "
            "embeddings are not tied"
        )


def put_head(
    backbone: LoadedBackbone,
    model_input: ModelInput,
    classes: int,
    generator: torch.Generator,
    *,
    fitted: bool = False,
) -> None:
    """Puts a fresh head on the backbone.

    A language model that answers in words gets no head: it gets `Answers` if `model_input` has a prompt, or
    else a `Writer`. `fitted` is as in `LoadedBackbone.reset`. Raises UserError as `check_answers` and
    `Prompt.word_tokens` do.
    """
    backbone.reset(classes, generator, fitted=fitted)
    if not isinstance(model_input, TextInput) or not model_input.answers_by_words:
        return
    check_answers(backbone, model_input)
    module = backbone.module
    table = unembedding_of(backbone)
    with model_input.blaming():
        tokenizer = model_input.load_tokenizer()
        if model_input.prompt is not None:
            module.answers = Answers(model_input.prompt.word_tokens(tokenizer), table)
        elif model_input.new_tokens is not None:
            module.answers = Writer(tokenizer, table, model_input.new_tokens, model_input.max_tokens)
    module.head = nn.Identity()
