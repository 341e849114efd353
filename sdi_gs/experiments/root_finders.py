# SPDX-License-Identifier: Apache-2.0
"""What a choice of kappa costs and what it is worth: Fig. 9 against network samples instead of t.

Two measures, since they disagree: what is left of eq. 8, which a root finder brings to zero, and
how far kappa is from that of the exact inversion, which is what SDI approximates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from representations.telling import each

from ..guidance.noise import DDIMInversion, NoiseStrategy, RandomNoise
from ..guidance.roots import Anderson, FixedPoint, GradientDescent, NewtonKrylov
from ..ramp import Ramp
from .base import Bench, Experiment, Result
from .noise_error import kappa_of, left

SHARES = (0.3, 0.5, 0.7, 0.9)
"""Of the schedule; what is reported is the mean over them."""

ITERATIONS = (1, 2, 4, 8, 16)
STEPS = (1, 2, 3, 5, 10, 20)
EXACT_STEPS = 100

DIVERGED = 1e4
"""Of what is left of eq. 8, in units of the latents: nothing that the plot could show."""


class Choice(NamedTuple):
    """A choice of kappa at one price."""

    method: str
    noise: NoiseStrategy


def _inversions(cfg_scale: float) -> Iterator[Choice]:
    quiet = DDIMInversion(cfg_scale=cfg_scale, tau_max=0.0, entropy=Ramp(0.0, 0.0))
    root = Ramp(3.0, 3.0)
    ways: dict[str, dict[str, Any]] = {
        "inversion, Euler": {},
        "inversion, Euler, even in sigma^(1/3)": {"rho": root},
        "inversion, Adams-Bashforth": {"rho": root, "order": 2},
        "inversion, Heun, even in sigma^(1/3)": {"rho": root, "heun": True},
    }
    for name, settings in ways.items():
        for steps in STEPS:
            yield Choice(name, dataclasses.replace(quiet, steps=steps, **settings))


def _roots(cfg_scale: float) -> Iterator[Choice]:
    yield Choice("random", RandomNoise())
    ways: dict[str, tuple[NoiseStrategy, tuple[int, ...]]] = {
        "fixed point": (FixedPoint(cfg_scale=cfg_scale), ITERATIONS),
        "fixed point, damped": (FixedPoint(cfg_scale=cfg_scale, damping=0.3), ITERATIONS),
        "Anderson": (Anderson(cfg_scale=cfg_scale), ITERATIONS),
        "gradient descent": (GradientDescent(cfg_scale=cfg_scale), ITERATIONS),
        "Newton-Krylov": (NewtonKrylov(cfg_scale=cfg_scale), (1, 2, 3)),
    }
    for name, (noise, counts) in ways.items():
        for n in counts:
            yield Choice(name, dataclasses.replace(noise, iterations=n))  # type: ignore[type-var]


def measure(bench: Bench, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """A row for each choice: its method, the network samples of a view, both measures, averaged
    over :data:`SHARES`. Inversions have minus the forward guidance, as in the paper."""
    s, total = bench.cfg_scale, len(bench.alpha_bar)
    times = [round(share * total) for share in SHARES]
    say(f"the exact inversion, in {EXACT_STEPS} steps of Heun's")
    quiet = DDIMInversion(cfg_scale=-s, tau_max=0.0, entropy=Ramp(0.0, 0.0), heun=True)
    fine = dataclasses.replace(quiet, steps=EXACT_STEPS, rho=Ramp(3.0, 3.0))
    exact = {t: kappa_of(bench, fine, t)[0] for t in each(times, "time")}
    rows, told = [], ""
    for method, noise in each([*_inversions(-s), *_roots(s)], "choice"):
        if method != told:
            say(f"kappa: {method}")
            told = method
        still, away, spent = 0.0, 0.0, 0
        for t in times:
            kappa, spent_here = kappa_of(bench, noise, t)
            still += left(bench, kappa, s, t) / len(times)
            away += float((kappa - exact[t]).norm() / exact[t].norm()) / len(times)
            spent += spent_here
        price = spent / len(times)
        if not still < DIVERGED:
            say(f"left out: {method} at {price:g} network samples, which has diverged")
            continue
        rows.append({"kappa": method, "network_samples": price, "error": still, "distance": away})
    return rows


def roots(bench: Bench, say: Callable[[str], None]) -> Result:
    """What is left of eq. 8 against network samples."""
    return Result(measure(bench, say), "kappa", "network_samples", "error", log=True)


def inversions(bench: Bench, say: Callable[[str], None]) -> Result:
    """The distance from the exact inversion against network samples."""
    return Result(measure(bench, say), "kappa", "network_samples", "distance", log=True)


ROOTS = Experiment("What each choice of kappa leaves of eq. 8, by network samples", roots)
INVERSIONS = Experiment(
    "How far each choice of kappa is from the exact inversion, by network samples", inversions
)
