"""The Python by which an export defines `logits(**batch)` with a model of transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from bench.backbones import pooling
from bench.backbones.generation import Writer
from bench.backbones.verbalizer import Answers

#: Lines of Python; None is an empty one.
Lines = list[str | None]

_TEXTS = 'texts = {"input_ids": input_ids, "attention_mask": attention_mask'
_SEGMENTS = f'{_TEXTS}, "token_type_ids": token_type_ids}}'
#: Decoders count positions from the first token that is not padding.
_PLACED = (
    "positions = (attention_mask.cumsum(1) - 1).clamp(min=0)",
    f'{_TEXTS}, "position_ids": positions}}',
)
_MEAN = (
    "states = model(**texts).last_hidden_state",
    "mask = attention_mask.unsqueeze(-1).to(states.dtype)",
    "features = (states * mask).sum(1) / mask.sum(1).clamp(min=1)",
)

#: The texts that a model gets, by how its kind pools them. Other kinds know no segments.
TEXTS: dict[Callable[..., Tensor], Sequence[str]] = {
    pooling.mean_of_tokens: (_SEGMENTS,),
    pooling.first_token: (_SEGMENTS,),
    pooling.first_token_as_masked: (_SEGMENTS,),
    pooling.last_token: _PLACED,
}

#: What the head beside a model reads, by pooling.
FEATURES: dict[Callable[..., Tensor], Sequence[str]] = {
    pooling.mean_of_tokens: _MEAN,
    pooling.mean_of_windows: _MEAN,
    pooling.last_token: (
        "states = model(**texts).last_hidden_state",
        "last = (attention_mask * torch.arange(input_ids.shape[1])).argmax(1)",
        "features = states[torch.arange(len(states)), last]",
    ),
    pooling.class_token: ("features = model(**images).last_hidden_state[:, 0]",),
    pooling.normed_class_token: ("features = model(**images).pooler_output",),
    pooling.pooled_by_attention: ("features = model(**images).pooler_output",),
}

_HEADED = 'return torch.nn.functional.linear(features, head["weight"], head["bias"])'


def of_texts(pool: Callable[..., Tensor], beside: bool) -> Lines:
    """`beside`: the head is not in the model, but in `head`."""
    texts = TEXTS.get(pool, (f"{_TEXTS}}}",))
    return _function(
        "logits(input_ids, attention_mask, token_type_ids=None)", [*texts, *_answer(pool, beside, "texts")]
    )


def of_images(pool: Callable[..., Tensor], beside: bool, *, resizing: bool) -> Lines:
    """`resizing`: the model is to resize its position embeddings, and does so when asked only."""
    asked = ', "interpolate_pos_encoding": True' if resizing else ""
    images = f'images = {{"pixel_values": pixel_values{asked}}}'
    return _function("logits(pixel_values)", [images, *_answer(pool, beside, "images")])


def _answer(pool: Callable[..., Tensor], beside: bool, batch: str) -> list[str]:
    return [*FEATURES[pool], _HEADED] if beside else [f"return model(**{batch}).logits"]


def of_words(answers: Answers) -> Lines:
    """Of a verbalizer."""
    return _lines(_OF_WORDS.replace("TOKENS", str([list(word) for word in answers.words])))


_OF_WORDS = '''
WORDS = TOKENS  # the tokens of each class's words


@torch.no_grad()
def logits(input_ids, attention_mask, token_type_ids=None):
    """How likely each class's words are behind prompts, which are padded on the right."""
    scores = []
    for word in WORDS:
        ids = torch.nn.functional.pad(input_ids, (0, len(word)))
        mask = torch.nn.functional.pad(attention_mask, (0, len(word)))
        places = attention_mask.sum(1, keepdim=True) + torch.arange(len(word))
        tokens = torch.tensor(word).expand(len(ids), -1)
        ids, mask = ids.scatter(1, places, tokens), mask.scatter(1, places, 1)
        told = model(input_ids=ids, attention_mask=mask).logits.float().log_softmax(-1)
        told = told[torch.arange(len(ids))[:, None], places - 1, tokens]
        scores.append(told.sum(1))
    return torch.stack(scores, 1)
'''


def of_writing(writer: Writer) -> Lines:
    """Of a language model that writes its answers."""
    values = {"MOST": writer.new_tokens, "END": writer.tokenizer.eos_token_id}
    code = _OF_WRITING
    for name, value in values.items():
        code = code.replace(name, repr(value))
    return _lines(code)


_OF_WRITING = '''
@torch.no_grad()
def logits(input_ids, attention_mask, scored):
    """The log-likelihood (batch, 1) of the tokens that are `scored`, such as an answer's."""
    positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
    texts = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": positions}
    told = model(**texts).logits[:, :-1].float().log_softmax(-1)
    told = told.gather(2, input_ids[:, 1:, None])[:, :, 0]
    return (told * scored[:, 1:]).sum(1, keepdim=True)


@torch.no_grad()
def write(input_ids, attention_mask):
    """The tokens that the model writes behind prompts, which are padded on the left."""
    prompts = {"input_ids": input_ids, "attention_mask": attention_mask}
    ends = {"eos_token_id": END, "pad_token_id": END}
    # The likeliest token each time, whatever the checkpoint's generation_config asks for.
    greedy = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
    told = model.generate(**prompts, **greedy, max_new_tokens=MOST, **ends)
    return told[:, input_ids.shape[1] :]
'''


def _lines(code: str) -> Lines:
    return [line or None for line in code.strip().splitlines()]


def _function(signature: str, body: Sequence[str]) -> Lines:
    return ["@torch.no_grad()", f"def {signature}:", *(f"    {line}" for line in body)]
