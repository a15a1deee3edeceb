"""The README.md of an export: a model card with code that loads it by peft and transformers alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib.metadata import version

from huggingface_hub import EvalResult, ModelCardData

from tensorbench.backbones.answers import Answers, Writer
from tensorbench.backbones.inputs import ImageInput, TextInput
from tensorbench.machine.visible import markdown_text, visible
from tensorbench.tasks.data_tasks import DataTask
from tensorbench.tasks.task import Task
from tensorbench.tasks.tokens import beginning
from tensorbench.tools.export.original import HEAD, ORIGINAL, Original

#: For each quantisation, the arguments with which transformers rounds weights the same way, and a caveat.
QUANTISED = {
    "nf4": (
        'load_in_4bit=True, bnb_4bit_quant_type="nf4"',
        "in nf4 (bitsandbytes, blocks of 64); on other weights its outputs are others.",
    ),
    "int8": (
        "load_in_8bit=True",
        "in int8 (bitsandbytes, a scale per row); on other weights its outputs are others. On a GPU, "
        "transformers also rounds what enters a layer.",
    ),
}

_MEAN = """mask = batch["attention_mask"][..., None]
features = (outputs.last_hidden_state * mask).sum(1) / mask.sum(1)"""
_POOLED = "features = outputs.pooler_output"

#: For each pooling, the code that computes the features which enter a head beside the model.
FEATURES = {
    "mean_of_tokens": _MEAN,
    "mean_of_windows": _MEAN,
    "last_token": """last = batch["attention_mask"].sum(1) - 1  # texts are padded on the right
