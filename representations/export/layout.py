# SPDX-License-Identifier: Apache-2.0
"""What every splat file has in common: which splats, how many harmonics, in which frame."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..axes import FRAMES, VIEWER, rotate_to_file
from ..cloud import SH_COUNTS, SplatCloud
from ..interface import Say

ALPHA_MIN = 1.0 / 255.0  # splats below this opacity are drawn by no viewer


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Choices about a splat file that do not depend on its format."""

    up: str | None = None  # a name in :data:`axes.FRAMES`; None: the format's own
    sh_degree: int | None = None  # 0 to 3: cut off or padded with zeros; None: as the splats are
    min_opacity: float = ALPHA_MIN  # in [0, 1]: splats below it are left out

    def __post_init__(self) -> None:
        if self.up is not None and self.up not in FRAMES:
            raise ValueError(f"up={self.up!r} is not one of {', '.join(FRAMES)}")
        if self.sh_degree is not None and self.sh_degree not in range(len(SH_COUNTS)):
            raise ValueError(f"sh_degree={self.sh_degree} is not one of 0, 1, 2, 3")
        if not 0.0 <= self.min_opacity <= 1.0:
            raise ValueError(f"min_opacity={self.min_opacity} is not between 0 and 1")

    def apply(self, cloud: SplatCloud, own: str = VIEWER) -> SplatCloud:
        """Splats of our world as a file holds them: on the CPU, float32, finite, in its frame, with
        rotations of unit length. ``own``: the frame of the format where ``up`` names none.

        Raises ValueError when none is left, and where float32 cannot hold a number.
        """
        given = cloud.check().map(lambda tensor: tensor.detach().cpu())
        # A quaternion may be of any length, and float32 has no square of 1e30.
        length = given.quat_wxyz.double().norm(dim=-1, keepdim=True)
        unit = given.quat_wxyz.double() / length.clamp(min=1e-300)
        cloud = given.replace(quat_wxyz=unit).map(lambda tensor: tensor.float())
        finite, turned = cloud.finite(), length[:, 0] > 0
        if any(tensor.dtype != torch.float32 for _, tensor in given.items()):
            fits = ~given.finite() | ~turned | finite
            require_rows(fits, "holds a number that float32 does not", "scale the shape down first")
        keep = finite & turned
        keep &= cloud.opacity_logit.double().sigmoid() >= self.min_opacity
        if not bool(keep.any()):
            raise ValueError(
                f"nothing to export: of {len(cloud)} splats none is finite and reaches "
                f"min_opacity={self.min_opacity:.3g}; write a smaller value, or train longer"
            )
        kept = cloud if bool(keep.all()) else cloud.map(lambda tensor: tensor[keep])
        if self.sh_degree is not None:
            kept = kept.with_sh_degree(self.sh_degree)
        return rotate_to_file(kept, self.up or own)


def require_rows(fits: Tensor, fault: str, remedy: str) -> None:
    """Raise ValueError naming the first row where ``fits`` [N] is false."""
    if not bool(fits.all()):
        raise ValueError(
            f"{int((~fits).sum())} of {len(fits)} splats do not fit, the first is row "
            f"{int((~fits).nonzero()[0])}, which {fault}: {remedy}"
        )


def require_scales(cloud: SplatCloud, low: float, high: float, kind: str) -> None:
    """Raise ValueError for splats whose natural logs of scale are not between ``low`` and ``high``,
    as the format ``kind`` needs."""
    if not _beyond(cloud.log_scale, low, high):
        return
    fits = ((cloud.log_scale >= low) & (cloud.log_scale <= high)).all(-1)
    require_rows(
        fits,
        f"has a log scale beyond {low:g} to {high:g}, all that {kind} holds",
        f"write a .ply, which holds any, or add --scale {_fitting(cloud, low, high):.2g}",
    )


def _beyond(values: Tensor, low: float, high: float) -> bool:
    """Whether any is; one look at all of them, where a look at each row takes ten times as long."""
    least, most = torch.aminmax(values)
    return not (float(least) >= low and float(most) <= high)


def _fitting(cloud: SplatCloud, low: float, high: float) -> float:
    """A factor of size with which the largest scale fits, or else the smallest."""
    most, least = float(cloud.log_scale.max()), float(cloud.log_scale.min())
    moved = high - most - 1.0 if most > high else low - least + 1.0
    return math.exp(max(-27.0, min(27.0, moved)))


CUT_THERE = "what the format holds, cut there"


def tell_cut(say: Say, values: Tensor, most: float, what: str, how: str = CUT_THERE) -> None:
    """Tell how many splats have ``values`` [N, ...] beyond +-``most``, where the format cuts."""
    beyond = values.abs().reshape(len(values), -1).amax(-1) > most if values.numel() else None
    if beyond is not None and bool(beyond.any()):
        say(f"{int(beyond.sum()):,} of {len(values):,} splats have {what} beyond {how}")


DEFAULT = Layout()
