"""Tests `wrap`: a user's loop, or transformers' Trainer, trains adapter and head of a wrapped model."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load as load_tensors
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import tensorbench
from tensorbench.backbones import load
from tensorbench.checks.conformance.subject import load_tiny, tiny
from tensorbench.methods import Adapter, Method, Site, UserError, create

from ...messages import naming
from ..local_checkpoints import KINDS, batch

CLASSIFIERS = {
    "bert": "BertForSequenceClassification",
    "roberta": "RobertaForSequenceClassification",
    "vit": "ViTForImageClassification",
    "dinov2": "Dinov2ForImageClassification",
}

TENSLORA = create("tenslora", variant="qkv_depth").isorank(3)
CP = create("tenslora", variant="att_qkv_depth", factorization="cp").isorank(3)
LORA = create("lora", rank=2)
DORA = create("peft", type="DORA", rank=2)
LABELS = torch.tensor([0, 2])


def classifier(kind: str) -> Any:
    _, config = KINDS[kind]
    model_class = getattr(transformers, CLASSIFIERS[kind])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return model_class(model_class.config_class(**config, num_labels=3)).eval()


def logits(model: Any, kind: str) -> Tensor:
    with torch.no_grad():
        return model.eval()(**batch(kind)).logits


def by_adamw(model: Any, kind: str, parameters: Iterable[nn.Parameter] | None = None) -> None:
    optimizer = torch.optim.AdamW(model.parameters() if parameters is None else parameters, lr=1e-2)
    model.train()
    for _ in range(3):
        model(**batch(kind), labels=LABELS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def by_trainer(model: Any, kind: str, folder: Path) -> None:
    inputs = batch(kind)
    examples = [
        {"labels": label, **{name: values[index] for name, values in inputs.items()}}
        for index, label in enumerate(LABELS)
    ]
    arguments = transformers.TrainingArguments(
        str(folder), max_steps=3, learning_rate=1e-2, report_to=[], save_steps=3, use_cpu=True
    )
    transformers.Trainer(model, arguments, train_dataset=examples).train()


def moved(adapter: Adapter, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in adapter.state().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_an_optimizer_of_all_parameters_trains_adapter_and_head(kind: str) -> None:
    model = classifier(kind)
    bare, encoder = logits(model, kind), {n: p.clone() for n, p in model.base_model.named_parameters()}
    adapter = tensorbench.wrap(model, TENSLORA)
    torch.testing.assert_close(logits(model, kind), bare)
    head = {name: tensor.clone() for name, tensor in model.classifier.state_dict().items()}
    start = adapter.state()
    by_adamw(model, kind)
    assert moved(adapter, start) == set(start)
    assert not any(torch.equal(tensor, head[name]) for name, tensor in model.classifier.state_dict().items())
    adapter.detach()
    assert all(torch.equal(p, encoder[name]) for name, p in model.base_model.named_parameters())


@pytest.mark.parametrize("method", [TENSLORA, LORA], ids=["tenslora", "lora"])
@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_the_trainer_of_transformers_trains_adapter_and_head(
    kind: str, method: Method, tmp_path: Path
) -> None:
    model = classifier(kind)
    adapter = tensorbench.wrap(model, method)
    start, head = adapter.state(), model.classifier.weight.detach().clone()
    by_trainer(model, kind, tmp_path)
    assert moved(adapter, start) == set(start)
    assert not torch.equal(model.classifier.weight, head)
    # The Trainer's checkpoint is a plain model, and resumes another model that is wrapped the same way.
    checkpoint = tmp_path / "checkpoint-3"
    plain = type(model).from_pretrained(checkpoint)
    torch.testing.assert_close(logits(plain, kind), logits(model, kind), rtol=0, atol=1e-6)
    other = classifier(kind)
    tensorbench.wrap(other, method, seed=9)
    other.load_state_dict(load_file(checkpoint / "model.safetensors"), strict=False)
    assert torch.equal(logits(other, kind), logits(model, kind))


@pytest.mark.parametrize("method", [TENSLORA, CP, LORA], ids=["tucker", "cp", "lora"])
def test_detaching_leaves_the_model_as_it_was(method: Method) -> None:
    model = classifier("vit")

    def seen() -> Any:
        modules = {name: (id(module), sorted(vars(module))) for name, module in model.named_modules()}
        hooks = len(model._forward_hooks) + len(model._forward_pre_hooks)
        return modules, hooks, {name: p.requires_grad for name, p in model.named_parameters()}

    before, state = seen(), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for merged in (False, True):
        adapter = tensorbench.wrap(model, method)
        by_adamw(model, "vit", adapter.named_parameters().values())
        if merged:
            adapter.merge()
        adapter.detach()
        assert seen() == before
        assert list(model.state_dict()) == list(state)
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("method", [TENSLORA, LORA, DORA], ids=["tenslora", "lora", "dora"])
@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_a_wrapped_model_is_saved_as_a_plain_one(kind: str, method: Method, tmp_path: Path) -> None:
    model = classifier(kind)
    names = list(model.state_dict())
    adapter = tensorbench.wrap(model, method)
    by_adamw(model, kind)
    expected, adapted = logits(model, kind), list(model.state_dict())
    model.save_pretrained(tmp_path / "saved")
    assert list(model.state_dict()) == adapted
    assert torch.equal(logits(model, kind), expected)
    adapter.merge()
    assert list(model.state_dict()) == names
    model.save_pretrained(tmp_path / "merged")
    for folder in ("saved", "merged"):
        loaded, told = type(model).from_pretrained(tmp_path / folder, output_loading_info=True)
        assert not any(told[keys] for keys in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        torch.testing.assert_close(logits(loaded, kind), expected, rtol=0, atol=1e-6)
    adapter.unmerge()
    assert list(model.state_dict()) == adapted
    assert torch.equal(logits(model, kind), expected)


def pickled(model: Any) -> Any:
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("method", [TENSLORA, LORA], ids=["tenslora", "lora"])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled])
def test_a_copy_of_a_wrapped_model_saves_itself(
    duplicate: Callable[[Any], Any], method: Method, tmp_path: Path
) -> None:
    model = classifier("bert")
    tensorbench.wrap(model, method)
    by_adamw(model, "bert")
    copied = duplicate(model)
    by_adamw(copied, "bert")
    copied.save_pretrained(tmp_path)
    expected = logits(copied, "bert")
    assert not torch.equal(expected, logits(model, "bert"))
    torch.testing.assert_close(logits(type(model).from_pretrained(tmp_path), "bert"), expected)


VERA = create("peft", type="VERA", rank=2)


@pytest.mark.parametrize("method", [TENSLORA, VERA], ids=["tenslora", "shared tensors"])
def test_a_state_that_is_given_is_replaced(method: Method, tmp_path: Path) -> None:
    model = classifier("bert")
    tensorbench.wrap(model, method)
    by_adamw(model, "bert")
    expected, state = logits(model, "bert"), model.state_dict()
    model.save_pretrained(tmp_path / "position", True, state)
    model.save_pretrained(tmp_path / "keyword", state_dict=state)
    for folder in tmp_path.iterdir():
        loaded, told = type(model).from_pretrained(folder, output_loading_info=True)
        assert not told["missing_keys"]
        torch.testing.assert_close(logits(loaded, "bert"), expected, rtol=0, atol=1e-6)
    other = classifier("bert")
    tensorbench.wrap(other, method, seed=9)
    other.load_state_dict(load_file(tmp_path / "keyword" / "model.safetensors"), strict=False)
    assert torch.equal(logits(other, "bert"), expected)


def causal(dtype: torch.dtype = torch.float32) -> Any:
    return full_model("llama", "LlamaForCausalLM").to(dtype)


@pytest.mark.parametrize(
    ("make", "method", "why"),
    [
        (lambda: classifier("bert"), create("loretta_adp", rank=2), "not linear"),
        (lambda: causal(torch.bfloat16), TENSLORA, "bfloat16"),
        (causal, create("cara", rank=2), "biases of layers that have none"),
    ],
    ids=["not linear", "rounded", "biases"],
)
def test_a_model_without_an_exact_merged_form_is_not_saved(
    make: Callable[[], Any], method: Method, why: str, tmp_path: Path
) -> None:
    model = make()
    adapter = tensorbench.wrap(model, method)
    with torch.no_grad():
        for parameter in adapter.named_parameters().values():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for inner in (model, model.base_model):
        with pytest.raises(UserError, match=naming(why, "save_adapter", 'save_strategy="no"')):
            inner.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "method", [TENSLORA, LORA, create("loretta_adp", rank=2), create("full")], ids=lambda method: method.name
)
def test_an_adapter_is_saved_by_itself(method: Method, tmp_path: Path) -> None:
    model = classifier("bert")
    adapter = tensorbench.wrap(model, method)
    by_adamw(model, "bert")
    adapter.save_adapter(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["adapter.safetensors"]
    other = classifier("bert")
    tensorbench.wrap(other, method, seed=9).load_adapter(tmp_path)
    assert torch.equal(logits(other, "bert"), logits(model, "bert"))


def test_a_merged_adapter_is_saved_as_it_is_and_loaded_after_unmerging(tmp_path: Path) -> None:
    model = classifier("bert")
    adapter = tensorbench.wrap(model, TENSLORA)
    by_adamw(model, "bert")
    expected = logits(model, "bert")
    adapter.merge()
    adapter.save_adapter(str(tmp_path))
    with pytest.raises(UserError, match="unmerge"):
        adapter.load_adapter(tmp_path)
    adapter.unmerge()
    adapter.load_adapter(tmp_path)
    assert torch.equal(logits(model, "bert"), expected)


def other_weights() -> Any:
    model = classifier("bert")
    with torch.no_grad():
        model.bert.encoder.layer[0].attention.self.query.weight.add_(0.1)
    return model


def other_head() -> Any:
    model = classifier("bert")
    model.classifier = nn.Linear(16, 5)
    return model


@pytest.mark.parametrize(
    ("make", "method", "words"),
    [
        (lambda: classifier("bert"), create("tenslora", variant="qkv_depth").isorank(2), ("ranks", "3", "2")),
        (lambda: classifier("bert"), LORA, ("another method", "'tenslora'", "wrapped with", "'lora'")),
        (lambda: full_model("llama", "LlamaForCausalLM"), TENSLORA, ("another backbone", "d=16")),
        (other_weights, TENSLORA, ("another backbone", "other weights")),
        (other_head, TENSLORA, ("head", "(3,)", "(5,)")),
    ],
    ids=["ranks", "method", "shape", "weights", "head"],
)
def test_an_adapter_that_does_not_fit_is_refused(
    make: Callable[[], Any], method: Method, words: tuple[str, ...], tmp_path: Path
) -> None:
    tensorbench.wrap(classifier("bert"), TENSLORA).save_adapter(tmp_path)
    model = make()
    adapter = tensorbench.wrap(model, method, seed=9)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=naming(*words)):
        adapter.load_adapter(tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_head_alone_is_of_its_backbone_too(tmp_path: Path) -> None:
    head = create("head_only")
    tensorbench.wrap(classifier("bert"), head).save_adapter(tmp_path)
    tensorbench.wrap(classifier("bert"), head, seed=9).load_adapter(tmp_path)
    with pytest.raises(UserError, match="other weights"):
        tensorbench.wrap(other_weights(), head).load_adapter(tmp_path)


def test_files_that_save_adapter_did_not_write_are_refused(tmp_path: Path) -> None:
    adapter = tensorbench.wrap(classifier("bert"), TENSLORA)
    file = tmp_path / "adapter.safetensors"
    with pytest.raises(UserError, match=naming("there is no", "adapter.safetensors")):
        adapter.load_adapter(tmp_path)
    adapter.save_adapter(tmp_path)
    content = file.read_bytes()
    for broken in (content[:-8], content[8:], b"", b"\x80\x04."):
        file.write_bytes(broken)
        with pytest.raises(UserError, match="corrupt"):
            adapter.load_adapter(tmp_path)
    tensors = load_tensors(content)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(UserError, match="not written by save_adapter"):
        adapter.load_adapter(tmp_path)
    save_file(tensors, file, {"tensorbench": "[" * 100_000})
    with pytest.raises(UserError, match="corrupt"):
        adapter.load_adapter(tmp_path)
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        adapter.save_adapter(tmp_path / "taken")


@pytest.mark.parametrize("part", ["adapter", "head", "other"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int32])
def test_tensors_that_are_not_the_adapter_s_are_refused_before_any_change(
    part: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = classifier("bert")
    adapter = tensorbench.wrap(model, TENSLORA)
    adapter.save_adapter(tmp_path)
    file = tmp_path / "adapter.safetensors"
    with safe_open(file, "pt") as opened:
        description = opened.metadata()
    tensors = {name: tensor + 1 for name, tensor in load_file(file).items()}
    if dtype.is_floating_point or part == "other":
        tensors[f"{part}.\x1b[31m{'x' * 10_000}"] = torch.ones(3, dtype=dtype)
    else:
        name = next(name for name in tensors if name.startswith(part))
        tensors[name] = tensors[name].to(dtype)
    save_file(tensors, file, description)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match="does not fit") as refused:
        adapter.load_adapter(tmp_path)
    assert len(str(refused.value)) < 500
    assert str(refused.value).isprintable()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_trained_parameters_are_counted_as_peft_counts_them(capsys: pytest.CaptureFixture[str]) -> None:
    model, reference = classifier("bert"), classifier("bert")
    targets = ["query", "key", "value"]
    peft.get_peft_model(
        reference, peft.LoraConfig(r=2, target_modules=targets, task_type="SEQ_CLS")
    ).print_trainable_parameters()
    expected = capsys.readouterr().out.split(" || ")[0]
    adapter = tensorbench.wrap(model, LORA)
    adapter.print_trainable_parameters()
    unmerged = capsys.readouterr().out
    assert unmerged.startswith(f"{expected} || all params: {sum(p.numel() for p in model.parameters()):,} ")
    adapter.merge()
    adapter.print_trainable_parameters()
    assert capsys.readouterr().out == unmerged


def test_a_loaded_backbone_is_wrapped_too() -> None:
    backbone = load("tiny-random-vit")
    adapter = tensorbench.wrap(backbone, TENSLORA, seed=3)
    trained = {id(p) for p in backbone.module.parameters() if p.requires_grad}
    assert {id(p) for p in adapter.named_parameters().values()} < trained


def test_the_seed_decides_the_start() -> None:
    starts = [tensorbench.wrap(classifier("bert"), LORA, seed).state() for seed in (1, 1, 2)]
    same, other = (
        all(torch.equal(tensor, starts[0][name]) for name, tensor in start.items()) for start in starts[1:]
    )
    assert same
    assert not other


class Own(nn.Module):
    """A user's own classifier, with a head on an encoder for which transformers has no classifier."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"encoder": encoder, "neck": nn.Linear(24, 8)})
        self.last = nn.Linear(8, 3)

    def forward(self, pixel_values: Tensor) -> Tensor:
        states = self.inner["encoder"](pixel_values).last_hidden_state[:, 0]
        return self.last(self.inner["neck"](states))


