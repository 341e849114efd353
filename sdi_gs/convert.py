# SPDX-License-Identifier: Apache-2.0
"""Make splats of a finished radiance field: start on its surface, then fit its own pictures.

Nothing here asks what the teacher is: it is looked at through the common contract, from random
cameras on random backgrounds, so that both colour and opacity are copied.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor

from representations.interface import Cameras, Renderer

from . import assets, build
from .artefacts import checkpoint, media, run_folder
from .artefacts.checkpoint import Checkpoint
from .artefacts.claim import claimed
from .artefacts.run_folder import RunFolder
from .config import Config, to_plain
from .errors import UserError, command
from .fitting import Fit, fit
from .look import Reopened, reopen

TARGETS = ("gaussians",)
FILES = ("config.yaml", "final.ply", "preview.png", "summary.json", "checkpoints/step_*.pt")


@dataclass(frozen=True)
class ConvertOptions:
    """How closely to copy."""

    splats: int = 8000
    steps: int = 400
    batch: int = 4  # views per step
    resolution: int = 96  # pixels of a view

    def __post_init__(self) -> None:
        for name, lowest in (("splats", 1), ("steps", 0), ("batch", 1), ("resolution", 8)):
            if getattr(self, name) < lowest:
                raise UserError(f"{name}={getattr(self, name)}: allowed is {lowest} or more")


@torch.no_grad()
def agreement(one: Renderer, other: Renderer, cameras: Cameras, device: torch.device) -> Tensor:
    """PSNR in dB of each view [N] between two renderers, on white."""
    values = []
    for i in range(len(cameras)):
        camera = cameras[i : i + 1].to(device)
        white = torch.ones(1, 3, device=device)
        a, b = (r.render(camera, white)[0].rgb for r in (one, other))
        values.append(media.psnr(a, b))
    return torch.cat(values).cpu()


def convert(
    path: Path, out: Path | None, options: ConvertOptions, say: Callable[[str], None]
) -> tuple[RunFolder, float]:
    """Convert the run at ``path``; the new run folder and the mean PSNR between the two."""
    reopened = reopen(path)
    run, teacher = reopened.run, reopened.renderer
    if assets.final_format(teacher) == "ply":
        raise UserError(f"{path} is made of splats already; export it: {command('export', path)}")
    out = out if out is not None else run.path / "gaussians"
    with claimed(out, "gaussians", "convert", all_or_none=FILES) as claim:
        return _convert(reopened, claim.run, options, say)


def _convert(
    reopened: Reopened, made: RunFolder, options: ConvertOptions, say: Callable[[str], None]
) -> tuple[RunFolder, float]:
    began = time.perf_counter()
    run, config, teacher, saved = reopened
    device = build.device(config.device)
    new = _configuration(config, options)
    say(f"looking for the surface of {run.path}")
    student = assets.splats_on_surface(teacher, new, options.splats, max(1, options.steps))
    rng = Generator().manual_seed(config.seed)
    length = Fit(options.steps, options.batch, options.resolution)
    fit(student, teacher, config.views, length, rng, device, say)
    shown = config.views.showcase(8, 2 * options.resolution, config.output.turntable.elevation_deg)
    values = agreement(student, teacher, shown, device)
    checkpoint.save(
        made.checkpoints,
        Checkpoint(
            step=new.steps,
            config=to_plain(new),
            renderer=student.state_dict(),
            guidance=saved.guidance,
            rng=saved.rng,
            seconds=saved.seconds,
        ),
    )
    # The settings make it a run, and come last: one without its state would be trained anew.
    run_folder.begin(made, new, run.origin())
    holds = assets.export(student, made.final("ply"), "ply", config.views)
    _picture(made, student, teacher, shown, device)
    made.write_summary(
        converted_from=str(run.path),
        asset={"final.ply": str(holds)},
        psnr_db={"mean": float(values.mean()), "lowest": float(values.min())},
        seconds=round(time.perf_counter() - began, 2),
    )
    return made, float(values.mean())


def _configuration(config: Config, options: ConvertOptions) -> Config:
    from representations.gaussians.config import DensifyConfig, GaussianConfig

    return config.model_copy(
        update={
            "representation": GaussianConfig(
                count=options.splats,
                max_count=options.splats,
                densify=DensifyConfig(kind="none"),
            ),
            # Terms of the field mean nothing to splats.
            "terms": {},
        }
    )


@torch.no_grad()
def _picture(
    run: RunFolder, student: Renderer, teacher: Renderer, cameras: Cameras, device: torch.device
) -> None:
    """The field above, its splats below."""
    rows = []
    for renderer in (teacher, student):
        for i in range(len(cameras)):
            camera = cameras[i : i + 1].to(device)
            rows.append(renderer.render(camera, torch.ones(1, 3, device=device))[0].rgb.cpu())
    media.save_png(media.contact_sheet(torch.cat(rows), columns=len(cameras)), run.preview_png)
