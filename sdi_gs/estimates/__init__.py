# SPDX-License-Identifier: Apache-2.0
"""Depth as an estimator sees it in the shape's own pictures, against hollow faces.

A picture says less of a shape than it seems to: a mask that is pressed inwards looks like one that
bulges, and a prior that knows pictures alone is content with both. A network that was taught depth
from single pictures sees the bulge, and the term ``estimated_depth`` holds the geometry to it:

    loss = mean over views of 1 - rho(1 / z, closeness)

rho is Pearson's correlation over the pixels of a view that the shape covers, each with the weight
alpha; 1 / z is the closeness that was drawn, and the other one is the estimate of the picture,
which gets no gradient. Neither scale nor offset count, for an estimator of single pictures knows
neither (Ranftl et al., arXiv 1907.01341).
"""

from .agreement import disagreement
from .terms import NAMES, Estimates, EstimatorConfig

__all__ = ["NAMES", "Estimates", "EstimatorConfig", "disagreement"]