def full_model(kind: str, name: str) -> Any:
    """Makes a whole model around a tiny encoder of this kind.

    Its class is `Own` for an encoder of DINOv3, and otherwise transformers' class `name`.
    """
    config = tiny(kind)._config()
    if kind == "clip_vision_model":
        text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        text |= {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 2}
        config = transformers.CLIPConfig(text_config=text, vision_config=config.to_dict())
    if kind == "dinov3_vit":
        return Own(transformers.DINOv3ViTModel(config))
    return getattr(transformers, name)(config)


@pytest.mark.parametrize(
    ("kind", "name", "head"),
    [
        ("distilbert", "DistilBertForSequenceClassification", {"pre_classifier", "classifier"}),
        ("deberta-v2", "DebertaV2ForSequenceClassification", {"pooler", "classifier"}),
        ("llama", "LlamaForSequenceClassification", {"score"}),
        ("llama", "LlamaForCausalLM", set()),
        ("clip_vision_model", "CLIPForImageClassification", {"classifier"}),
        ("dinov3_vit", "", {"inner", "last"}),
    ],
)
def test_modules_outside_the_encoder_are_the_head(kind: str, name: str, head: set[str]) -> None:
    model = full_model(kind, name)
    adapter = tensorbench.wrap(model, TENSLORA)
    adapters = {id(parameter) for parameter in adapter.named_parameters().values()}
    trained = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in adapters]
    assert {parameter_name.partition(".")[0] for parameter_name in trained} == head
    assert not any("encoder" in parameter_name for parameter_name in trained)
    assert set(adapter.bases) == set(adapter.backbone.geometry.sites(("query", "key", "value")))
    adapter.detach()


