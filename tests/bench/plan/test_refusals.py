"""Refusals of suites as tables: what is changed in a valid suite, and what the message names, in order.

It names the field, the value, and what is accepted or the nearest name.
"""

from __future__ import annotations

from typing import Any

import pytest

from tensorbench.methods import UserError
from tensorbench.plan.yaml_text import parse

from ...messages import naming
from ..search.scripted import only_chooser
from ..toy_suites import VISION, plan, suite

OF_SEEDS = r"""
# unknown names, with the nearest
sedes: [0] | 'sedes' … 'seeds'
training: {lrr: 1e-3} | 'training.lrr'; did you mean 'lr'? … weight_decay
training: {select: lst} | training.select … did you mean 'last'
tasks: [digit] | 'digit' … 'digits'
tasks: [{task: digits, trian_size: 9}] | 'tasks.0.trian_size'; did you mean 'train_size'
tasks: [{task: digits, training: {stesp: 9}}] | 'digits' … 'steps'
budgets: [{isornak: 2}] | 'budgets.0.isornak'; did you mean 'isorank'
backbones: [{hbu: a/b}] | 'backbones.0.hbu'; did you mean 'hub'
backbones: [tiny-random-vitt] | backbone … 'tiny-random-vit'
methods: [tenslra] | 'tenslra' … 'tenslora'
methods: [{method: lora, rnak: 4}] | 'rnak' … 'rank'
methods: [{method: lora, bugdets: []}] | 'bugdets' … 'budgets'
methods: [{method: lora, name: x}] | 'lora' … 'name'
methods: [dora] | methods.0 … 'dora': write {method: peft, type: DORA}; known are abba
methods: [{method: lora, training: {clpi: 1}}] | training of lora … did you mean 'clip'
methods: [{method: tenslora, variant: qkv_dept}] | 'qkv_depth'
methods: [{method: peft, type: LILI}] | methods.0: … 'LILI' … 'LILY' … LOHA
methods: [{method: lora, each: {rnak: [1]}}] | 'rnak' … 'rank'
methods: [{method: lora, each: {training: {lrr: [1e-3]}}}] | methods.0: training of lora … 'lrr' … 'lr'
# values of a wrong kind
name: a/b | name … 128 … 'a/b'
name: "{long}" | name … 128
seeds: 3 | seeds … [3] … 3
seeds: 0, 1 | seeds … [0, 1]
seeds: null | seeds: should be a list (got None)
seeds: [0, true] | seeds: … number … true
training: {lr: true} | training.lr: … number … true
training: {epochs: true} | training.epochs: … number … true
methods: [{method: lora, rank: true}] | methods.0 … rank: … number … true
methods: [{method: tenslora, variant: qkv, ranks: [4, true, 4]}] | methods.0 … ranks: … number … true
methods: lora | methods … [lora]
methods: [] | methods … 1 … []
methods: [{rank: 1}] | 'methods.0.method'
budgets: {isorank: 3} | budgets: should be a list (got
training: 3 | training … 3
training: null | training:
methods: [{method: lora, each: {training: [{lr: 1e-3}]}}] | methods.0.each: training: … mapping
methods: [{method: lora, each: {training: {lr: 1e-3}}}] | each.training.lr: should be a list, such as [0.001]
# values out of their limits
training: {lr: -1e-3} | training.lr: … greater than 0
training: {lr: .inf} | training.lr: … finite
training: {epsilon: 0} | training.epsilon: … 1e-30 … 0
training: {epsilon: -1e-8} | training.epsilon: … 1e-30 … -1e-08
training: {epsilon: 1e-40} | training.epsilon: … 1e-30 … 1e-40
training: {epsilon: 2} | training.epsilon: … 1 … 2
training: {epsilon: .nan} | training.epsilon: … finite … nan
training: {head_lr: 1e300} | head_lr 1e+300 … 1e+38
training: {epochs: 1e12} | training.epochs: … 100000 … 1000000000000.0
backbones: [{name: tiny-random-vit, image_size: 1000000}] | backbones.0.image_size: … 4096 … 1000000
tasks: [{task: digits, resize: 1000000}] | tasks.0.resize: … 4096 … 1000000
tasks: [{task: digits, max_tokens: 0}] | tasks.0.max_tokens: … greater than 0
methods: [{method: lora, rank: 0}] | rank … 0
methods: [lotr, {method: lora, rank: 1000000000}] | methods.1: … rank is 1,000,000,000 … at most 32
methods: [{method: lora, scale: 0}] | methods.0: … scale: … other than 0 … 0
methods: [{method: tenslora, variant: qkv, ranks: [4, 4, 9]}] | methods.0: … projection is 9 … at most 3
methods: [{method: peft, type: VERA, config: {d_initial: .nan}}] | config.d_initial: … finite … nan
budgets: [{isorank: 1000000}] | methods.0: isorank 1000000: … 1,000,000 … at most 32
methods: [{method: tenslora, variant: qkv, ranks: [2, 0, 1]}] | ranks.1: … than 0
methods: [{method: tenslora, variant: qkv_depth, ranks: [2, 2]}] | 4 … input, output … layer … got 2
methods: [{method: tenslora, variant: att, ranks: [2, 2, 2, 2]}] | 3 … head_size … 4
methods: [{method: tenslora, variant: att, scale: 1e300}] | scale: … got 1e
methods: [{method: tenslora, each: {variant: []}}] | each.variant: … at least 1
seeds: [] | seeds: … at least 1
budgets: [] | 'LoRA' … ranks
search: {trials: 2, scale: [1, 1e300]} | search.scale … 1000000000 … 1e+300
search: {trials: 4, modes: []} | search.modes: … at least 1
search: {trials: 4, seed: -1} | search.seed: … greater than or equal to 0
allocation: {modes: []} | allocation.modes: … at least 1
tasks: [{name: r, csv: r.csv, text: a, label: b, data: {every_class: false}}] | tasks.0: data: … beside 'name'
# repetitions
seeds: [0, 1, 0] | seeds … 0
tasks: [{task: digits, train_size: 60}, digits] | tasks: digits
backbones: [tiny-random-vit, tiny-random-vit] | backbones: … tiny-random-vit
backbones: [tiny-random-vit, {name: tiny-random-vit, label: b}] | backbones:
budgets: [{isorank: 2}, {isorank: 2}] | budgets … 2
budgets: [{isoparameters: 4}, {isoparameters: 4, tolerance: .2}] | budgets … 4
methods: [{method: lora, budgets: [{isorank: 2}, {isorank: 2}]}] | methods.0.budgets: isorank 2
methods: [lora, {method: lora}] | methods: lora is duplicated
training: {augmentation: [flip, flip]} | training.augmentation: flip is duplicated
methods: [lora, {method: lora, scale: 1.0, label: again}] | methods.1.label: 'again' has … methods.0
methods: [{method: lora, each: {training.lr: [.1], training: {lr: [.2]}}}] | methods.0.each: training.lr
# fields that exclude each other
budgets: [{}] | one of isorank, isoparameters, parameters; got none
budgets: [{isorank: 1, isoparameters: 1}] | one of … got ['isorank', 'isoparameters']
budgets: [{isorank: 2, tolerance: .1}] | budgets.0: tolerance 0.1 … isoparameters or parameters
training: {steps: 1, epochs: 1} | epochs or steps
{methods: [{method: head_only, training: {lr: .1}}], training: {head_lr: 3e-3}} | training.lr: … head_lr 0.003
methods: [{method: lora, rank: 1, options: {}}] | rank … 'options'
methods: [{method: lora, rank: 1, budgets: [{isorank: 2}]}] | size already
methods: [{method: lora, each: {budgets: [[{isorank: 1}]]}}] | methods.0.each: … budgets
methods: [{method: tenslora, variant: att, each: {variant: [qkv]}}] | variant … 'each'
methods: [{method: lora, training: {lr: 1e-3}, each: {training: {lr: [1e-3]}}}] | training.lr
{search: {trials: 4, lr: [1e-3]}, methods: [{method: lora, training: {lr: 5e-3}}]} | 'lora' sets lr
{search: {trials: 2, lr: [1e-3]}, methods: [{method: lora, each: {training: {lr: [1e-3]}}}]} | 'lora' sets lr
# labels
tasks: [{task: digits, label: "two\nlines"}] | label: should be one line of text
tasks: [{task: digits, label: " "}] | label: should be one line of text
methods: [{method: lora, label: x}, {method: head_only, label: x}] | 'x'
methods: [{method: head_only, label: LoRA}, lora] | methods.0.label: 'LoRA'
# places
backbones: [{local: ~no-such-user/x}] | backbones.0.local: ~no-such-user is no user's home
tasks: [{task: mrpc, source: {local: ~no-such-user/x}}] | tasks.0.source: ~no-such-user
"""

