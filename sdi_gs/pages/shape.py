# SPDX-License-Identifier: Apache-2.0
"""The shape of a run on its page: splats that can be turned, else the film."""

from __future__ import annotations

from dataclasses import dataclass

from representations.cloud import SplatCloud
from representations.reading import SplatFileError, holds_splats, read_splats

from ..artefacts.run_folder import RunFolder
from ..config import Config
from .splats import Packed, View, fitting, packed

PAGE_BYTES = 2_000_000
"""Of the page of one run, at most, unless its pictures alone are larger."""


@dataclass(frozen=True)
class Splats:
    """What a run has to turn."""

    cloud: SplatCloud | None  # None: nothing of the kind
    note: str = ""  # why not, where something was expected


def splats_of(run: RunFolder) -> Splats:
    """The splats that a run has exported."""
    path = run.final("ply")
    if not path.is_file() or not holds_splats(path):
        return Splats(None)
    try:
        cloud = read_splats(path).cloud
    except SplatFileError as error:
        return Splats(None, f"There is nothing to turn here: {error}")
    return Splats(cloud) if len(cloud) else Splats(None, f"{path} holds no splats.")


def turned(cloud: SplatCloud, config: Config, room: int, most: int | None = None) -> Packed | None:
    """As many splats as fit into ``room`` bytes and as are wanted at ``most``, seen as in the
    turntable of the run; None where not one fits."""
    most = fitting(room) if most is None else min(most, fitting(room))
    if most < 1:
        return None
    views, behind = config.views, config.background.still(1)
    red, green, blue = (1.0, 1.0, 1.0) if behind is None else behind[0].tolist()
    view = View(
        distance=sum(views.distance) / 2,
        elevation_deg=config.output.turntable.elevation_deg,
        fov_y_deg=sum(views.fov_y_deg) / 2,
        background=(red, green, blue),
    )
    return packed(cloud, most, view)