def test_around_a_language_model_only_what_is_beside_it_is_the_head() -> None:
    language_model = full_model("llama", "LlamaForCausalLM")
    language_model.lm_head.weight = language_model.model.embed_tokens.weight
    model = nn.ModuleDict({"inner": language_model, "last": nn.Linear(8, 3)})
    adapter = tensorbench.wrap(model, LORA)
    adapters = {id(parameter) for parameter in adapter.named_parameters().values()}
    trained = {n for n, p in model.named_parameters() if p.requires_grad and id(p) not in adapters}
    assert trained == {"last.weight", "last.bias"}


def test_a_bare_parameter_beside_the_encoder_is_refused() -> None:
    model = full_model("dinov3_vit", "")
    model.inner.register_parameter("scale", nn.Parameter(torch.ones(1)))
    with pytest.raises(UserError, match=naming("inner.scale")):
        tensorbench.wrap(model, LORA)


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("gpt2", "GPT2LMHeadModel", "a GPT2Model computes query, key and value in one layer.*backbones.load"),
        ("clip_vision_model", "CLIPModel", r"\(there is a CLIPTextModel beside it\)"),
    ],
)
def test_models_whose_sites_or_head_are_not_plain_are_refused(kind: str, name: str, message: str) -> None:
    model = full_model(kind, name)
    before = {n: p.requires_grad for n, p in model.named_parameters()}
    with pytest.raises(UserError, match=f"a {name} cannot be wrapped.*{message}"):
        tensorbench.wrap(model, TENSLORA)
    assert {n: p.requires_grad for n, p in model.named_parameters()} == before


