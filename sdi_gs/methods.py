# SPDX-License-Identifier: Apache-2.0
"""From settings to a method of score distillation, and what its parts demand of one another."""

from __future__ import annotations

from typing import NamedTuple

import torch

from representations.latent_voxels.config import LatentVoxelConfig
from representations.textured.config import TexturedConfig

from .config import UPDATES, Config
from .diffusion.base import Adaptable, Denoiser
from .errors import UserError
from .estimates import NAMES, Estimates
from .guidance import Guidance, GuidanceConfig, ScoreDistillation, Subject
from .guidance.consistency import GradientConsistency, GradientConsistencyConfig
from .guidance.image_space import ImageSpace, ImageSpaceConfig, PixelConsistency, Remembered
from .guidance.noise import IntervalInversion, NoiseStrategy, RandomNoise, ReleasedInversion
from .guidance.paths import GuidedConsistency, NestedIntervals, Segment, SegmentConsistency
from .guidance.stein import ControlVariate, Stein, SteinConfig
from .guidance.update import Residual, UpdateRule
from .guidance.variational import LearnedReference, Variational, VariationalConfig
from .team import ALONE, Team, share


class Method(NamedTuple):
    """What a method of score distillation is made of; see :func:`guidance`."""

    denoiser: Denoiser
    subject: Subject
    noise: NoiseStrategy
    config: GuidanceConfig
    steps: int  # of the run

    def distillation(self, update: UpdateRule | None = None) -> ScoreDistillation:
        """Score distillation with that rule."""
        return ScoreDistillation(
            self.denoiser,
            self.subject,
            self.noise,
            update=update,
            config=self.config,
            steps=self.steps,
        )


def estimates_of(config: Config, target: torch.device) -> Estimates | None:
    """Who estimates depth for the terms of the loss; None where no term asks."""
    source = config.estimator.source
    if not set(config.terms) & set(NAMES):
        if source is not None:
            raise UserError(
                f"estimator.source={source} is for a term of the loss, and none asks it: write "
                "terms.estimated_depth=0.1 too, or leave it out"
            )
        return None
    shape = config.representation
    if isinstance(shape, LatentVoxelConfig) or (
        isinstance(shape, TexturedConfig) and shape.shape.rate == 0.0
    ):
        raise UserError(
            "terms.estimated_depth moves the surface of a shape, and that of "
            f"representation={shape.kind} does not move: leave the term out, or write "
            "representation=gaussians or representation=instant_ngp"
        )
    try:
        return Estimates.of(config.estimator, config.model.embedded, target)
    except ValueError as error:
        raise UserError(str(error)) from error


def guidance(config: Config, model: Denoiser, subject: Subject, noise: NoiseStrategy) -> Guidance:
    """The method that the settings describe, with ``noise`` as its kappa."""
    method = Method(model, subject, noise, config.guidance, config.schedule)
    match config.update:
        case VariationalConfig() as chosen:
            if not isinstance(model, Adaptable):
                raise UserError(
                    f"update.kind=variational trains a second network, and {type(model).__name__} "
                    "has none to start from: use a diffusion model"
                )
            learner = model.learner(config.prompt, chosen.rank, chosen.rate)
            reference = LearnedReference(learner, chosen.marginal)
            return Variational(method.distillation(reference), reference, chosen)
        case ImageSpaceConfig() as chosen:
            return ImageSpace(method.distillation(Residual(steps=chosen.steps)), chosen)
        case GuidedConsistency() as chosen if chosen.pixels > 0.0:
            remembered = Remembered(chosen)
            return PixelConsistency(method.distillation(remembered), remembered)
        case GradientConsistencyConfig() as chosen:
            return GradientConsistency(method.distillation(), chosen)
        case SteinConfig() as chosen:
            if not isinstance(noise, RandomNoise):
                raise UserError(
                    f"update.kind=stein needs noise.kind=random, got {config.noise.kind}: its "
                    "control variate has mean zero for independent normal noise only"
                )
            variate = ControlVariate(chosen)
            return Stein(method.distillation(variate), variate)
        case chosen if type(chosen) in UPDATES.makers:
            made: Guidance = UPDATES.makers[type(chosen)](chosen, method)
            return made
        case rule if callable(rule):
            return method.distillation(rule)
        case other:
            raise UserError(
                f"update.kind={other.kind}: {type(other).__name__} is no rule (it cannot be "
                "called) and was registered without 'make'"
            )


def check(config: Config, team: Team = ALONE) -> None:
    """What noise, update, times and the parts of a step demand of one another, told before
    anything is loaded."""
    _check_times(config)
    _check_path(config)
    _check_portions(config, team)
    check_neighbours(config)


def check_neighbours(config: Config, together: int = 1) -> None:
    """A rule that compares neighbouring views needs some: a pair of views, or of groups of
    ``together`` that a model sees at once."""
    update = config.update
    if not isinstance(update, GradientConsistencyConfig) or update.weight == 0.0:
        return
    if config.views.neighbour_deg == 0.0:
        raise UserError(
            f"update.kind={update.kind} compares views that stand beside one another, and these "
            "stand anywhere: write views.neighbour_deg=10, or take the method whole with "
            "--guidance gsd"
        )
    if config.batch < 2 * together:
        sees = f", and {config.model.source} sees {together} at once" if together > 1 else ""
        raise UserError(
            f"update.kind={update.kind} compares neighbouring views of a step, and batch="
            f"{config.batch} has none{sees}: write batch={2 * together}"
        )


_WANTED_PATHS: dict[type, tuple[type[Segment] | type[NestedIntervals], str]] = {
    SegmentConsistency: (Segment, "sctd"),
    GuidedConsistency: (NestedIntervals, "gcs"),
}
"""The noise that a rule needs, and the method that has both."""


def _check_path(config: Config) -> None:
    """A rule that goes back along a path needs the noise that takes it."""
    update, noise = config.update, config.noise
    wanted, whole = _WANTED_PATHS.get(type(update), (None, ""))
    if wanted is not None and not isinstance(noise, wanted):
        raise UserError(
            f"update.kind={update.kind} goes back along a path that the noise has taken: write "
            f"noise.kind={wanted.kind} (it is {noise.kind}), or take the method whole with "
            f"--guidance {whole}"
        )
    if isinstance(update, Residual) and update.steps > 1 and isinstance(noise, IntervalInversion):
        raise UserError(
            f"update.steps={update.steps}: noise.kind={noise.kind} subtracts the noise of its "
            "interval from one prediction; write update.steps=1"
        )


def _check_times(config: Config) -> None:
    """What a noise strategy demands of the times."""
    time = config.guidance.t
    drawn = time.low is not None and not time.same_for_batch and config.batch > 1
    if isinstance(config.noise, ReleasedInversion) and drawn:
        raise UserError(
            "noise.kind=released_inversion needs one time for all views of a step: "
            "write guidance.t.same_for_batch=true"
        )


def _check_portions(config: Config, team: Team) -> None:
    """A step in portions must be the step as a whole, and for that the method must look at each
    view by itself."""
    parts = share(team, config.batch, config.micro_batch)
    whole = len(parts) == team.count == 1
    if not whole and isinstance(config.update, VariationalConfig | SteinConfig):
        raise UserError(
            f"update.kind={config.update.kind} learns from all views of a step at once: leave "
            "micro_batch out and start one process"
        )
    if not whole and isinstance(config.update, GradientConsistencyConfig):
        raise UserError(
            f"update.kind={config.update.kind} compares views of a step with one another: leave "
            "micro_batch out and start one process"
        )