features = outputs.last_hidden_state[torch.arange(len(last)), last]""",
    "class_token": "features = outputs.last_hidden_state[:, 0]",
    "normed_class_token": _POOLED,
    "pooled_by_attention": _POOLED,
}

#: The code for a language model that scores the words of each class.
WORDS = '''
def likelihood(prompt, word):
    """log p of a word's tokens after a prompt's"""
    logits = model(input_ids=torch.cat([prompt, word])[None]).logits[0, -len(word) - 1 : -1]
    return logits.log_softmax(-1).gather(1, word[:, None]).sum()


words = [torch.tensor(word) for word in {words}]  # the tokens of each class's words
with torch.no_grad():
    prompts = [ids[mask.bool()] for ids, mask in zip(batch["input_ids"], batch["attention_mask"])]
    logits = torch.stack([torch.stack([likelihood(prompt, word) for word in words]) for prompt in prompts])'''

#: The code for a language model that generates its answers.
WRITTEN = """tokenizer = transformers.AutoTokenizer.from_pretrained({place}, pad_token={pad!r})
template = {template!r}
texts = [template.replace("{{prompt}}", prompt) for prompt in prompts]
# No end token follows a prompt. One that is too long loses its beginning.
rows = [{begin}tokenizer(text, add_special_tokens=False)["input_ids"][-{room}:] for text in texts]
batch = tokenizer.pad({{"input_ids": rows}}, padding_side="left", return_tensors="pt")
written = model.generate(
    **batch, max_new_tokens={new_tokens}, eos_token_id={end}, pad_token_id={end},
    do_sample=False, num_beams=1, repetition_penalty=1.0, no_repeat_ngram_size=0,
)[:, batch["input_ids"].shape[1] :]
answers = [tokenizer.decode(row, skip_special_tokens=True) for row in written]"""


def card(
    original: Original,
    facts: Mapping[str, str],
    notes: Iterable[str],
    difference: float,
    score: EvalResult | None,
    merged: bool,
    template: str,
) -> str:
    """Returns the text of README.md: front matter for the hub, facts, code and notes.

    `facts` are plain text, which is escaped. `notes` are Markdown. `difference` is the largest difference
    between logits of the export and of the trial. `template` is as in `write_export`. No licence is stated,
    since the author has to choose it.
    """
    base = original.reference if original.revision else None
    data = ModelCardData(
        library_name="transformers" if merged else "peft",
        base_model=base,
        base_model_relation=("finetune" if merged else "adapter") if base else None,
        tags=["tensorpeft-bench", *["lora"] * (not merged)],
        model_name=f"{original.backbone.info.name} by tensorpeft-bench" if score else None,
        eval_results=[score] if score else None,
    )
    libraries = ("torch", "transformers", "peft")
    checked = ", ".join(f"{library} {version(library)}" for library in libraries)
    rows = [f"| {markdown_text(key)} | {markdown_text(value)} |" for key, value in facts.items()]
    notes = [*_notes(original, merged), *notes]
    return "\n".join(
        [
            f"---\n{visible(data.to_yaml())}\n---\n",
            f"# {'A fine-tuned model' if merged else 'A PEFT checkpoint'}, written by tensorpeft-bench",
            "",
            *("| | |", "|---|---|", *rows, ""),
            f"Run in this folder. {_input(original)}",
            "",
            f"```python\n{code(original, merged, template)}\n```",
            "",
            *(f"- {note}" for note in notes),
            f"- It was loaded with {checked}; no logit was off by more than {difference:.1e}.",
            "",
        ]
    )


def _input(original: Original) -> str:
    if isinstance(original.answers, Writer):
        return "`prompts` is a list of texts."
    if isinstance(original.model_input, ImageInput):
        return "`batch` holds what enters the model: images as `pixel_values` (batch, 3, height, width)."
    return "`batch` holds what enters the model: what the tokenizer returns, as tensors."


def template_of(task: Task) -> str:
    """Returns the text that a task made of a prompt, which `{prompt}` stands for."""
    return task.data.template if isinstance(task, DataTask) else "{prompt}"


def facts_of_writing(task: Task) -> dict[str, str]:
    """Returns facts for README.md on prompts and written answers. Empty for other tasks."""
    if task.target != "generation":
        return {}
    after = " or ".join(json.dumps(phrase, ensure_ascii=False) for phrase in task.answer_after)
    return {
        "prompt": json.dumps(template_of(task), ensure_ascii=False),
        "answer": f"follows the prompt, at most {task.new_tokens} tokens"
        + (f"; what counts is behind {after}" if after else ""),
        "loss": "of the answer's tokens and the end token"
        + (", and of the prompt's" if task.loss_on == "all" else ""),
    }


def facts_of(original: Original) -> dict[str, str]:
    """Returns facts for README.md: the classes, the preparation of inputs, and a language model's prompt."""
    classes = ", ".join(f"{index} {name}" for index, name in enumerate(original.classes))
    facts = {} if isinstance(original.answers, Writer) else {"classes": classes}
    model_input = original.model_input
    if isinstance(model_input, ImageInput):
        size = model_input.size
        if model_input.resize is None:
            resized = f"the central square, resized to {size}×{size} pixels (bicubic)"
        else:
            resized = (
                f"squashed to {model_input.resize}×{model_input.resize} pixels (bilinear), of which the "
                f"central {size}×{size} are cut out"
            )
        pixels = f"pixels in [0, 1], mean {model_input.mean}, std {model_input.std}"
        return {**facts, "input": f"RGB, {resized}; {pixels}"}
    facts["input"] = f"token ids of the backbone's own tokenizer, at most {model_input.max_tokens}"
    if model_input.prompt is not None:
        facts["input"] += f", of the prompt {json.dumps(model_input.prompt.template, ensure_ascii=False)}"
    return facts