def test_unsupported_models_are_refused_and_unchanged() -> None:
    unknown = nn.Sequential(nn.Linear(2, 2))
    _, config = KINDS["bert"]
    headless = transformers.BertModel(transformers.BertConfig(**config))
    for model in (unknown, headless):
        with pytest.raises(UserError, match=naming(type(model).__name__, "accepted")):
            tensorbench.wrap(model, TENSLORA)
    model = classifier("bert")
    model.bert.encoder.layer[1].attention.self.key = nn.Identity()
    with pytest.raises(UserError, match=naming("attention.self.key", "Identity")):
        tensorbench.wrap(model, TENSLORA)
    model = classifier("bert")
    adapter = tensorbench.wrap(model, TENSLORA)
    query = model.get_submodule(adapter.backbone.path(Site(0, "query")))
    with pytest.raises(UserError, match="already has an adapter"):
        tensorbench.wrap(model, TENSLORA)
    assert model.get_submodule(adapter.backbone.path(Site(0, "query"))) is query


def test_a_name_in_place_of_a_model_is_refused() -> None:
    with pytest.raises(UserError, match=naming("model", "'minilm-l6'")):
        tensorbench.wrap("minilm-l6", LORA)  # type: ignore[arg-type]


def test_a_name_in_place_of_a_method_is_refused() -> None:
    with pytest.raises(UserError, match=naming("method", "tensorbench.methods.create", "'lora'")):
        tensorbench.wrap(nn.Linear(2, 2), "lora")  # type: ignore[arg-type]


