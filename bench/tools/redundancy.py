"""Redundancy of a trained adapter: the spectrum of its update along each mode, and the worth of its parts.

For any method, the updates of the attention projections form one fifth-order tensor with the modes input,
head size, head, projection and layer. Its unfoldings are never built: their Gram matrices are computed from
low-rank pairs. The heads of the output projection are on its input side, so its output side takes the place
of the input mode. A key or value head that several query heads share occurs in the tensor once for each of
them.

Parts of the update are called components: a layer, a projection, a head, a site, or a head of a site. The
component of a head contains this head at all sites. It leaves out key and value heads that several query
heads share: these are components only as heads of a site. Updates of the MLP have no heads and are not in the
tensor, but they belong to components.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from tensorbench.machine.cards import choose_device
from tensorbench.machine.outputs import prepare_plot
from tensorbench.methods import PROJECTIONS, Adapter, Geometry, Site, UserError
from tensorbench.methods.backbone import SHARED_HEADS
from tensorbench.records.redundancy import ComponentWorth, Redundancy, Spectrum
from tensorbench.records.words import Artifact, Tag
from tensorbench.store import DEFAULT_STORE
from tensorbench.store.finding import find_finished
from tensorbench.store.trained import StoredTrial, stored_trial
from tensorbench.training.loop import evaluate
from tensorbench.training.trial import Resources

#: The projections that consist of heads.
ATTENTION = PROJECTIONS[:4]

MODES = ("input", "head_size", "head", "projection", "layer")

#: The share of the squared norm that the first `rank_99` singular values must have.
HELD = 0.99


@dataclass(frozen=True)
class Pair:
    """The update of a site as a product of low rank, `split` @ `unsplit`.

    `split` (heads, head size, r) is the factor of the side that is split into heads. In the MLP this side
    counts as one head. `unsplit` (r, d) is the factor of the other side.
    """

    split: Tensor
    unsplit: Tensor


def pairs(adapter: Adapter, geometry: Geometry) -> dict[Site, Pair]:
    """Returns the updates of all sites, in float64. Raises NotLowRank for an adapter without factors."""
    updates = {}
    for site, (down, up) in adapter.factors().items():
        down, up = (factor.detach().double().cpu() for factor in (down, up))
        split, unsplit = (down.T, up.T) if site.projection == "output" else (up, down)
        groups = heads_of(site, geometry) if site.projection in ATTENTION else 1
        updates[site] = Pair(split.unflatten(0, (groups, -1)), unsplit)
    return updates


def gram_matrices(updates: Mapping[Site, Pair]) -> dict[str, Tensor]:
    """Computes the Gram matrix (n, n) of each mode's unfolding, where n is the size of the mode."""
    layers = sorted({site.layer for site in updates})
    projections = [name for name in ATTENTION if any(site.projection == name for site in updates)]
    first = next(iter(updates.values()))
    heads, head_size, _ = first.split.shape
    hidden = first.unsplit.shape[1]
    grams = {
        "input": torch.zeros(hidden, hidden, dtype=torch.float64),
        "head_size": torch.zeros(head_size, head_size, dtype=torch.float64),
        "head": torch.zeros(heads, heads, dtype=torch.float64),
        "projection": torch.zeros(len(projections), len(projections), dtype=torch.float64),
        "layer": torch.zeros(len(layers), len(layers), dtype=torch.float64),
    }
    for pair in updates.values():
        outer = pair.unsplit @ pair.unsplit.T
        inner = torch.einsum("hjr,hjs->rs", pair.split, pair.split)
        weighed = pair.split @ outer
        grams["input"] += pair.unsplit.T @ inner @ pair.unsplit
        grams["head_size"] += torch.einsum("hjr,hkr->jk", weighed, pair.split)
        grams["head"] += torch.einsum("hjr,gjr->hg", weighed, pair.split)
    for (site, own), (other, pair) in product(updates.items(), repeat=2):
        if site.layer == other.layer or site.projection == other.projection:
            # The sum over the entrywise product of the two updates.
            split = torch.einsum("hjr,hjs->rs", own.split, pair.split)
            overlap = (split * (own.unsplit @ pair.unsplit.T)).sum()
            if site.layer == other.layer:
                place = projections.index(site.projection), projections.index(other.projection)
                grams["projection"][place] += overlap
            if site.projection == other.projection:
                grams["layer"][layers.index(site.layer), layers.index(other.layer)] += overlap
    return grams


def singular_values(gram: Tensor) -> list[float]:
    """Computes the singular values of an unfolding, in descending order, from its Gram matrix."""
    values: list[float] = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().flip(0).tolist()
    return values


