"""Tests decoders that answer a prompt in words: their scores equal those computed with transformers."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from torch import Tensor

from tensorbench.backbones import BackboneSpec, load
from tensorbench.backbones.answers import put_head, token_logits, unembedding_of
from tensorbench.backbones.inputs import Prompt, TextInput
from tensorbench.backbones.random_weights import byte_tokenizer
from tensorbench.checks.conformance.subject import tiny
from tensorbench.execution.perform import prepare_all
from tensorbench.methods import UserError, create
from tensorbench.records.measures import Measure
from tensorbench.records.record import Progress
from tensorbench.tasks import TASKS, prepare
from tensorbench.tasks.tokens import prompted
from tensorbench.training.trial import Resources, run_trial

from ...messages import naming
from ..local_checkpoints import edit, language_model, text_input_of
from ..toy_suites import TEXT, plan

ANSWERS = {"prompt": "{text} :", "words": [" no", " yes"]}


def likelihoods(model: Any, prompts: list[list[int]], words: list[tuple[int, ...]]) -> Tensor:
    """Computes the log-likelihood (prompts, words) of each word after each prompt, one text at a time."""
    rows = []
    for prompt in prompts:
        log_likelihoods = []
        for word in words:
            logits = model(torch.tensor([[*prompt, *word]])).logits[0].log_softmax(-1)
            log_likelihoods.append(sum(logits[len(prompt) - 1 + i, token] for i, token in enumerate(word)))
        rows.append(torch.stack(log_likelihoods))
    return torch.stack(rows)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt_neox"])
def test_scores_are_the_likelihoods_of_the_words(kind: str, tied: bool, tmp_path: Path) -> None:
    model, tokenizer = language_model(kind, tmp_path, tie_word_embeddings=tied), byte_tokenizer(16)
    backbone = load(BackboneSpec(local=tmp_path))
    # The first word is one token; the others have two tokens and share the first.
    prompt = Prompt("{text}:", ("a", "bc", "bd"))
    text_input = text_input_of(tmp_path)
    prompts, cut = prompted(tokenizer, prompt, 16, ["one", "another"])
    assert not any(cut)
    put_head(backbone, TextInput("", 16, text_input.load_tokenizer, prompt=prompt), 3, torch.Generator())
    width = max(map(len, prompts))
    batch = {
        "input_ids": torch.tensor([row + [1] * (width - len(row)) for row in prompts]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in prompts]),
    }
    with torch.no_grad():
        expected = likelihoods(model, prompts, prompt.word_tokens(tokenizer))
        torch.testing.assert_close(backbone.module(**batch), expected, rtol=1e-5, atol=1e-5)
    assert not list(backbone.head.parameters())
    backbone.reset(3, torch.Generator())
    assert backbone.module(**batch).shape == (2, 3)
    assert list(backbone.head.parameters())


def test_an_output_layer_counts_that_is_not_tied_though_its_configuration_says_so(tmp_path: Path) -> None:
    config = language_model("llama", tmp_path).config
    assert config.tie_word_embeddings
    own = torch.randn(config.vocab_size, config.hidden_size)
    edit(tmp_path, add={"lm_head.weight": own})
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(model.lm_head.weight, own)
    backbone, ids = load(BackboneSpec(local=tmp_path)), torch.tensor([[5, 6, 7]])
    encoder: Any = backbone.module.encoder
    with torch.no_grad():
        actual = token_logits(encoder, encoder(ids).last_hidden_state, unembedding_of(backbone))
        torch.testing.assert_close(actual, model(ids).logits)
    # Shards of an earlier model are ignored although their names sort first.
    shutil.copy(tmp_path / "model.safetensors", tmp_path / "model-00001-of-00002.safetensors")
    edit(tmp_path, add={"lm_head.weight": model.get_input_embeddings().weight.detach()})
    assert unembedding_of(load(BackboneSpec(local=tmp_path))) is None


def test_head_only_is_the_zero_shot_score_and_adapters_train() -> None:
    task = {**TEXT["tasks"][0], "verbalizer": ANSWERS}
    base = {**TEXT, "backbones": ["tiny-random-llama"], "tasks": [task]}
    training = {"batch_size": 16, "steps": 4, "lr": 1e-2}
    made = plan(base, methods=["head_only", "lora"], training=training)
    resources = Resources("cpu")
    events: list[Progress] = []
    with pytest.warns(UserWarning, match=naming(32, "cut from the left")):
        bare, adapted = (run_trial(trial, resources, events.append) for trial in made.trials)
    # A trial without steps reports no progress, so the terminal has no fraction to show.
    assert all(progress.steps == 4 for progress in events)
    counts = [Measure.ADAPTER_PARAMETERS, Measure.HEAD_PARAMETERS]
    assert (bare.trained.steps, *(bare.measures[count] for count in counts)) == (0, 0, 0)
    assert (adapted.trained.steps, adapted.measures[Measure.HEAD_PARAMETERS]) == (4, 0)
    assert bare.head == adapted.head == {}
    assert not torch.equal(bare.final.logits, adapted.final.logits)
    backbone = resources.backbone(made.trials[0])
    put_head(backbone, made.trials[0].task.input(backbone.info.input), 2, torch.Generator())
    create("head_only").attach(backbone, torch.Generator())
    split = resources.data(made.trials[0], backbone.info.input).test
    with torch.no_grad():
        logits = backbone.module(**split.batch(torch.arange(5)))
    torch.testing.assert_close(bare.final.logits[:5], logits)


def test_a_head_that_is_not_there_is_not_searched() -> None:
    task = {**TEXT["tasks"][0], "verbalizer": ANSWERS}
    base = {**TEXT, "backbones": ["tiny-random-llama"], "tasks": [task], "floor": "none"}
    made = plan({**base, "methods": ["head_only", {"method": "lora", "rank": 2}]})
    grids = {"lr": (1e-3, 1e-2), "head_lr": (1e-3, 1e-2)}
    assert [set(cell.tunable(grids)) for cell in made.cells] == [set(), {"lr"}]


def test_a_long_prompt_is_cut_from_the_left_behind_its_beginning() -> None:
    tokenizer = byte_tokenizer(64)
    (long, short), cut = prompted(tokenizer, Prompt("{text}?", ("no", "yes")), 12, ["abcdefghijkl", "a"])
    assert cut == [True, False]
    assert tokenizer.decode(long) == "<s>fghijkl?"
    assert len(long) + len("yes") == 12
    assert tokenizer.decode(short) == "<s>a?"
    # Six tokens: the begin token, one of the text, the question mark and three of the longest answer.
    assert prompted(tokenizer, Prompt("{text}?", ("no", "yes")), 6, ["ab"])[1] == [True]
    for prompt, text in (("{text}?", "a"), ("{first}, {second}?", ("a", "b"))):
        with pytest.raises(UserError, match=naming("max_tokens", 6, 5)):
            prompted(tokenizer, Prompt(prompt, ("no", "yes")), 5, [text])


def test_pairs_are_put_in_as_they_are() -> None:
    assert (
        Prompt("{first} or {second}?", ("a", "b")).filled(("{second}", "x{first}")) == "{second} or x{first}?"
    )
    assert Prompt("{second}, {first}", ("a", "b")).filled(("1", "2")) == "2, 1"
    assert Prompt("{text}.", ("a", "b")).filled("{text}") == "{text}."


@pytest.mark.parametrize(
    ("verbalizer", "backbone", "message"),
    [
        (ANSWERS, "tiny-random-bert", "verbalizer.*a decoder"),
        (ANSWERS | {"words": ["a", "b", "c"]}, "tiny-random-llama", "words has 3"),
        (ANSWERS | {"prompt": "why?"}, "tiny-random-llama", r"prompt: should have \{text\} in it"),
        (
            ANSWERS | {"prompt": "{first} or {second}?"},
            "tiny-random-llama",
            r"verbalizer.prompt should have \{text\} in it, .* single texts, got '\{first\} or",
        ),
        (ANSWERS | {"prompt": "{text} or {first}?"}, "tiny-random-llama", r"should have \{text\} in it"),
        (ANSWERS | {"words": [" ", "b"]}, "tiny-random-llama", "words, not only"),
        (ANSWERS | {"words": ["b", "b"]}, "tiny-random-llama", r"words: b\b"),
    ],
)
def test_bad_verbalizers_are_refused_before_any_work(
    verbalizer: dict[str, Any], backbone: str, message: str
) -> None:
    task = {**TEXT["tasks"][0], "verbalizer": verbalizer}
    with pytest.raises(UserError, match=message):
        plan({**TEXT, "backbones": [backbone], "tasks": [task]})


def test_a_prompt_without_places_for_pairs_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("one,other,same\n" + "".join(f"w{i},v{i},{i % 2}\n" for i in range(40)))
    data = {"name": "mine", "csv": str(tmp_path / "p.csv"), "text": ["one", "other"], "label": "same"}
    suite = {**TEXT, "backbones": ["tiny-random-llama"]}
    with pytest.raises(UserError, match=naming("'mine'", "verbalizer.prompt", "{first}", "{second}")):
        plan({**suite, "tasks": [{**data, "verbalizer": ANSWERS}]})
    twice = ANSWERS | {"prompt": "{first} and {second}; is {first} right?"}
    with pytest.raises(UserError, match=naming("'mine'", "verbalizer.prompt", "{first}", "only once")):
        plan({**suite, "tasks": [{**data, "verbalizer": twice}]})
    for task in ("mrpc", "rte"):
        assert TASKS.get(task).paired
    fitting = Prompt("{first} or {second}?", ("a", "b"))
    with pytest.raises(UserError, match=naming("{text}")):
        prompted(byte_tokenizer(64), fitting, 32, ["of a task that does not say what its texts are"])


def test_words_of_unknown_tokens_are_refused() -> None:
    class Deaf:
        """A tokenizer that knows 'a', reads '?' as unknown, and drops every other letter."""

        unk_token_id = 3

        def __call__(self, word: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [7 if letter == "a" else 3 for letter in word if letter in "a?"]}

    for word in ("b", "why?"):
        with pytest.raises(UserError, match=re.escape(f"the words '{word}' have no tokens")):
            Prompt("{text}", ("a", word)).word_tokens(Deaf())
    with pytest.raises(UserError, match=naming("'ab'", "'a'")):
        Prompt("{text}", ("a", "ab")).word_tokens(Deaf())


def test_words_have_the_tokens_that_follow_the_prompt() -> None:
    tokenizer = byte_tokenizer(64).backend_tokenizer
    apart = [tokenizer.encode(text, add_special_tokens=False).ids for text in (" no", "no")]
    assert [*map(list, Prompt("{text}:", (" no", "no")).word_tokens(byte_tokenizer(64)))] == apart
    # Mistral's tokenizer begins every text with its own space, which a word after a prompt must not get.
    spaced = byte_tokenizer(64)
    spaced.backend_tokenizer.normalizer = tokenizers.normalizers.Prepend(" ")
    for template in ("{text}:", "{text}"):
        tokens = Prompt(template, (" no", "no")).word_tokens(spaced)
        assert [*map(list, tokens)] == apart


def test_backbones_that_cannot_answer_are_refused_before_any_trial(tmp_path: Path) -> None:
    config = tiny("llama")._config()
    config.tie_word_embeddings = False
    transformers.LlamaModel(config).save_pretrained(tmp_path)
    byte_tokenizer(16).save_pretrained(tmp_path)
    task = {**TEXT["tasks"][0], "verbalizer": ANSWERS, "max_tokens": 16}
    made = plan({**TEXT, "backbones": [{"local": str(tmp_path)}], "tasks": [task]})
    with pytest.raises(UserError, match="lm_head"):
        prepare_all(made.trials, Resources("cpu"))


def test_a_tokenizer_that_fails_is_named(tmp_path: Path) -> None:
    transformers.LlamaModel(tiny("llama")._config()).save_pretrained(tmp_path)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0, "film": 1}))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<s>").save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"the tokenizer in {tmp_path} fails: .*UNK"):
        prepare(TASKS.get("movie-sentiment"), text_input_of(tmp_path), 16)
