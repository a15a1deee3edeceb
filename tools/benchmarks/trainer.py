"""Compares the time of a trial of the quickstart with that of transformers' Trainer with peft.

    python -m tools.benchmarks.trainer [--rounds 5]

Both train LoRA r=4 on query, key and value of the same checkpoint, with the same sentences and the same
number of steps. Both validate after each epoch and score the test sentences. The two run in turns. The time
is from the loaded checkpoint and tokenised sentences to the test score. The two differ in what the Trainer
does by default: it batches sentences of any length, and its head reads the first token.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tensorbench.backbones.indexed import minilm_l6_folder
from tensorbench.methods import from_identity
from tensorbench.plan.make import make_plan
from tensorbench.plan.suite import load_suite
from tensorbench.plan.trial import Trial
from tensorbench.tasks.splits import Split, TextSplit
from tensorbench.training.trial import Resources, run_trial

SUITE = Path(__file__).parents[2] / "suites" / "quickstart.yaml"


def trial_of(precision: str) -> Trial:
    """The quickstart's trial of LoRA with its first seed."""
    suite = load_suite(SUITE)
    suite = suite.model_copy(update={"training": suite.training.model_copy(update={"precision": precision})})
    return next(trial for trial in make_plan(suite).trials if from_identity(trial.method).name == "lora")


def sentences(split: Split) -> list[dict[str, Any]]:
    """The examples of a split in the form that a collator takes."""
    assert isinstance(split, TextSplit)
    texts = torch.split(split.tokens, split.lengths.tolist())
    return [
        {"input_ids": text.tolist(), "attention_mask": [1] * len(text), "labels": int(label)}
        for text, label in zip(texts, split.labels, strict=True)
    ]


class ByTrainer:
    """The training of a trial by transformers' Trainer and peft."""

    def __init__(self, trial: Trial, resources: Resources) -> None:
        from transformers import AutoTokenizer, BertForSequenceClassification

        data = resources.data(trial, resources.backbone(trial).info.input)
        self.trial = trial
        self.train, self.validation, self.test = map(sentences, (data.train, data.validation, data.test))
        self.tokenizer = AutoTokenizer.from_pretrained(minilm_l6_folder())
        self.model = BertForSequenceClassification.from_pretrained(
            minilm_l6_folder(), num_labels=data.classes
        )

    def run(self, folder: str) -> float:
        """Trains and scores once, and returns the seconds."""
        from peft import LoraConfig, get_peft_model
        from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

        recipe = self.trial.recipe
        started = time.perf_counter()
        adapter = LoraConfig(
            r=4, lora_alpha=4, target_modules=["query", "key", "value"], modules_to_save=["classifier"]
        )
        model = get_peft_model(self.model, adapter)
        trainer = Trainer(
            model,
            TrainingArguments(
                folder,
                per_device_train_batch_size=recipe.batch_size,
                per_device_eval_batch_size=2 * recipe.batch_size,
                num_train_epochs=recipe.epochs or 1,
                learning_rate=recipe.lr,
                warmup_steps=recipe.warmup,  # below 1 a share of the steps
                lr_scheduler_type="cosine",
                eval_strategy="epoch",
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
                bf16=recipe.precision == "bf16",
                use_cpu=True,
            ),
            train_dataset=self.train,
            eval_dataset=self.validation,
            data_collator=DataCollatorWithPadding(self.tokenizer),
        )
        trainer.train()
        answers = trainer.predict(self.test).predictions.argmax(-1)
        seconds = time.perf_counter() - started
        score = np.mean(answers == [sentence["labels"] for sentence in self.test])
        steps = trainer.state.global_step
        print(f"  Trainer {recipe.precision}: {steps} steps, test {score:.3f}, {seconds:.1f} s")
        self.model = model.unload()
        return seconds


def ours(trial: Trial, resources: Resources) -> float:
    """Runs the trial once, and returns the seconds."""
    started = time.perf_counter()
    outcome = run_trial(trial, resources, lambda progress: None)
    seconds = time.perf_counter() - started
    print(
        f"  ours {trial.recipe.precision}: {outcome.trained.steps} steps, test {outcome.final.metric:.3f}, "
        f"{seconds:.1f} s"
    )
    return seconds


def rounds(count: int) -> Iterator[tuple[str, float, float]]:
    """Yields a precision, the seconds of a trial, and the seconds of a Trainer's run.

    The first round warms up and is not yielded.
    """
    resources, precisions = Resources("cpu"), ("fp32", "bf16")
    trials = {precision: trial_of(precision) for precision in precisions}
    others = {precision: ByTrainer(trial, resources) for precision, trial in trials.items()}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count + 1):
            for precision, trial in trials.items():
                pair = ours(trial, resources), others[precision].run(folder)
                if number:
                    yield precision, *pair


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    measured = list(rounds(parser.parse_args().rounds))
    for precision in dict.fromkeys(name for name, *_ in measured):
        pairs = [(own, other) for name, own, other in measured if name == precision]
        own, other = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(other / own for own, other in pairs)
        print(f"{precision}: a trial {own:.1f} s, the Trainer {other:.1f} s, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
