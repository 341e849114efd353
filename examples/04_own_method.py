# SPDX-License-Identifier: Apache-2.0
"""A new noise and a new update rule, in one file, run from the command line:

    sdi-gs generate "a red mug" plugins=examples/04_own_method.py --guidance blended
    sdi-gs generate "a red mug" plugins=examples/04_own_method.py \
        --guidance blended noise.share=0.8 update=bounded update.most=2
    sdi-gs compare "a red mug" --guidances sdi,sds,blended plugins=examples/04_own_method.py

Both words work in YAML files as well, and a run's config.yaml remembers this file, so that the run
can be resumed and replayed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

try:
    import sdi_gs
except ImportError:
    raise SystemExit("sdi_gs is not installed: run 'make setup', then .venv/bin/python") from None


@dataclass(frozen=True, kw_only=True)
class Blended:
    """Between SDS and SDI: a share of the inverted noise, the rest random.

    ``kappa = sqrt(share) kappa_inverted + sqrt(1 - share) kappa_random`` has unit variance where
    both have.
    """

    kind: Literal["blended"] = "blended"
    share: float = 0.5  # of the variance that is inverted, 0 (SDS) to 1 (SDI)
    inversion: sdi_gs.DDIMInversion = field(
        default_factory=lambda: sdi_gs.DDIMInversion(cfg_scale=0.0)
    )

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0:
            raise ValueError(f"noise.share={self.share} must lie in [0, 1]")

    def __call__(self, given: sdi_gs.NoiseInput) -> sdi_gs.Noised:
        inverted = self.inversion(given).kappa
        random = given.normal()
        return given.noised(self.share**0.5 * inverted + (1.0 - self.share) ** 0.5 * random)


@dataclass(frozen=True, kw_only=True)
class Bounded:
    """``eps - kappa``, with no element longer than ``most``: outliers pull no harder than that."""

    kind: Literal["bounded"] = "bounded"
    most: float = 1.0  # of the residual's elements, which are about 1 where the model disagrees

    def __call__(self, given: sdi_gs.UpdateInput) -> Tensor:
        eps = given.predict(given.noised.x_t, given.t.device, given.cfg_scale)
        return given.target_along((eps - given.noised.kappa).clamp(-self.most, self.most))


sdi_gs.register("noise", Blended)
sdi_gs.register("update", Bounded)