OF_STUDIES = """
seeds: [0] | seeds:
tuning: {studies: 1, points: 8} | tuning.studies: … greater than or equal to 2
tuning: {studies: 3, points: 1} | tuning.points:
tuning: {studies: 3, trials: 8} | 'tuning.trials'
tuning: {studies: 3, lr: {around: published}} | tuning.lr.around: … 'published'
tuning: {studies: 3, lr: {decades: 0}} | tuning.lr.decades:
tuning: {studies: 1000, points: 1000} | at most 100,000
tuning: {studies: 8, points: 4, looks: [3, 8, 5]} | tuning.looks.after: … increase … [3, 8, 5]
tuning: {studies: 8, points: 4, looks: [3, 3, 8]} | tuning.looks.after: … increase … [3, 3, 8]
tuning: {studies: 8, points: 4, looks: [2, 8]} | tuning.looks.after: … 2 studies … 3
tuning: {studies: 8, points: 4, looks: []} | tuning.looks.after: … at least 1
tuning: {studies: 8, points: 4, looks: 3} | tuning.looks: … 3
tuning: {studies: 8, points: 4, looks: [3, 5]} | tuning: looks … 5 … 8 … studies: 5
tuning: {studies: 8, points: 3, looks: [3, 8]} | tuning: looks.k … 4 … 3 … 1 to 3
tuning: {studies: 8, points: 4, looks: {after: [8], k: 0}} | tuning.looks.k: … 0
tuning: {studies: 8, points: 4, looks: {after: [8], margin: 0}} | tuning.looks.margin: … greater than 0
tuning: {studies: 8, points: 4, looks: {after: [8], margin: .inf}} | looks.margin: … finite
tuning: {studies: 8, points: 4, looks: {after: [8], spending: equal}} | looks.spending: … linear
tuning: {studies: 8, points: 4, looks: {after: [8], stop: some}} | tuning.looks.stop: … 'each'
tuning: {studies: 8, points: 4, looks: {after: [8], alpha: .1}} | 'tuning.looks.alpha'
{methods: [head_only, lora], tuning: {studies: 3, points: 4, looks: [3]}} | tuning.looks: … 1 of them (LoRA)
{methods: [lotr, lora_xs], tuning: {studies: 3, points: 4, looks: [3]}} | tuning.looks: … LoTR, LoRA-XS
{methods: [head_only], tuning: {studies: 2, points: 2, head_lr: 1e300}} | head_lr: 1e+300 … 'digits' … up to 1
tuning: {studies: 2, points: 2, lr: {around: 1e-6, decades: 1}} | tuning.lr … LoRA … 'digits'
tuning: {studies: 2, points: 2, lr: {around: .9, decades: 1}} | tuning.lr … LoRA … 'digits'
tuning: {studies: 2, points: 2, lr: {around: 1e-3, decades: 6}} | tuning.lr … LoRA … 'digits'
{tuning: none, seeds: [0], pilot: {}} | pilot:
{tuning: null, seeds: [0], methods: [{method: lora, centre: 1e-3}]} | 'lora' sets centre
methods: [{method: lora, centre: 0}] | methods.0.centre: … greater than 0 (got 0)
methods: [{method: lora, centre: {}}] | methods.0.centre: … at least 1
methods: [{method: lora, centre: {digits: .nan}}] | methods.0.centre.digits: … finite number (got nan)
methods: [{method: lora, centre: {digits: true}}] | methods.0.centre: … number … true
methods: [lora, {method: lotr, centre: {digit: 1e-3}}] | methods.1.centre: … 'digit': did you mean 'digits'
methods: [{method: converged_head, centre: 1e-3}] | methods.0: centre
methods: [lora, {method: lora, centre: 2e-2}] | lora is duplicated
training: {lr: 1e-3} | training sets lr
training: {head_lr: 1e-3} | training sets head_lr
tasks: [{task: digits, training: {lr: 1e-3}}] | task 'digits', training sets lr
tasks: [{task: digits, split: per_seed}] | 'digits' … per_seed
methods: [{method: lora, training: {head_lr: 1e-3}}] | 'lora' … head_lr
methods: [{method: lora, each: {training: {lr: [1, 2]}}}] | 'lora', training sets lr
search: {trials: 2, head_lr: [1e-3]} | search.head_lr
search: {trials: 2, seeds: [10001]} | search.seeds: 10001
"""