def filled(adapter: Adapter) -> Adapter:
    """Draws the adapter's parameters, so that its update is not zero."""
    with torch.no_grad():
        for parameter in adapter.named_parameters().values():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.3)
    return adapter


@pytest.mark.parametrize(
    "method",
    [create("quanta").isorank(2), create("trac", rank=2), create("lora_xs", rank=2, basis="random")],
    ids=lambda method: method.name,
)
def test_a_state_brings_the_frozen_tensors_of_its_seed(method: Method) -> None:
    models = [classifier("bert"), classifier("bert")]
    for seed, model in enumerate(models):
        filled(tensorbench.wrap(model, method, seed))
    models[1].load_state_dict(models[0].state_dict())
    assert torch.equal(logits(models[1], "bert"), logits(models[0], "bert"))


def test_a_backbone_that_loading_split_saves_its_adapter_alone(tmp_path: Path) -> None:
    adapter = tensorbench.wrap(load_tiny("gpt2"), LORA)
    with pytest.raises(UserError, match=naming("split layers of this GPT2Model", "save_adapter")):
        adapter.backbone.module.encoder.save_pretrained(tmp_path / "saved")
    adapter.save_adapter(tmp_path / "adapter")


def test_a_detached_adapter_changes_nothing() -> None:
    model = classifier("bert")
    bare = logits(model, "bert")
    for method in (create("full"), DORA, TENSLORA):
        detached = filled(tensorbench.wrap(model, method))
        detached.detach()
        adapter = filled(tensorbench.wrap(model, LORA))
        expected, trained = logits(model, "bert"), {n for n, p in model.named_parameters() if p.requires_grad}
        detached.detach()
        if method.name != "full":
            with pytest.raises(UserError, match="detached adapter cannot be merged"):
                detached.merge()
        assert torch.equal(logits(model, "bert"), expected)
        assert {n for n, p in model.named_parameters() if p.requires_grad} == trained
        adapter.detach()
        assert torch.equal(logits(model, "bert"), bare)


