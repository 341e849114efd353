# SPDX-License-Identifier: Apache-2.0
"""What every splat file has in common: which splats, how many harmonics, in which frame."""

from __future__ import annotations

from dataclasses import dataclass

from ..cloud import SH_COUNTS, SplatCloud
from .axes import FRAMES, VIEWER, rotate_to_file

ALPHA_MIN = 1.0 / 255.0  # splats below this opacity are drawn by no viewer


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Choices about a splat file that do not depend on its format."""

    up: str = VIEWER  # a name in :data:`axes.FRAMES`
    sh_degree: int | None = None  # 0 to 3: cut off or padded with zeros; None: as the splats are
    min_opacity: float = ALPHA_MIN  # in [0, 1]: splats below it are left out

    def __post_init__(self) -> None:
        if self.up not in FRAMES:
            raise ValueError(f"up={self.up!r} is not one of {', '.join(FRAMES)}")
        if self.sh_degree is not None and self.sh_degree not in range(len(SH_COUNTS)):
            raise ValueError(f"sh_degree={self.sh_degree} is not one of 0, 1, 2, 3")
        if not 0.0 <= self.min_opacity <= 1.0:
            raise ValueError(f"min_opacity={self.min_opacity} is not between 0 and 1")

    def apply(self, cloud: SplatCloud) -> SplatCloud:
        """Splats of our world as a file holds them: on the CPU, float32, finite, in its frame.

        Raises ValueError when none is left.
        """
        cloud = cloud.check().map(lambda tensor: tensor.detach().cpu().float())
        keep = cloud.finite() & (cloud.quat_wxyz.norm(dim=-1) > 0)
        keep &= cloud.opacity_logit.double().sigmoid() >= self.min_opacity
        if not bool(keep.any()):
            raise ValueError(
                f"nothing to export: of {len(cloud)} splats none is finite and reaches "
                f"min_opacity={self.min_opacity:.3g}; write a smaller value, or train longer"
            )
        kept = cloud.map(lambda tensor: tensor[keep])
        if self.sh_degree is not None:
            kept = kept.with_sh_degree(self.sh_degree)
        return rotate_to_file(kept, self.up)


DEFAULT = Layout()