OF_CHOOSERS = """
search: {trials: 3, modes: [head]} | search.modes: … 'head' … input, layer
search: {trials: 3, lr: [5e-6, 1e-3], core_lr: [.1, 1]} | lr · core_lr 5e-07 is below lr_floor
search: {trials: 3, lr: [1e-3, 1e39]} | lr 1e+39 is above 1e+38
search: {trials: 3, seed: 4294967296} | search.seed … 2147483648
search: {trials: 3, seeds: [0]} | search.seeds … 0
{search: {trials: 3}, budgets: [{parameters: 20}]} | 20 … smallest
{search: {trials: 3}, methods: [head_only]} | no rank … head only
{search: {trials: 3}, allocation: {}} | search … allocation … one of them
{allocation: {}, methods: [lora]} | allocation … several modes … nothing to share in LoRA
{allocation: {}, methods: [{method: tenslora, variant: att, factorization: cp}]} | allocation … in … cp
allocation: {modes: [layr]} | allocation.modes: … layr … layer
{allocation: {}, budgets: [{isorank: 2}]} | allocation … budget of parameters
{allocation: {modes: [layer]}, budgets: [{parameters: 102}]} | nothing is left … Left out … layer=1
"""


OF_PILOTS = """
methods: [lora] | pilot.head_lr: … 'digits' … head_only
training: {steps: 4, batch_size: 16} | pilot.epochs: … 'digits'
methods: [head_only, {method: lora, training: {epochs: 5}}] | pilot.epochs: methods.1 … its own length
methods: [head_only, {method: lora, training: {steps: 5}}] | pilot.epochs: methods.1 … its own length
methods: [head_only, {method: lora, centre: .01, each: {training: {epochs: [2, 6]}}}] | methods.1 … own length
methods: [head_only, {method: lora, each: {targets: [qkv, qkvo]}}] | pilot.centres: methods.1
pilot: {epochs: {methods: [LoRRA]}} | pilot.epochs.methods: … 'LoRRA'
pilot: {epochs: {seeds: [1, 1]}} | pilot.epochs.seeds: 1
pilot: {centres: {task: digits, by_task: true}} | pilot.centres: by_task … task
{tasks: [digits, textile], methods: [head_only, {method: lora, centre: {digits: .01}}]} | methods.1 … by_task
pilot: {centres: {task: digit}} | pilot.centres.task: … 'digit'
pilot: {centres: {multiples: {nobody: 2}}} | pilot.centres.multiples: … 'nobody'
pilot: {centres: {rates: [1e-7, 1e-3, 1e-2]}} | lr 1e-07 is below lr_floor
pilot: {centres: {rates: [1e-3, 1e-2]}} | pilot.centres.rates: … at least 3
pilot: {centres: {seeds: [10001]}} | pilot.centres.seeds: 10001
"""