@pytest.mark.parametrize(
    "methods", [(LORA, create("loretta_adp", rank=2)), (create("full"), create("head_only"))]
)
@pytest.mark.parametrize("make", [lambda: classifier("bert"), lambda: load("tiny-random-bert")])
def test_a_model_takes_one_adapter(make: Callable[[], Any], methods: tuple[Method, Method]) -> None:
    model = make()
    adapter = tensorbench.wrap(model, methods[0])
    trained = [p.requires_grad for p in adapter.named_parameters().values()]
    with pytest.raises(UserError, match="already has an adapter"):
        tensorbench.wrap(model, methods[1])
    assert [p.requires_grad for p in adapter.named_parameters().values()] == trained
    adapter.detach()
    tensorbench.wrap(model, methods[1]).detach()


@pytest.mark.parametrize("shared", ["weight", "layer"])
def test_sites_with_one_weight_are_refused(shared: str) -> None:
    model = classifier("bert")
    first, second = (layer.attention.self for layer in model.bert.encoder.layer[:2])
    if shared == "weight":
        second.query.weight = first.query.weight
    else:
        second.query = first.query
    with pytest.raises(UserError, match=naming("0.query", "1.query", "one weight")):
        tensorbench.wrap(model, LORA)


def trained_beside(model: nn.Module, adapter: Adapter) -> set[str]:
    adapters = {id(parameter) for parameter in adapter.named_parameters().values()}
    return {n for n, p in model.named_parameters() if p.requires_grad and id(p) not in adapters}


def test_other_names_of_the_encoder_are_no_head() -> None:
    model = full_model("dinov3_vit", "")
    model.layers, model.patches = model.inner.encoder.model.layer, model.inner.encoder.embeddings
    adapter = tensorbench.wrap(model, LORA)
    head = {"inner.neck.weight", "inner.neck.bias", "last.weight", "last.bias"}
    assert trained_beside(model, adapter) == head
    adapter.detach()
    model.last.weight = model.inner.encoder.model.layer[0].attention.q_proj.weight
    with pytest.raises(UserError, match=naming("last.weight", "one of the encoder's parameters")):
        tensorbench.wrap(model, LORA)


