# SPDX-License-Identifier: Apache-2.0
"""Config -> objects: the only place where a word becomes a class.

What the layers below say about a bad input (ValueError and its kin) leaves here as a UserError.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from representations.interface import Renderer
from representations.memory import available_bytes

from .config import (
    Config,
    EnvironmentBackground,
    RandomBackground,
    SolidBackground,
)
from .diffusion.base import Adaptable, Denoiser, Forgetful
from .errors import UserError, nearest
from .guidance.distillation import ScoreDistillation
from .guidance.image_space import ImageSpace, ImageSpaceConfig
from .guidance.noise import RandomNoise, ReleasedInversion
from .guidance.prompts import PromptSet
from .guidance.stein import ControlVariate, Stein, SteinConfig
from .guidance.variational import Variational, VariationalConfig
from .team import ALONE, Team, share
from .trainer import Background, Guidance, Training

if TYPE_CHECKING:
    from representations.gaussians import GaussianConfig, SplatCloud
    from representations.instant_ngp import InstantNGPConfig

MINI = "mini"


def device(config: Config) -> torch.device:
    """The device of ``config.device``; "auto" takes CUDA where it works."""
    match config.device:
        case "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        case "cuda" if not torch.cuda.is_available():
            raise UserError(
                f"device=cuda, but torch {torch.__version__} sees no CUDA device here: "
                "write device=cpu or device=auto, and see 'sdi-gs doctor'"
            )
        case "cpu" | "cuda":
            return torch.device(config.device)
        case other:
            raise UserError(f"device={other!r} is not one of auto, cpu, cuda")


def use_threads(config: Config) -> None:
    """Give torch and numba the number of threads that the config asks for, if it does."""
    if config.threads is None:
        return
    torch.set_num_threads(config.threads)
    import numba

    # numba cannot use more threads than it started with.
    numba.set_num_threads(min(config.threads, numba.config.NUMBA_NUM_THREADS))


def check_prompt(config: Config) -> str | None:
    """Refuse a prompt that cannot work; a note about one that works only in part."""
    if not config.prompt.strip():
        raise UserError(
            'the prompt is empty: give a sentence in quotes, such as sdi-gs generate "a red mug"'
        )
    if not config.prompt.isprintable():
        raise UserError(f"the prompt {config.prompt!r} holds line breaks or bytes that are no text")
    if config.model.source != MINI:
        return None
    from .mini import known_words, words
    from .mini.corpus import COLORS, KINDS

    if not known_words(config.prompt):
        raise UserError(
            f"the model 'mini' knows no word of the prompt {config.prompt!r}. "
            f"Objects: {', '.join(sorted(KINDS))}. Colours: {', '.join(COLORS)}. "
            "For anything else use Stable Diffusion: --config sdi_gaussians"
        )
    taught = set(words())
    cleaned = "".join(c if c.isalnum() else " " for c in config.prompt.lower())
    unknown = [word for word in cleaned.split() if word not in taught]
    return f"note: mini was never taught: {', '.join(unknown)}" if unknown else None


def denoiser(config: Config, target: torch.device) -> Denoiser:
    """The frozen diffusion model."""
    from .diffusion.stable import StableDiffusion
    from .diffusion.tuning import Tuning, tune

    source: str | Path = config.model.source
    if source == MINI:
        from .mini import MINI_DIR

        if not (MINI_DIR / "model_index.json").is_file():
            raise UserError(
                f"the weights of 'mini' are missing from {MINI_DIR}: this installation is "
                "incomplete; reinstall it, or name a folder with model.source=FOLDER"
            )
        source = MINI_DIR
    dtype: str = config.model.dtype
    if dtype == "auto":
        dtype = "float16" if target.type == "cuda" else "float32"
    chosen = config.model
    with below("model"):
        model = StableDiffusion.load(source, dtype, target)
        return tune(model, Tuning(chosen.compile, chosen.rows, chosen.vae_memory))


def renderer(config: Config, target: torch.device, restored: bool = False) -> Renderer:
    """The 3D representation. With ``restored`` its state is loaded right after, so that a file it
    once started from may be gone."""
    from representations.gaussians.config import GaussianConfig
    from representations.instant_ngp.config import InstantNGPConfig

    use_threads(config)
    match config.representation:
        case GaussianConfig() as chosen:
            return _gaussians(config, chosen, target, restored)
        case InstantNGPConfig() as chosen:
            return _instant_ngp(config, chosen, target)
        case other:
            raise UserError(
                f"representation {type(other).__name__} has no renderer; known: gaussians, "
                "instant_ngp"
            )


def _check_terms(config: Config, known: Collection[str]) -> None:
    for name in config.terms:
        if name not in known:
            raise UserError(f"unknown setting 'terms.{name}': {nearest(name, known)}")


def _instant_ngp(config: Config, chosen: InstantNGPConfig, target: torch.device) -> Renderer:
    from representations.instant_ngp import InstantNGPRenderer
    from representations.instant_ngp.renderer import TERMS

    _check_terms(config, TERMS)
    with below("representation"):
        return InstantNGPRenderer(dataclasses.replace(chosen, seed=config.seed), target)


def _gaussians(
    config: Config, chosen: GaussianConfig, target: torch.device, restored: bool
) -> Renderer:
    from representations.gaussians import GaussianRenderer
    from representations.gaussians.terms import TERMS

    _check_terms(config, TERMS)
    settings = dataclasses.replace(
        chosen,
        steps=config.steps,
        seed=config.seed,
        init=dataclasses.replace(chosen.init, seed=config.seed),
    )
    with below("representation"):
        cloud = _placeholder(settings) if restored else _given_splats(settings)
        return GaussianRenderer(settings, target, cloud)


def _given_splats(settings: GaussianConfig) -> SplatCloud | None:
    """The splats of the file that ``init`` names; None where it names none."""
    from representations.export import read_ply

    return read_ply(settings.init.path) if settings.init.kind == "splats" else None


def _placeholder(settings: GaussianConfig) -> SplatCloud:
    """One splat, to be replaced by the state of a checkpoint."""
    from representations.gaussians.initialise import from_points

    return from_points(
        torch.zeros(1, 3),
        torch.zeros(1, 3),
        opacity=0.5,
        scale_factor=1.0,
        sh_degree=settings.sh_degree,
        generator=torch.Generator(),
    )


def background(config: Config) -> Background:
    """What is behind the shape in a training step."""
    match config.background:
        case SolidBackground(color=color):
            return lambda views, rng: torch.tensor(color).expand(views, 3)
        case RandomBackground():
            return lambda views, rng: torch.rand(views, 3, generator=rng)
        case EnvironmentBackground():
            return lambda views, rng: None
        case other:
            raise UserError(
                f"background {other!r} is not known; known here: solid, random, environment"
            )


def still_background(config: Config, views: int) -> Tensor | None:
    """What is behind the shape in a picture for people: the solid colour, else white."""
    match config.background:
        case SolidBackground(color=color):
            return torch.tensor(color).expand(views, 3)
        case EnvironmentBackground():
            return None
        case _:
            return torch.ones(views, 3)


def training(
    config: Config, restored: bool = False, model: Denoiser | None = None, team: Team = ALONE
) -> Training:
    """Everything a run needs. The cheap and likely mistakes are looked for first. ``model``: on the
    device of ``config`` already, instead of the one that ``config.model`` names; ``team``: the
    processes that share the views of a step."""
    target = device(config)
    _check_times(config)
    _check_portions(config, team)
    shape = renderer(config, target, restored)
    shape.exchange = team
    ours = model is None
    if ours and target.type == "cuda":
        from . import budget

        budget.require_card(config, available_bytes(target) or 0, team)
    model = denoiser(config, target) if model is None else model
    with below("prompts"):
        prompts = PromptSet(model, config.prompt, config.negative_prompt, config.prompts)
    method = guidance(config, model, prompts)
    if ours and isinstance(model, Forgetful):
        model.forget_words()
    return Training(
        renderer=shape,
        guidance=method,
        views=config.views,
        background=background(config),
        weights=dict(config.terms),
        rng=Generator().manual_seed(config.seed),
        steps=config.steps,
        batch=config.batch,
        resolution=config.resolution,
        device=target,
        cooldown=config.cooldown,
        micro_batch=config.micro_batch,
        team=team,
    )


def guidance(config: Config, model: Denoiser, prompts: PromptSet) -> Guidance:
    """The method that the settings describe."""
    parts = (model, prompts, config.noise, config.guidance, config.steps)
    match config.update:
        case VariationalConfig() as chosen:
            if not isinstance(model, Adaptable):
                raise UserError(
                    f"update.kind=variational trains a second network, and {type(model).__name__} "
                    "has none to start from: use a diffusion model"
                )
            learner = model.learner(config.prompt, chosen.rank, chosen.rate)
            return Variational(ScoreDistillation(*parts), learner, chosen)
        case ImageSpaceConfig() as chosen:
            return ImageSpace(ScoreDistillation(*parts), chosen)
        case SteinConfig() as chosen:
            if not isinstance(config.noise, RandomNoise):
                raise UserError(
                    f"update.kind=stein needs noise.kind=random, got {config.noise.kind}: its "
                    "control variate has mean zero for independent normal noise only"
                )
            return Stein(ScoreDistillation(*parts), ControlVariate(chosen))
        case rule:
            return ScoreDistillation(*parts, rule)


def _check_times(config: Config) -> None:
    """What a noise strategy demands of the times, told before anything is loaded."""
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


@contextmanager
def below(section: str) -> Iterator[None]:
    """Turn what a lower layer refuses into a message for the user."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"{section}: {error}") from error
    except RuntimeError as error:
        # Missing hardware or packages say so themselves; anything else is ours to explain.
        if "back-end" in str(error):
            raise UserError(f"{section}: {error}") from error
        raise