#: What makes the toy suite one with studies.
STUDIED = {"seeds": [], "training": {"batch_size": 16}, "tuning": {"studies": 3, "points": 4}}


def lines(table: str) -> list[Any]:
    """The changes to a suite and the words of the message, of each line of a table."""
    params = []
    for line in table.replace("{long}", "a" * 129).strip().splitlines():
        if not line.startswith("#"):
            changes, _, words = line.partition(" | ")
            parts = [int(word) if word.isdigit() else word for word in words.strip().split(" … ")]
            params.append(pytest.param(parse(changes), naming(*parts), id=changes.strip()[:70]))
    return params


@pytest.mark.parametrize(("changes", "message"), lines(OF_SEEDS))
def test_suites_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(**changes)


@pytest.mark.parametrize(("changes", "message"), lines(OF_STUDIES))
def test_suites_with_studies_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(VISION | STUDIED, **changes)


@pytest.mark.parametrize(("changes", "message"), lines(OF_CHOOSERS))
def test_sections_that_do_not_fit_the_methods_are_refused(changes: dict[str, Any], message: str) -> None:
    methods = [{"method": "tenslora", "variant": "qkv_depth"}]
    with pytest.raises(UserError, match=message):
        only_chooser(suite(**{"methods": methods, **changes}))


@pytest.mark.parametrize(("changes", "message"), lines(OF_PILOTS))
def test_pilots_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        only_chooser(suite(VISION | STUDIED, **{"methods": ["head_only", "lora"], "pilot": {}, **changes}))