def test_what_the_user_froze_beside_the_encoder_stays_frozen() -> None:
    model = full_model("dinov3_vit", "")
    model.inner.neck.requires_grad_(False)
    adapter = tensorbench.wrap(model, LORA)
    assert trained_beside(model, adapter) == {"last.weight", "last.bias"}
    assert [*adapter.parameter_groups()[1]["params"]] == [*model.last.parameters()]
    adapter.detach()
    model.requires_grad_(False)
    whole = {"inner.neck.weight", "inner.neck.bias", "last.weight", "last.bias"}
    assert trained_beside(model, tensorbench.wrap(model, LORA)) == whole


def test_own_layers_of_a_language_model_are_its_head() -> None:
    model = causal()
    model.value = nn.Linear(24, 1)
    adapter = tensorbench.wrap(model, LORA)
    assert trained_beside(model, adapter) == {"value.weight", "value.bias"}


def test_full_fine_tuning_leaves_a_separate_output_layer() -> None:
    config = tiny("llama")._config()
    config.tie_word_embeddings = False
    model = transformers.LlamaForCausalLM(config)
    adapter = tensorbench.wrap(model, create("full"))
    assert adapter.parameter_count == sum(p.numel() for p in model.model.parameters())
    assert not model.lm_head.weight.requires_grad


def test_an_adapter_file_holds_the_head_s_statistics(tmp_path: Path) -> None:
    def made() -> tuple[Any, Adapter]:
        model = full_model("dinov3_vit", "")
        model.norm = nn.BatchNorm1d(3, affine=False)
        return model, tensorbench.wrap(model, LORA)

    (model, adapter), (_, other) = made(), made()
    model.norm.running_mean.fill_(3.0)
    with torch.no_grad():
        for own, its in zip(other.backbone.module.parameters(), model.parameters(), strict=True):
            own.copy_(its)
    adapter.save_adapter(tmp_path)
    other.load_adapter(tmp_path)
    assert torch.equal(other.backbone.module.norm.running_mean, torch.full((3,), 3.0))


def test_a_state_that_is_not_the_model_s_is_not_saved(tmp_path: Path) -> None:
    model = classifier("bert")
    tensorbench.wrap(model, TENSLORA)
    earlier = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    by_adamw(model, "bert")
    with pytest.raises(UserError, match=naming("present weights", "load it into the model first")):
        model.save_pretrained(tmp_path, state_dict=earlier)


@pytest.mark.parametrize(
    "method", [LORA, TENSLORA, create("quanta").isorank(2)], ids=lambda method: method.name
)
def test_a_merge_is_exact_within_autocast(method: Method) -> None:
    model = classifier("bert")
    adapter = filled(tensorbench.wrap(model, method))
    updates = dict(adapter.deltas())
    weights = {site: base.weight.clone() for site, base in adapter.bases.items()}
    with torch.autocast("cpu", torch.bfloat16):
        adapter.merge()
    for site, base in adapter.bases.items():
        torch.testing.assert_close(base.weight, weights[site] + updates[site], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "method", [LORA, TENSLORA, create("quanta").isorank(2)], ids=lambda method: method.name
)
def test_a_model_that_is_converted_while_merged_takes_its_adapter_along(method: Method) -> None:
    model = classifier("bert")
    adapter = filled(tensorbench.wrap(model, method))
    expected = logits(model, "bert")
    adapter.merge()
    model.double()
    adapter.unmerge()
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    torch.testing.assert_close(logits(model, "bert").float(), expected)


def test_a_head_of_low_precision_is_refused() -> None:
    model = classifier("bert").to(torch.bfloat16)
    with pytest.raises(UserError, match=naming("the head's weight", "bfloat16", ".float()", "autocast")):
        tensorbench.wrap(model, TENSLORA)
    model.classifier.float()
    tensorbench.wrap(model, TENSLORA)
    with torch.autocast("cpu", torch.bfloat16):
        by_adamw(model, "bert")