def effective_rank(values: Sequence[float]) -> float:
    """Returns the exponential of the entropy of singular values, each divided by their sum.

    For n equal values the result is n. If all values are 0, it is 0. Source: Roy and Vetterli 2007, "The
    effective rank: a measure of effective dimensionality".
    """
    total = torch.tensor(values, dtype=torch.float64)
    if not float(total.sum()):
        return 0.0
    shares = total / total.sum()
    return float(torch.special.entr(shares).sum().exp())


def held_rank(values: Sequence[float]) -> int:
    """Returns the smallest number of singular values with 99% of the squared norm. 0 if all are zero."""
    energy = torch.tensor(values, dtype=torch.float64).square().cumsum(0)
    if not float(energy[-1]):
        return 0
    return int((energy < HELD * energy[-1]).sum()) + 1


def spectrum(adapter: Adapter, geometry: Geometry) -> dict[str, Spectrum]:
    """Returns each mode's singular values, effective rank, and the rank with 99% of the squared norm.

    Raises NotLowRank for an adapter without factors, and UserError for an adapter that changes no attention
    projection.
    """
    updates = {
        # A shared head occurs once for each query head.
        site: Pair(pair.split.repeat_interleave(geometry.heads // len(pair.split), 0), pair.unsplit)
        for site, pair in pairs(adapter, geometry).items()
        if site.projection in ATTENTION
    }
    if not updates:
        raise UserError("the adapter changes no attention projection, so that there is no tensor to look at")
    spectra = {}
    for mode, gram in gram_matrices(updates).items():
        values = singular_values(gram)
        spectra[mode] = Spectrum(
            singular_values=tuple(values), effective_rank=effective_rank(values), rank_99=held_rank(values)
        )
    return spectra


@dataclass(frozen=True)
class Component:
    """A part of the update, given by layer, projection and head. None in a field means all."""

    layer: int | None = None
    projection: str | None = None
    head: int | None = None

    def has(self, site: Site) -> bool:
        return self.layer in (None, site.layer) and self.projection in (None, site.projection)


def components(sites: Sequence[Site], geometry: Geometry) -> list[Component]:
    """Returns the complete update, every layer, projection, head and site, and every head of a site."""
    layers = sorted({site.layer for site in sites})
    names = [name for name in geometry.projections if any(site.projection == name for site in sites)]
    attention = [site for site in sites if site.projection in ATTENTION]
    return [
        Component(),
        *(Component(layer=layer) for layer in layers),
        *(Component(projection=name) for name in names),
        *(Component(head=head) for head in range(geometry.heads) if attention),
        *(Component(site.layer, site.projection) for site in sites),
        *(
            Component(site.layer, site.projection, head)
            for site in attention
            for head in range(heads_of(site, geometry))
        ),
    ]


def heads_of(site: Site, geometry: Geometry) -> int:
    """Returns the number of heads of an attention projection. Key and value may have fewer than query."""
    return geometry.kv_heads if site.projection in SHARED_HEADS else geometry.heads


def squared_norms(adapter: Adapter, geometry: Geometry) -> dict[Site, Tensor]:
    """Computes ‖ΔW‖² of every site, as (heads,) for attention projections and as (1,) for the MLP's."""
    return {
        site: ((pair.split @ (pair.unsplit @ pair.unsplit.T)) * pair.split).sum((1, 2))
        for site, pair in pairs(adapter, geometry).items()
    }


@contextmanager
def merged(adapter: Adapter, device: str) -> Iterator[Callable[[Component], AbstractContextManager[None]]]:
    """Moves the backbone to `device`, and merges the update for the duration of this context.

    Yields a function that takes a component and makes a context, in which the component's update is zero. A
    trained bias is removed with its site, but not with a single head.
    """
    geometry, bases = adapter.backbone.geometry, dict(adapter.bases)
    adapter.backbone.module.to(device)
    before = {site: (base.weight.data, base.bias) for site, base in bases.items()}
    adapter.merge()
    after = {site: (base.weight.data, base.bias) for site, base in bases.items()}

    def put(site: Site, weight: Tensor, bias: nn.Parameter | None) -> None:
        bases[site].weight.data = weight
        bases[site].register_parameter("bias", bias)

    @contextmanager
    def without(component: Component) -> Iterator[None]:
        sites = [site for site in bases if component.has(site)]
        for site in sites:
            if component.head is None:
                put(site, *before[site])
            elif site.projection in ATTENTION and heads_of(site, geometry) == geometry.heads:
                weight, start = after[site][0].clone(), component.head * geometry.head_size
                rows = slice(start, start + geometry.head_size)
                head = (slice(None), rows) if site.projection == "output" else (rows,)
                weight[head] = before[site][0][head]
                put(site, weight, after[site][1])
        try:
            yield
        finally:
            for site in sites:
                put(site, *after[site])

    try:
        yield without
    finally:
        adapter.unmerge()


def analyse(
    store: str, run: str, device: str = "cpu", *, drops: bool = True, opened: Sequence[str] = ()
) -> Redundancy:
    """Analyses a finished trial's adapter, and stores the result with its run as `redundancy.json`.

    Every component gets its share of the update's squared norm. All components but the heads of single sites
    also get the drop of the validation metric when they are set to zero; `drops=False` skips this. `opened`
    lists the folders that a trial from a pack may open, or "hub". Raises UserError as `stored_trial` and
    `spectrum` do.
    """
    with stored_trial(store, run, opened) as stored:
        geometry = stored.backbone.geometry
        norms = squared_norms(stored.adapter, geometry)
        modes = spectrum(stored.adapter, geometry)
        total = float(sum(value.sum() for value in norms.values()))
        parts = components(list(norms), geometry)
        worth = [part for part in parts if part.head is None or part.layer is None] if drops else []
        measured = _drops(stored, worth, device) if worth else {}
        redundancy = Redundancy(
            trial_id=stored.trial.id,
            run_id=stored.record.run_id,
            method=stored.method.label,
            ranks=stored.ranks,
            metric=stored.record.tag(Tag.METRIC),
            norm=total**0.5,
            modes=modes,
            components=tuple(
                ComponentWorth(
                    layer=part.layer,
                    projection=part.projection,
                    head=part.head,
                    share=_norm(norms, part, geometry) / total if total else 0.0,
                    drop=measured.get(part),
                )
                for part in parts
            ),
        )
        stored.keep(Artifact.REDUNDANCY, redundancy, Tag.REDUNDANCY)
    return redundancy


def analyse_redundancy(
    *runs: str,
    plot: Path | None = None,
    store: str = DEFAULT_STORE,
    device: str = "auto",
    drops: bool = True,
    opened: Sequence[str] = (),
) -> Iterator[Redundancy]:
    """Analyses how redundant trained adapters are, and yields the analysis of each run as `analyse` does.

    `runs` are ids of runs or trials, or the start of one. At the end the spectra are drawn to the file
    `plot`. Raises UserError before the first analysis for an unknown run and for a file that cannot be
    written, and later as `analyse` does.
    """
    if plot is not None:
        prepare_plot(plot)
    device = choose_device(device)
    for run in runs:
        find_finished(store, run)
    analyses = []
    for run in runs:
        analyses.append(analyse(store, run, device, drops=drops, opened=opened))
        yield analyses[-1]
    if plot is not None:
        draw(analyses, plot)


def _norm(norms: Mapping[Site, Tensor], part: Component, geometry: Geometry) -> float:
    held = {site: value for site, value in norms.items() if part.has(site)}
    if part.head is None:
        return float(sum(value.sum() for value in held.values()))
    heads = {site: value for site, value in held.items() if site.projection in ATTENTION}
    if part.projection is None:
        heads = {site: value for site, value in heads.items() if len(value) == geometry.heads}
    return float(sum(value[part.head] for value in heads.values()))


def _drops(stored: StoredTrial, parts: Sequence[Component], device: str) -> dict[Component, float]:
    """Measures how much worse the validation metric gets without each component. Negative if it improves."""
    trial, backbone, adapter = stored.trial, stored.backbone, stored.adapter
    data = Resources(device).data(trial, backbone.info.input)
    sign = data.objective.metric.sign

    def metric() -> float:
        return evaluate(backbone, adapter, data.validation, trial.recipe, data.objective).metric

    drops = {}
    with merged(adapter, device) as without:
        complete = metric()
        for part in parts:
            with without(part):
                drops[part] = sign * (complete - metric())
    return drops


def draw(analyses: Sequence[Redundancy], file: Path) -> None:
    """Plots the spectra of several analyses, in a panel for each mode.

    Raises UserError if the file cannot be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(3.2 * len(MODES), 3.2), layout="constrained")
    panels = figure.subplots(1, len(MODES))
    for panel, mode in zip(panels, MODES, strict=True):
        for analysis in analyses:
            spectrum = analysis.modes[mode]
            largest = spectrum.singular_values[0] or 1.0
            curve = [value / largest for value in spectrum.singular_values]
            label = f"{analysis.method}: {spectrum.effective_rank:.1f}"
            panel.plot(range(1, len(curve) + 1), curve, marker="o", markersize=3, linewidth=1, label=label)
        panel.set_yscale("log")
        panel.set_ylim(1e-4, 1.5)
        panel.set_title(mode.replace("_", " "))
        panel.set_xlabel("index")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.legend(title="effective rank", fontsize="x-small", title_fontsize="x-small", loc="lower left")
    panels[0].set_ylabel("singular value / largest")
    try:
        figure.savefig(file, dpi=150)
    except (ValueError, OSError) as error:
        raise UserError(f"--plot {file}: {error}") from error