def code(original: Original, merged: bool, template: str) -> str:
    """Returns the code that loads an export from the working folder and computes the trial's outputs.

    `template` is as in `write_export`.
    """
    place = "." if merged else original.place
    call = loading(original, place, repr(place))
    lines = ["import torch, transformers", "", f"model = {call}.eval()"]
    if not merged:
        lines = [
            "import peft, torch, transformers",
            "",
            f"original = {call}",
            'model = peft.PeftModel.from_pretrained(original, ".").eval()',
        ]
    answers = original.answers
    if isinstance(answers, Writer):
        return "\n".join([*lines, _writing(original, place, template)])
    if isinstance(answers, Answers):
        return "\n".join([*lines, WORDS.format(words=[list(word) for word in answers.words])])
    options = [f"{name}={value!r}" for name, value in original.call_options.items()]
    call = f"model({', '.join(['**batch', *options])})"
    if original.target.head:
        return "\n".join([*lines, "with torch.no_grad():", f"    logits = {call}.logits"])
    pooled = FEATURES[original.kind.pool.__name__].replace("\n", "\n    ")
    lines[0] += "\nfrom safetensors.torch import load_file"
    return "\n".join(
        [
            *lines,
            f'head = load_file("{HEAD}")',
            "with torch.no_grad():",
            f"    outputs = {call}",
            f"    {pooled}",
            "    logits = torch.nn.functional.linear(features, **head)",
        ]
    )


def _writing(original: Original, place: str, template: str) -> str:
    model_input, tokenizer = original.model_input, original.answers.tokenizer
    assert isinstance(model_input, TextInput)
    begin = beginning(tokenizer)
    from_hub = original.revision and place == original.reference
    return WRITTEN.format(
        place=f"{place!r}, revision={original.revision!r}" if from_hub else repr(place),
        pad=tokenizer.pad_token,
        template=template,
        begin=f"{begin} + " if begin else "",
        # As in training, an answer has at least one token.
        room=model_input.max_tokens - len(begin) - 1,
        new_tokens=original.answers.new_tokens,
        end=tokenizer.eos_token_id,
    )


def loading(original: Original, place: str, shown: str) -> str:
    """Returns the code that loads the model from `place`, which the code writes as the expression `shown`."""
    arguments = [f"{name}={value!r}" for name, value in original.options(place).items()]
    if original.spec.quantise:
        skipped = [*original.target.head.values(), "lm_head", "embed_out"]
        rounding = f"{QUANTISED[original.spec.quantise][0]}, llm_int8_skip_modules={skipped}"
        arguments.append(f"quantization_config=transformers.BitsAndBytesConfig({rounding})")
    return f"transformers.{original.target.class_name}.from_pretrained({', '.join([shown, *arguments])})"


def _notes(original: Original, merged: bool) -> list[str]:
    images = original.model_input if isinstance(original.model_input, ImageInput) else None
    notes = []
    if merged:
        notes.append("The update is added to the backbone's weights: peft is not needed.")
        if images and not original.head_is_beside:
            notes.append('`transformers.pipeline("image-classification", model=".")` takes images.')
        # Say how pixels that the library prepares differ from pixels in training.
        if images:
            notes.append(
                'Training resized images with PIL, as transformers does with `backend="pil"`. With its '
                "default, torchvision, a pixel is off by at most one of 255 levels."
            )
        if images and images.resize is None:
            notes.append(
                "Training cut the central square out of an image and then resized it; the preprocessor "
                "resizes first. Square images come out the same, others shifted by up to a pixel: where that "
                "matters, cut the square out yourself."
            )
    else:
        notes.append(_origin(original))
        if original.spec.quantise:
            notes.append(
                "The adapter belongs to the frozen model with all of its projections "
                + QUANTISED[original.spec.quantise][1]
            )
    if original.head_is_beside:
        notes.append(
            "No class of transformers has the pooling and the head of training: the head is in "
            f"`{HEAD}`, beside the model."
        )
    return notes


def _origin(original: Original) -> str:
    info = original.backbone.info
    name, place = markdown_text(info.name), markdown_text(original.place)
    if original.reference is None:
        return f"`{ORIGINAL}/` holds the frozen model, '{name}'."
    if original.revision is None:
        return (
            f"The frozen model is not here: it is a checkpoint of your own, '{name}', with the weights "
            f"{markdown_text(info.weights_hash)}. Put it at {place}, or name where it lies: in the code "
            "above and, for peft's loaders, as `base_model_name_or_path` in adapter_config.json."
        )
    return (
        f"The frozen model is {place} of the Hugging Face hub, at commit {original.revision}. "
        f"`peft.{original.target.loader}.from_pretrained` finds it by itself."
    )
