# SPDX-License-Identifier: Apache-2.0
"""Config -> objects: the only place where a word becomes a class.

What the layers below say about a bad input (ValueError and its kin) leaves here as a UserError.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Generator

from representations.gaussians.config import GaussianConfig
from representations.instant_ngp.config import InstantNGPConfig
from representations.interface import HasLatents, Renderer, Run, Say, silent
from representations.latent_voxels.config import LatentVoxelConfig
from representations.memory import available_bytes
from representations.ops import MissingBackend, card
from representations.particles import Particles, all_shapes
from representations.textured.config import TexturedConfig

from . import estimates, methods, starting
from .config import PRIORS, REPRESENTATIONS, Config, ModelConfig
from .cores import spare_threads
from .diffusion.base import Denoiser, Forgetful
from .diffusion.schedule import require_signal
from .errors import UserError, command, nearest
from .guidance import PromptSet
from .starting import Start
from .team import ALONE, Team, share
from .trainer import Training
from .views import ViewPolicy

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
    said = dict.fromkeys(split_words(config.prompt))
    several = _several(config.prompt, KINDS, COLORS)
    if several:
        return several
    unknown = [word for word in said if word not in taught]
    if not unknown:
        return None
    objects = (*KINDS, *COLORS)
    near = [close for word in unknown for close in get_close_matches(word, objects, 1, 0.7)]
    hint = f"; it knows {', '.join(dict.fromkeys(near))}" if near else ""
    return f"note: mini was never taught: {', '.join(unknown)}{hint}; see {command('words')}"


def _several(prompt: str, kinds: Collection[str], colors: Collection[str]) -> str | None:
    """What is said of a sentence with several things, of which mini was taught none together."""
    from .mini import split_words

    said = list(split_words(prompt))
    found = {word: k for k, word in enumerate(said) if word in kinds}
    if len(found) < 2:
        return None
    steps = []
    for thing, k in found.items():
        named = f"{said[k - 1]} {thing}" if k and said[k - 1] in colors else thing
        steps.append(command("generate", f"a {named}", "--out", thing))
    steps.append(command("compose", *found, "--out", "scene.ply"))
    return (
        f"note: mini was taught single things, and {prompt!r} names {len(found)}; make each by "
        "itself and put them beside one another:\n  " + "\n  ".join(steps)
    )


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
        adapter=chosen.adapter,
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
    """The 3D representation, or several that take turns. With ``restored`` its state is loaded
    right after, so that a file it once started from may be gone. ``say``: is told what is worth
    knowing of such a file."""
    use_threads(config.threads)
    count = config.particles
    if count == 1:
        return _shape(config, Run(target, config.schedule, config.seed, exchange, restored, say))
    if config.steps < count:
        raise UserError(
            f"particles={count} take turns in steps={config.steps}, so that some would never be "
            f"trained: write steps={count} or more, or particles={config.steps}"
        )
    seeds = [(config.seed + number) % 2**63 for number in range(count)]
    steps = -(-config.schedule // count)
    runs = [Run(target, steps, seed, exchange, restored, say if not number else silent)
            for number, seed in enumerate(seeds)]  # fmt: skip
    return Particles([_shape(config, run) for run in runs], seed=config.seed)


def _shape(config: Config, run: Run) -> Renderer:
    """One representation."""
    chosen = config.representation
    with below("representation"):
        match chosen:
            case GaussianConfig():
                shape = _gaussians(chosen, run)
            case InstantNGPConfig():
                shape = _instant_ngp(chosen, run, config.views)
            case TexturedConfig():
                shape = _textured(chosen, run)
            case LatentVoxelConfig():
                from representations.latent_voxels import LatentVoxelRenderer

                shape = LatentVoxelRenderer(chosen, run.device, seed=run.seed)
            case _:
                shape = REPRESENTATIONS.makers[type(chosen)](chosen, run)
    for name in config.terms:
        names = (*shape.term_names, *estimates.NAMES)
        if name not in names:
            raise UserError(f"unknown setting 'terms.{name}': {nearest(name, names)}")
    return shape


def must_compile(shape: Renderer) -> bool:
    """Whether the first step compiles kernels for this processor, which takes half a minute."""
    ops = getattr(shape, "ops", None)
    if getattr(ops, "name", None) != "cpu":
        return False
    from representations.ops.cpu_jit import waiting

    return waiting(type(ops).__module__)


def _instant_ngp(chosen: InstantNGPConfig, run: Run, views: ViewPolicy) -> Renderer:
    from representations.instant_ngp import InstantNGPRenderer

    shape = InstantNGPRenderer(chosen, run.device, seed=run.seed)
    if chosen.init.kind == "blob" or run.restored:
        return shape
    if run.exchange.count > 1:
        raise ValueError(
            f"init.kind={chosen.init.kind}: a field is fitted to its file by one process; start "
            "the run without torchrun"
        )
    config, cloud = starting.for_fit(chosen), starting.splats_of_field(chosen, run.seed, run.say)
    student = InstantNGPRenderer(config, run.device, seed=run.seed)
    starting.fit_field(student, chosen.init, cloud, Start(run.device, run.seed, run.say), views)
    return shape.starting_from(student)


def _textured(chosen: TexturedConfig, run: Run) -> Renderer:
    from representations.textured import TexturedRenderer, first_surface, placeholder

    # The mesh of a saved state is in it.
    surface = placeholder() if run.restored else first_surface(chosen, run.say)
    return TexturedRenderer(chosen, run.device, surface, steps=run.steps, seed=run.seed)


def _gaussians(chosen: GaussianConfig, run: Run) -> Renderer:
    from representations.gaussians import GaussianRenderer

    cloud = _placeholder(chosen) if run.restored else starting.splats_of(chosen, run.say)
    if chosen.init.kind == "points" and not run.restored:
        starting.tell_axis(chosen.init, run.say)
    return GaussianRenderer(
        chosen, run.device, cloud, steps=run.steps, seed=run.seed, exchange=run.exchange
    )


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
    methods.check(config, team)
    shape = renderer(config, target, restored, team, say)
    seen = methods.estimates_of(config, target)
    ours = model is None
    if ours and target.type == "cuda":
        from . import budget

        budget.require_card(config, available_bytes(target) or 0, team)
    model = denoiser(config.model, target) if model is None else model
    share(team, config.batch, config.micro_batch, model.views_together)
    with below("views"):
        config.views.check_groups(model.views_together)
    methods.check_neighbours(config, model.views_together)
    first = all_shapes(shape)[0]
    if isinstance(first, HasLatents):
        _require_latents(config, first.latent_channels, model, target)
    with below("prompts"):
        prompts = PromptSet(model, config.prompt, config.negative_prompt, config.prompts)
    method = methods.guidance(config, model, prompts, config.noise)
    if ours and isinstance(model, Forgetful):
        model.forget_words()
    return Training(
        renderer=shape,
        guidance=method,
        views=config.views,
        background=config.background.training,
        weights=dict(config.terms),
        estimates=seen,
        rng=Generator().manual_seed(config.seed),
        steps=config.steps,
        schedule=config.schedule,
        batch=config.batch,
        resolution=config.resolution,
        device=target,
        cooldown=config.cooldown,
        micro_batch=config.micro_batch,
        together=model.views_together,
        team=team,
    )


def _require_latents(config: Config, channels: int, model: Denoiser, target: torch.device) -> None:
    """UserError unless pictures of ``channels`` latents are latents of ``model``."""
    with torch.no_grad():
        own, side = model.encode(torch.ones(1, 3, 64, 64, device=target)).shape[1:3]
    if own != channels:
        raise UserError(
            f"representation={config.representation.kind} is made of {channels} latents, and "
            f"{config.model.source} has {own}: take a prior with {channels}, or another "
            "representation, such as representation=gaussians"
        )
    if config.resolution != side:
        raise UserError(
            f"resolution={config.resolution}: pictures of {config.representation.kind} are latents "
            f"themselves, of which {config.model.source} knows {side} x {side}; write "
            f"resolution={side}"
        )


@contextmanager
def below(section: str) -> Iterator[None]:
    """Turn what a lower layer refuses into a message for the user."""
    try:
        yield
    except (ValueError, FileNotFoundError, MissingBackend) as error:
        raise UserError(f"{section}: {error}") from error
