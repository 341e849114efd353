# SPDX-License-Identifier: Apache-2.0
"""A shape seen, without training: reopen a run, draw views of it, write its pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from representations import telling
from representations.interface import Cameras, HasLatents, Renderer
from representations.particles import all_shapes

from . import build, strict
from .artefacts import checkpoint, media, run_folder
from .artefacts.checkpoint import Checkpoint
from .artefacts.run_folder import RunFolder
from .config import Config, ModelConfig, TurntableConfig, from_plain, to_plain
from .diffusion.base import Denoiser
from .errors import UserError, command, first_line
from .views import ViewPolicy

PREVIEW_VIEWS = 4  # front, side, back, side
STILL_VIEWS, STILL_COLUMNS = 8, 4  # of preview.png
AT_ONCE = 4  # views drawn together, so that memory stays flat


class Darkroom:
    """Makes pictures of latents with the decoder of the run's own prior, which is loaded when the
    first is wanted."""

    def __init__(self, model: ModelConfig, device: torch.device) -> None:
        self.model, self.device = model, device

    @cached_property
    def prior(self) -> Denoiser:
        return build.denoiser(self.model, self.device)

    @cached_property
    def factor(self) -> int:
        """Pixels along a side of a latent."""
        latent = self.prior.encode(torch.ones(1, 3, 64, 64, device=self.device))
        return int(self.prior.decode(latent).shape[-1]) // latent.shape[-1]

    def develop(
        self, shown: Stage, cameras: Cameras, background: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Pictures [N, 3, H, W] in [0, 1] and coverage [N, 1, H, W] on the CPU."""
        few = cameras.coarser(self.factor).to(self.device)
        render, _ = shown.renderer.render(few, background)
        assert render.latents is not None
        pictures = self.prior.decode(render.latents).clamp(0.0, 1.0)
        alpha = F.interpolate(render.alpha, size=pictures.shape[-2:], mode="bilinear")
        height, width = cameras.height, cameras.width
        return pictures[..., :height, :width].cpu(), alpha[..., :height, :width].cpu()


@dataclass(frozen=True)
class Stage:
    """A shape, and how people are shown it."""

    renderer: Renderer
    device: torch.device
    views: ViewPolicy  # whose middle distance and field of view a turntable has
    background: Callable[[int], Tensor | None]  # views -> [views, 3]; None: the shape's own
    darkroom: Darkroom | None = None  # of a shape that is made of latents

    def look(self, cameras: Cameras) -> tuple[Tensor, Tensor]:
        """Pictures [N, 3, H, W] in [0, 1] and coverage [N, 1, H, W], without gradients, on the
        CPU."""
        seen = []
        with torch.no_grad(), telling.level("view", len(cameras)) as level:
            for first in range(0, len(cameras), AT_ONCE):
                some = cameras[first : first + AT_ONCE]
                background = self.background(len(some))
                if background is not None:
                    background = background.to(self.device)
                if self.darkroom is None:
                    render, _ = self.renderer.render(some.to(self.device), background)
                    seen.append((render.rgb.cpu(), render.alpha.cpu()))
                else:
                    seen.append(self.darkroom.develop(self, some, background))
                level.at(first + len(some))
        pictures, alpha = zip(*seen, strict=True)
        return torch.cat(pictures), torch.cat(alpha)

    def draw(self, cameras: Cameras) -> Tensor:
        """The pictures of :meth:`look`, [N, 3, H, W]."""
        return self.look(cameras)[0]

    def turntable(self, frames: int, size: int, elevation_deg: float) -> Tensor:
        """Pictures all around, [frames, 3, size, size] on the CPU; ``size`` in pixels."""
        return self.draw(self.views.showcase(frames, size, elevation_deg))


def stage(config: Config, renderer: Renderer) -> Stage:
    """``renderer``, or the first of those that take turns in it, on the stage that the settings of
    its run describe."""
    shape, device = all_shapes(renderer)[0], build.device(config.device)
    darkroom = Darkroom(config.model, device) if isinstance(shape, HasLatents) else None
    return Stage(shape, device, config.views, config.background.still, darkroom)


