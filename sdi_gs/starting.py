# SPDX-License-Identifier: Apache-2.0
"""A run that starts from a file: splats from splats as they are, a field from its pictures."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from representations.interface import Say

from .fitting import Fit, fit
from .views import ViewPolicy

if TYPE_CHECKING:
    from representations.cloud import SplatCloud
    from representations.gaussians.config import GaussianConfig
    from representations.instant_ngp import InstantNGPRenderer
    from representations.instant_ngp.config import FieldInitConfig, InstantNGPConfig
    from representations.start_file import StartFile

NEVER = 10**9  # a step that no fit reaches
POINT_OPACITY = 0.95
"""Of the splats at points of a mesh, whose pictures a field is fitted to: a closed surface."""


class Start(NamedTuple):
    """Where and how a field is fitted."""

    device: torch.device
    seed: int
    say: Say


def splats_of(settings: GaussianConfig, say: Say) -> SplatCloud | None:
    """The splats of the file that ``init`` names; None where it names none."""
    init = settings.init
    if init.kind != "splats":
        return None
    cloud = _read(init, say)
    if cloud.sh_degree > settings.sh_degree:
        say(
            f"{init.path}: its harmonics have degree {cloud.sh_degree}, and the run trains degree "
            f"{settings.sh_degree}: those above are left out; keep them with "
            f"representation.sh_degree={cloud.sh_degree}"
        )
    return cloud


def _read(init: StartFile, say: Say) -> SplatCloud:
    from representations.reading import Reading, read_splats

    up = None if init.up == "auto" else init.up
    how = Reading(
        up=up, activated=init.activated, drop_bad=init.drop_bad,
        linear_colours=init.linear_colours, cut=init.cut(),
    )  # fmt: skip
    cloud, notes = read_splats(init.path, how)
    for note in notes:
        say(f"{init.path}: {note}")
    return cloud


def tell_axis(init: StartFile, say: Say) -> None:
    """Say which axis of a mesh is taken for the one that is up, where nothing says so."""
    from representations.points import up_of

    path = Path(init.path)
    note = up_of(path, init.up)[1] if path.is_file() else ""
    if note:
        say(note)


def for_fit(settings: InstantNGPConfig) -> InstantNGPConfig:
    """The field as it is at step 0, for as long as it is fitted: its first levels, unshaded."""
    return dataclasses.replace(
        settings,
        grid=dataclasses.replace(settings.grid, start_step=NEVER),
        material=dataclasses.replace(settings.material, albedo_steps=NEVER),
    )


def splats_of_field(settings: InstantNGPConfig, seed: int, say: Say) -> SplatCloud:
    """What a field is fitted to: the splats of its file, or round ones at points of a mesh.
    ValueError where none is inside the cube of the field."""
    init = settings.init
    if init.kind == "splats":
        cloud = _read(init, say)
    else:
        from representations.gaussians.initialise import from_points
        from representations.points import file_points

        tell_axis(init, say)
        generator = torch.Generator().manual_seed(seed)
        points, colours = file_points(
            init.path, init.count, init.radius, init.colour, generator, init.up
        )
        cloud = from_points(
            points, colours, opacity=POINT_OPACITY, scale_factor=1.0, sh_degree=0,
            generator=generator,
        )  # fmt: skip
    outside = int((cloud.means.abs() > settings.radius).any(-1).sum())
    if outside == len(cloud):
        raise ValueError(
            f"init.path={init.path}: nothing of it lies in the cube of the field, which reaches "
            f"{settings.radius:g} to each side of the origin: write it anew with 'sdi-gs export "
            f"{init.path} --format ply --recentre --scale FACTOR --out FILE', or a larger "
            "representation.radius"
        )
    if outside:
        say(
            f"{init.path}: {outside:,} of {len(cloud):,} splats are outside of the cube of the "
            f"field, which reaches {settings.radius:g} to each side: they are not in it"
        )
    return cloud


def fit_field(
    student: InstantNGPRenderer,
    init: FieldInitConfig,
    cloud: SplatCloud,
    start: Start,
    views: ViewPolicy,
) -> None:
    """Teach ``student`` pictures of ``cloud`` from all sides."""
    from representations.gaussians import GaussianConfig, GaussianRenderer

    settings = GaussianConfig(count=1, max_count=len(cloud), sh_degree=cloud.sh_degree)
    teacher = GaussianRenderer(settings, start.device, cloud)
    start.say(
        f"fitting the field to {len(cloud):,} splats of {init.path}: {init.steps} steps of "
        f"{init.batch} pictures; fine detail comes with the levels that the run adds"
    )
    rng = torch.Generator().manual_seed(start.seed)
    length = Fit(init.steps, init.batch, init.resolution)
    fit(student, teacher, views, length, rng, start.device, start.say)
