# SPDX-License-Identifier: Apache-2.0
"""Config -> objects: the only place where a word becomes a class.

What the layers below say about a bad input (ValueError and its kin) leaves here as a UserError.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Generator

from representations.gaussians.config import GaussianConfig
from representations.instant_ngp.config import InstantNGPConfig
from representations.interface import Renderer, Run, Say, silent
from representations.memory import available_bytes
from representations.ops import MissingBackend, card
from representations.textured.config import TexturedConfig

from .config import PRIORS, REPRESENTATIONS, UPDATES, Config, ModelConfig
from .cores import spare_threads
from .diffusion.base import Adaptable, Denoiser, Forgetful
from .diffusion.schedule import require_signal
from .errors import UserError, command, nearest
from .guidance import Guidance, GuidanceConfig, PromptSet, ScoreDistillation, Subject
from .guidance.image_space import ImageSpace, ImageSpaceConfig
from .guidance.noise import NoiseStrategy, RandomNoise, ReleasedInversion
from .guidance.stein import ControlVariate, Stein, SteinConfig
from .guidance.update import UpdateRule
from .guidance.variational import LearnedReference, Variational, VariationalConfig
from .team import ALONE, Team, share
from .trainer import Training

if TYPE_CHECKING:
    from representations.cloud import SplatCloud

    from .diffusion.source import How


LOG = logging.getLogger(__name__)


def device(word: str) -> torch.device:
    """The device of the setting ``device``; "auto" takes CUDA where it works."""
    match word:
        case "auto":
            if torch.cuda.is_available():
                return torch.device("cuda")
            why = card.unexpected()
            if why is not None:
                LOG.warning("device=auto takes the CPU: %s", why)
            return torch.device("cpu")
        case "cuda" if not torch.cuda.is_available():
            raise UserError(
                f"device=cuda, but torch {torch.__version__} sees no CUDA device here: "
                f"{card.missing()}. Or write device=cpu or device=auto"
            )
        case "cpu" | "cuda":
            return torch.device(word)
        case other:
            raise UserError(f"device={other!r} is not one of auto, cpu, cuda")


def with_threads(config: Config, say: Callable[[str], None]) -> Config:
    """``config`` with the number of threads that a run of it has here: the last bits of a sum
    depend on it, so that a replay must know. Where it names none, other work on the machine is
    left its cores."""
    if config.threads is not None:
        return config
    most, taken = torch.get_num_threads(), spare_threads()
    if taken < most:
        say(
            f"note: the machine is busy with other work, so that {taken} of {most} threads are "
            f"used: more would wait for one another (threads={most} takes them all the same)"
        )
    return config.model_copy(update={"threads": taken})


def use_threads(threads: int | None) -> None:
    """Take that number of threads; None leaves it to torch."""
    if threads is None:
        return
    torch.set_num_threads(threads)  # our kernels follow: see representations.ops.cpu_jit


def check_prompt(config: Config) -> str | None:
    """Refuse a prompt that cannot work; a note about one that works only in part."""
    if not config.prompt.strip():
        raise UserError(
            "the prompt is empty: give a sentence in quotes, such as "
            + command("generate", "a red mug")
        )
    if not config.prompt.isprintable():
        raise UserError(f"the prompt {config.prompt!r} holds line breaks or bytes that are no text")
    if not config.model.embedded:
        return None
    from .mini import known_words, split_words, words
    from .mini.corpus import COLORS, KINDS

    if not known_words(config.prompt):
        raise UserError(
            f"the model 'mini' knows no word of the prompt {config.prompt!r}. "
            f"Objects: {', '.join(sorted(KINDS))}. Colours: {', '.join(COLORS)}. "
            "For anything else use Stable Diffusion: --config sdi_gaussians"
        )
    taught = set(words())
    unknown = [word for word in split_words(config.prompt) if word not in taught]
    if not unknown:
        return None
    objects = (*KINDS, *COLORS)
    near = [close for word in unknown for close in get_close_matches(word, objects, 1, 0.7)]
    hint = f"; it knows {', '.join(dict.fromkeys(near))}" if near else ""
    return f"note: mini was never taught: {', '.join(unknown)}{hint}; see {command('words')}"


def check_model(chosen: ModelConfig) -> str | None:
    """Refuse a model that is not there, without loading it; a note about one that must be fetched
    first."""
    if chosen.source in PRIORS.table:
        return None
    from .diffusion.load import look

    with below("model"):
        source = _folder(chosen)
        return look(source, _how(chosen, torch.device("cpu")))


def _how(chosen: ModelConfig, target: torch.device) -> How:
    from .diffusion.source import How

    dtype: str = chosen.dtype
    if dtype == "auto":
        dtype = "float16" if target.type == "cuda" else "float32"
    return How(
        dtype=dtype, device=target, engine=chosen.engine, variant=chosen.variant,
        layout=chosen.layout, lora=chosen.lora, lora_scale=chosen.lora_scale,
    )  # fmt: skip


def _folder(chosen: ModelConfig) -> Path | str:
    """Where the model is; of one that ships with the package, its folder."""
    from .mini import FOLDERS

    own = FOLDERS.get(chosen.source)
    if own is not None and not (own / "model_index.json").is_file():
        raise UserError(
            f"the weights of {chosen.source!r} are missing from {own}: this installation is "
            "incomplete; reinstall it, or name a folder with model.source=FOLDER"
        )
    return own or chosen.source


def denoiser(chosen: ModelConfig, target: torch.device) -> Denoiser:
    """The frozen diffusion model."""
    registered = PRIORS.table.get(chosen.source)
    if registered is not None:
        with below("model"):
            made: Denoiser = PRIORS.makers[registered](registered(), target)
            require_signal(made.alpha_bar)
            return made
    from .diffusion.load import load_prior
    from .diffusion.tuning import Tuning, tune

    source = _folder(chosen)
    with below("model"):
        model = load_prior(source, _how(chosen, target))
        return tune(model, Tuning(chosen.compile, chosen.rows, chosen.vae_memory))


def renderer(
    config: Config,
    target: torch.device,
    restored: bool = False,
    exchange: Team = ALONE,
    say: Say = silent,
) -> Renderer:
    """The 3D representation. With ``restored`` its state is loaded right after, so that a file it
    once started from may be gone. ``say``: is told what is worth knowing of such a file."""
    use_threads(config.threads)
    run = Run(target, config.steps, config.seed, exchange, restored, say)
    chosen = config.representation
    with below("representation"):
        match chosen:
            case GaussianConfig():
                shape = _gaussians(chosen, run)
            case InstantNGPConfig():
                shape = _instant_ngp(chosen, run)
            case TexturedConfig():
                shape = _textured(chosen, run)
            case _:
                shape = REPRESENTATIONS.makers[type(chosen)](chosen, run)
    for name in config.terms:
        if name not in shape.term_names:
            raise UserError(f"unknown setting 'terms.{name}': {nearest(name, shape.term_names)}")
    return shape


def must_compile(shape: Renderer) -> bool:
    """Whether the first step compiles kernels for this processor, which takes half a minute."""
    ops = getattr(shape, "ops", None)
    if getattr(ops, "name", None) != "cpu":
        return False
    from representations.ops.cpu_jit import waiting

    return waiting(type(ops).__module__)


def _instant_ngp(chosen: InstantNGPConfig, run: Run) -> Renderer:
    from representations.instant_ngp import InstantNGPRenderer

    return InstantNGPRenderer(chosen, run.device, seed=run.seed)


def _textured(chosen: TexturedConfig, run: Run) -> Renderer:
    from representations.textured import TexturedRenderer, placeholder, read_surface

    # The mesh of a saved state is in it.
    surface = placeholder() if run.restored else read_surface(chosen.init, chosen.size, run.say)
    return TexturedRenderer(chosen, run.device, surface, steps=run.steps, seed=run.seed)


def _gaussians(chosen: GaussianConfig, run: Run) -> Renderer:
    from representations.gaussians import GaussianRenderer

    cloud = _placeholder(chosen) if run.restored else _given_splats(chosen, run.say)
    if chosen.init.kind == "points" and not run.restored:
        _tell_axis(chosen, run.say)
    return GaussianRenderer(
        chosen, run.device, cloud, steps=run.steps, seed=run.seed, exchange=run.exchange
    )


def _given_splats(settings: GaussianConfig, say: Say) -> SplatCloud | None:
    """The splats of the file that ``init`` names; None where it names none."""
    from representations.reading import Reading, read_splats

    init = settings.init
    if init.kind != "splats":
        return None
    up = None if init.up == "auto" else init.up
    how = Reading(up=up, activated=init.activated, drop_bad=init.drop_bad)
    cloud, notes = read_splats(init.path, how)
    for note in notes:
        say(f"{init.path}: {note}")
    if cloud.sh_degree > settings.sh_degree:
        say(
            f"{init.path}: its harmonics have degree {cloud.sh_degree}, and the run trains degree "
            f"{settings.sh_degree}: those above are left out; keep them with "
            f"representation.sh_degree={cloud.sh_degree}"
        )
    return cloud


def _tell_axis(settings: GaussianConfig, say: Say) -> None:
    from representations.points import up_of

    path = Path(settings.init.path)
    note = up_of(path, settings.init.up)[1] if path.is_file() else ""
    if note:
        say(note)


def splat_renderer(cloud: SplatCloud, config: Config) -> Renderer:
    """A renderer of splats that are there already."""
    from representations.gaussians import GaussianRenderer

    settings = GaussianConfig(count=1, max_count=len(cloud), sh_degree=cloud.sh_degree)
    with below("splats"):
        return GaussianRenderer(settings, device(config.device), cloud)


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


def training(
    config: Config,
    restored: bool = False,
    model: Denoiser | None = None,
    team: Team = ALONE,
    say: Say = silent,
) -> Training:
    """Everything a run needs. The cheap and likely mistakes are looked for first. ``model``: on the
    device of ``config`` already, instead of the one that ``config.model`` names; ``team``: the
    processes that share the views of a step; ``say``: as for :func:`renderer`."""
    target = device(config.device)
    _check_times(config)
    _check_portions(config, team)
    shape = renderer(config, target, restored, team, say)
    ours = model is None
    if ours and target.type == "cuda":
        from . import budget

        budget.require_card(config, available_bytes(target) or 0, team)
    model = denoiser(config.model, target) if model is None else model
    share(team, config.batch, config.micro_batch, model.views_together)
    with below("prompts"):
        prompts = PromptSet(model, config.prompt, config.negative_prompt, config.prompts)
    method = guidance(config, model, prompts, config.noise)
    if ours and isinstance(model, Forgetful):
        model.forget_words()
    return Training(
        renderer=shape,
        guidance=method,
        views=config.views,
        background=config.background.training,
        weights=dict(config.terms),
        rng=Generator().manual_seed(config.seed),
        steps=config.steps,
        batch=config.batch,
        resolution=config.resolution,
        device=target,
        cooldown=config.cooldown,
        micro_batch=config.micro_batch,
        together=model.views_together,
        team=team,
    )


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


def guidance(config: Config, model: Denoiser, subject: Subject, noise: NoiseStrategy) -> Guidance:
    """The method that the settings describe, with ``noise`` as its kappa."""
    method = Method(model, subject, noise, config.guidance, config.steps)
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
            return ImageSpace(method.distillation(), chosen)
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
    except (ValueError, FileNotFoundError, MissingBackend) as error:
        raise UserError(f"{section}: {error}") from error