class Reopened(NamedTuple):
    """A run as its newest checkpoint has it, without any diffusion model."""

    run: RunFolder
    config: Config
    renderer: Renderer
    saved: Checkpoint

    @property
    def stage(self) -> Stage:
        return stage(self.config, self.renderer)


def reopen(path: Path) -> Reopened:
    """Load the shape of the run at ``path``; of several that took turns, the first."""
    run = run_folder.open_existing(path)
    saved, config, passed = newest(run)
    if passed:
        raise UserError(
            f"{passed[0]}; an older one is whole: have the run go on from that with "
            + command("resume", path)
        )
    renderer = build.renderer(config, build.device(config.device), restored=True)
    with checkpoint.fitting(saved):
        renderer.load_state_dict(saved.renderer)
    return Reopened(run, config, all_shapes(renderer)[0], saved)


def newest(run: RunFolder) -> tuple[Checkpoint, Config, list[str]]:
    """The newest checkpoint that is whole, its settings, and a sentence for each newer one that is
    not; it must hold what the run is made of."""
    saved, passed = checkpoint.newest(run.checkpoints)
    with checkpoint.fitting(saved):
        config = from_plain(saved.config)
    held, asked = (to_plain(c)["representation"]["kind"] for c in (config, run.config()))
    if held != asked:
        raise UserError(
            f"the checkpoint in {run.checkpoints} holds {held}, but {run.config_file} is a run of "
            f"{asked}: put the run's own checkpoint back, or train again with "
            + command("generate", "--config", run.config_file)
        )
    return saved, config, passed


def redraw(
    config: Config, shown: Stage, out: Path, given: dict[str, object], stills: int
) -> list[Path]:
    """Film and contact sheet as ``output.turntable`` of ``config`` says, with ``given`` instead of
    its own values, and ``stills`` single pictures; the files, in the order they were written."""
    table = strict.build(TurntableConfig, {**dict(config.output.turntable), **given}, "render")
    target = RunFolder(out)
    try:
        target.path.mkdir(parents=True, exist_ok=True)
        written = write_pictures(shown, table, target)
        if stills > 0:
            folder = target.path / "stills"
            views = shown.turntable(stills, table.size, table.elevation_deg)
            for index, picture in enumerate(views):
                name = folder / f"view_{index:03d}.png"
                written.append(media.save_png(media.contact_sheet(picture[None]), name))
    except OSError as error:
        raise UserError(f"{target.path} cannot be written: {error.strerror or error}") from error
    return written


def write_pictures(shown: Stage, table: TurntableConfig, run: RunFolder) -> list[Path]:
    """The film and the contact sheet of a finished run; the files."""
    frames = shown.turntable(table.frames, table.size, table.elevation_deg)
    film = media.save_film(frames, run.turntable(table.format), table.fps)
    stills = shown.turntable(STILL_VIEWS, table.size, table.elevation_deg)
    return [film, media.save_png(media.contact_sheet(stills, STILL_COLUMNS), run.preview_png)]


def stills(sheet: Path) -> Tensor:
    """The views [STILL_VIEWS, 3, H, W] in [0, 1] on the contact sheet of a finished run. UserError
    for a file that is none."""
    from PIL import Image

    try:
        with Image.open(sheet) as image:
            return media.tiles(image, STILL_COLUMNS, STILL_VIEWS // STILL_COLUMNS)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{sheet} is no sheet of {STILL_VIEWS} views ({first_line(error)}): draw it again"
        ) from None


def write_particles(shown: Sequence[Stage], table: TurntableConfig, path: Path) -> Path:
    """A row of views of each of several shapes."""
    rows = [one.turntable(PREVIEW_VIEWS, table.size, table.elevation_deg) for one in shown]
    return media.save_png(media.contact_sheet(torch.cat(rows), columns=PREVIEW_VIEWS), path)


def write_preview(shown: Stage, size: int, elevation_deg: float, path: Path) -> Path:
    """A row of views while a run goes on."""
    views = shown.turntable(PREVIEW_VIEWS, size, elevation_deg)
    return media.save_png(media.contact_sheet(views, columns=PREVIEW_VIEWS), path)
