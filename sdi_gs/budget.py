# SPDX-License-Identifier: Apache-2.0
"""How much memory a run needs on a card, before anything is loaded.

Networks are counted on the device meta, without weights: exact shapes. What the representation and
the CUDA runtime need on top are allowances, and so the sum is an estimate.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from representations.interface import Sized, Thrifty
from representations.memory import COPIES_IN_TRAINING

from .config import PRIORS, Config, load, presets
from .diffusion import cost
from .diffusion.lora import low_rank_parameters
from .diffusion.published import Sizes, shaped, sizes_of, with_adapter
from .diffusion.source import DTYPES
from .diffusion.tuning import bound_encoder
from .errors import UserError, command
from .guidance.stein import SteinConfig
from .guidance.update import Bridge, Classifier, NoiseFree
from .guidance.variational import VariationalConfig
from .mini import FOLDERS
from .team import ALONE, Team

GIB = 2**30
CONTEXT = int(0.7 * GIB)
"""CUDA's own context and the workspaces of its libraries; an allowance."""


class Budget(NamedTuple):
    """Bytes."""

    weights: int  # of the network and the VAE, and of a second network with its optimiser
    words: int  # of the text encoders, which are freed before the first step
    activations: int  # of the networks, the graph of the encoding included
    representation: int  # parameters, gradients, moments, and one pass of drawing
    context: int = CONTEXT

    @property
    def total(self) -> int:
        """At the worst moment: while the words are embedded, or in a step."""
        step = self.activations + self.representation
        return self.weights + max(self.words, step) + self.context


class Networks(NamedTuple):
    """Bytes of the networks of a run."""

    held: int  # the network and the VAE, and a second network with its optimiser
    words: int  # the text encoders
    activations: int


class Asked(NamedTuple):
    """What :class:`Networks` depend on: presets share most of it, and counting takes seconds."""

    sizes: str  # of the model, written down
    dtype: torch.dtype
    bounded: bool  # whether the encoder keeps little
    rows: int  # network samples at once
    views: int  # at once
    rank: int | None  # of the second network; None: there is none


_known: dict[Asked, Networks] = {}


def estimate(config: Config, team: Team = ALONE) -> Budget:
    """Of one process, on a card: half precision where the settings name none."""
    at_once = config.batch // team.count
    at_once = max(1, config.micro_batch or at_once)
    rows = at_once * _conditions(config)
    update = config.update
    sizes = _sizes(config)
    asked = Asked(
        sizes=repr(sizes),
        dtype=DTYPES.get(config.model.dtype, torch.float16),  # auto: on a card
        bounded=config.model.vae_memory == "bounded",
        rows=min(rows, config.model.rows or rows),
        views=at_once,
        rank=update.rank if isinstance(update, VariationalConfig) else None,
    )
    if asked not in _known:
        _known[asked] = _networks(sizes, asked)
    found = _known[asked]
    return Budget(
        weights=found.held,
        words=found.words,
        activations=found.activations,
        representation=_of_representation(config, at_once),
    )


def _networks(sizes: Sizes, asked: Asked) -> Networks:
    model = shaped(sizes, dtype=asked.dtype)
    if asked.bounded and model.vae is not None:
        bound_encoder(model.vae)
    predicted = cost.of_prediction(model, asked.rows).peak_bytes
    kept = cost.of_encoding(model, asked.views).kept_bytes
    both_ways = cost.of_encoding(model, asked.views, backward=True).peak_bytes
    lesson, learned = 0, 0
    if asked.rank is not None:
        lesson = cost.of_prediction(model, asked.views, backward=True).peak_bytes
        trained = low_rank_parameters(model.network, asked.rank, model.place)
        learned = COPIES_IN_TRAINING * 4 * trained
    held = [module for module in (model.network, model.vae) if module is not None]
    return Networks(
        held=learned + sum(cost.parameter_bytes(module) for module in held),
        words=sum(cost.parameter_bytes(module) for module in model.readers),
        # The graph of the encoding waits while the network is asked.
        activations=max(kept + max(predicted, lesson), both_ways),
    )


