# SPDX-License-Identifier: Apache-2.0
"""Thresholds shared by every splat rasteriser, each with the reason for its value.

They are part of the meaning of a picture: a back-end that used another number would draw another
picture, so every implementation reads them here.
"""

from __future__ import annotations

import math

NEAR_PLANE = 0.01
"""World units. Splats closer than this blow up under perspective (1/z) and are not drawn."""

FRUSTUM_MARGIN = 0.3
"""The Jacobian of perspective is evaluated no further outside the picture than this fraction of
its half width: far off-axis the linearisation (EWA, Zwicker 2001) makes streaks of small splats."""

BLUR_PX2 = 0.3
"""Pixels squared, added to the diagonal of each screen covariance: a splat is never thinner than
about half a pixel, so none falls between pixel centres and loses its gradient."""

ALPHA_MAX = 0.999
"""Opacity of one splat at one pixel is cut here, so that the light behind it can be recovered by
dividing by ``1 - alpha`` in the backward pass. No gradient flows through the cut."""

ALPHA_MIN = 1.0 / 255.0
"""Contributions below one step of an 8-bit picture are skipped; gives splats a finite extent."""

TRANSMITTANCE_MIN = 1e-4
"""A pixel is finished when the next splat would leave less light than this; that splat is left
out, so alpha never exceeds ``1 - TRANSMITTANCE_MIN``."""

EXTENT_SIGMAS = math.sqrt(2.0 * math.log(1.0 / ALPHA_MIN))
"""About 3.33: beyond that many standard deviations even an opaque splat is below ALPHA_MIN."""

ALPHA_FLOOR = 1e-8
"""Expected depth divides by alpha only above this; no covered pixel has less than ALPHA_MIN."""

SH_DC = 0.28209479177387814
"""The constant spherical harmonic, 1 / (2 sqrt(pi)): colour = 0.5 + SH_DC * coefficient."""

REFERENCE_TILE_PX = 8
"""Tile edge of the plain torch back-end; faster than 16 at 64 and 128 pixels."""