def _conditions(config: Config) -> int:
    """How many it is asked about a view, at most, in one call: with and without the prompt,
    the negative prompt of a rule that wants it apart, and Perp-Neg's two."""
    apart = isinstance(config.update, Classifier | NoiseFree | Bridge)
    return 2 + int(apart) + (2 if config.prompts.perp_neg != "none" else 0)


def _of_representation(config: Config, views: int) -> int:
    """What the representation says of itself; of those that take turns, only one draws. One that
    says nothing counts as nothing."""
    chosen = config.representation
    if not isinstance(chosen, Sized):
        return 0
    waiting = (config.particles - 1) * chosen.training_bytes(1, 8)
    return chosen.training_bytes(views, config.resolution) + waiting


class Savings(NamedTuple):
    """Settings with which a run takes less memory, as they are typed."""

    same: list[str]  # that change nothing but memory and time
    other: list[str]  # that make another run


def savings(config: Config) -> Savings:
    """What this run could still spare. Each works together with all the others."""
    same, other = [], []
    together = isinstance(config.update, VariationalConfig | SteinConfig)  # all views at once
    if config.model.source not in PRIORS.table:  # what others load has no such settings
        sizes = _sizes(config)
        least = sizes.views
        if config.batch > least and config.micro_batch != least and not together:
            same.append(f"micro_batch={least}")
        if config.model.rows != least:
            same.append(f"model.rows={least}")
        if config.model.vae_memory != "bounded" and "vae" in sizes.parts:
            same.append("model.vae_memory=bounded")
    chosen = config.representation
    if isinstance(chosen, Thrifty):
        other += [f"representation.{setting}" for setting in chosen.smaller()]
    if config.resolution >= 32:
        other.append(f"resolution={config.resolution // 2}")
    return Savings(same, other)


def advice(config: Config, again: tuple[object, ...] = ()) -> str:
    """A sentence: what to write when the memory did not suffice. ``again``: words of the command
    that starts the run anew."""
    same, other = savings(config)
    settings = [*same, *other]
    if not settings:
        return "close what else uses the device"
    typed = f":\n  {command(*again, *settings)}\n" if again else f" {' '.join(settings)}; "
    first = f"{' '.join(same)} change{'s' if len(same) == 1 else ''} nothing but memory and time"
    rest = f"{' '.join(other)} make{'s' if len(other) == 1 else ''} another, smaller run"
    return (
        "close what else uses the device, or start again with"
        f"{typed}{'; '.join(said for said, some in ((first, same), (rest, other)) if some)}"
    )


def _sizes(config: Config) -> Sizes:
    """The shapes of the model: of a local folder its own, of an id that is known here the published
    ones, of anything else Stable Diffusion's."""
    chosen = config.model
    sizes = sizes_of(str(FOLDERS.get(chosen.source, chosen.layout or chosen.source)))
    return sizes if chosen.adapter is None else with_adapter(sizes)


def require_card(config: Config, free: int, team: Team = ALONE) -> None:
    """Refuse a run that a card with ``free`` bytes cannot hold, and name the preset that fits."""
    if config.model.embedded or config.model.source in PRIORS.table:
        return  # small, or of a size that nobody here can know
    needed = estimate(config, team).total
    if needed <= free:
        return
    own = _sizes(config)
    others = {name: load(name) for name in presets()}
    found = {
        name: estimate(other).total
        for name, other in others.items()
        if not other.model.embedded
        and (_sizes(other).family, _sizes(other).adapted) == (own.family, own.adapted)
        and isinstance(other.representation, type(config.representation))
    }
    fits = sorted((size, name) for name, size in found.items() if size <= free)
    if fits:
        size, name = fits[-1]
        instead = f"use --config {name} (about {size / GIB:.1f} GiB)"
    else:
        least = [f"batch={own.views}", f"model.rows={own.views}"]
        if "vae" in own.parts:
            least.append("model.vae_memory=bounded")
        instead = (
            f"write {' '.join(least)}, close what else uses the card, or use model.source=mini"
        )
    raise UserError(
        f"this run needs about {needed / GIB:.1f} GiB on the card and {free / GIB:.1f} GiB are "
        f"free: {instead}"
    )
