# SPDX-License-Identifier: Apache-2.0
"""The figures: their curves against closed forms on Gaussian data, and the files they leave."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.stats import norm
from torch import Tensor

from sdi_gs import build
from sdi_gs.artefacts.media import psnr
from sdi_gs.config import from_plain, load
from sdi_gs.diffusion.analytic import GaussianMixture, gaussian
from sdi_gs.diffusion.schedule import scaled_linear_alpha_bar, sigma
from sdi_gs.experiments import bad_pictures, root_finders
from sdi_gs.experiments.base import SAMPLING_STEPS, Bench, Result, bench, table, write
from sdi_gs.experiments.noise_error import FIG9, FIG10, SHARES, error, inversion
from sdi_gs.experiments.pictures import FIG4, FIG6, detail, saturation, turned
from sdi_gs.experiments.round_trip import FIG18, STEPS
from sdi_gs.experiments.run import EXPERIMENTS
from sdi_gs.guidance import PromptSet, Viewpoints
from sdi_gs.guidance.draws import normal_like
from sdi_gs.guidance.noise import DDIMInversion, RandomNoise
from sdi_gs.guidance.roots import FixedPoint, GradientDescent
from sdi_gs.guidance.sampling import ddim_sample, ddim_times
from sdi_gs.pages.plots import Line, plot

SHAPE, VARIANCE, COUNT = (4, 2, 2), 0.3, 3000
TABLE = scaled_linear_alpha_bar()
Run = Callable[..., Any]


def on(denoiser: GaussianMixture, clean: Tensor, **settings: object) -> Bench:
    config = from_plain({"prompt": "a mug", **settings})
    zeros = torch.zeros(len(clean))
    conditions = PromptSet(denoiser, "a mug").conditions(Viewpoints.orbit(zeros, zeros))
    return Bench(denoiser, conditions, clean, config.guidance.cfg_scale.start, config, 0)


@pytest.fixture(scope="module")
def known() -> Bench:
    """Samples of one Gaussian, whose denoiser is exact and ignores guidance."""
    rng = torch.Generator().manual_seed(1)
    mean = torch.randn(SHAPE, generator=rng, dtype=torch.float64)
    noise = torch.randn((COUNT, *SHAPE), generator=rng, dtype=torch.float64)
    return on(gaussian(mean, VARIANCE), mean + math.sqrt(VARIANCE) * noise)


def offsets(bench: Bench) -> Tensor:
    assert isinstance(bench.denoiser, GaussianMixture)
    return bench.clean - bench.denoiser.means[0]


@pytest.mark.parametrize("t", [100, 400, 700, 950])
def test_random_noise_leaves_what_the_closed_form_says(known: Bench, t: int) -> None:
    """E |sigma (kappa - eps)|^2 = sigma^2 lambda / (lambda + sigma^2)."""
    square = float(sigma(TABLE[t])) ** 2
    value, spent = error(known, RandomNoise(), 7.5, t)
    assert value == pytest.approx(square * VARIANCE / (VARIANCE + square), rel=0.02)
    assert spent == 0


@pytest.mark.parametrize("t", [100, 400, 700, 950])
@pytest.mark.parametrize("steps", [1, 5, 40])
def test_inversion_leaves_its_bias(known: Bench, t: int, steps: int) -> None:
    """kappa = (F - 1) d / sigma with the growth F of the Euler steps (oracles 2 and 7)."""
    level = float(sigma(TABLE[t]))
    noise = DDIMInversion(cfg_scale=0.0, steps=steps, tau_max=0.0, entropy=0.0)
    one = torch.tensor([t])
    levels = [0.0, *(float(sigma(TABLE[k])) for k in noise.times(one, one, TABLE)[0, 1:])]
    growth = math.prod(
        (VARIANCE + a * b) / (VARIANCE + a * a) for a, b in itertools.pairwise(levels)
    )
    left = (growth - 1) - growth * level**2 / (VARIANCE + level**2)
    value, spent = error(known, noise, 7.5, t)
    assert value == pytest.approx(left**2 * float(offsets(known).square().mean()), rel=1e-9)
    assert spent == steps


@pytest.mark.parametrize("t", [100, 400, 700])
def test_iterations_leave_what_their_rates_say(known: Bench, t: int) -> None:
    """Both start at a random kappa, kappa* = sigma d / lambda away on average."""
    level = float(sigma(TABLE[t]))
    u = level**2 / VARIANCE
    slope = u / (1 + u)
    start = level**2 * (1 - slope) ** 2 * (1 + u)  # before the first iteration
    value, spent = error(known, FixedPoint(iterations=4), 7.5, t)
    assert value == pytest.approx(start * slope**8, rel=0.03)
    assert spent == 4 * 2  # guided: with and without words
    value, _ = error(known, GradientDescent(iterations=4, rate=0.3), 7.5, t)
    assert value == pytest.approx(start * (1 - 0.3 * (1 - slope) ** 2) ** 8, rel=0.03)


def test_inversion_is_below_random_at_every_time(known: Bench) -> None:
    rng = torch.Generator().manual_seed(2)
    means = torch.randn((3, *SHAPE), generator=rng, dtype=torch.float64)
    world = GaussianMixture(means, torch.tensor([0.2, 0.3, 0.1], dtype=torch.float64),
                            names={"mug": [0, 1]})  # fmt: skip
    pick = torch.randint(2, (500,), generator=rng)
    noise = torch.randn((500, *SHAPE), generator=rng, dtype=torch.float64)
    clean = means[pick] + world.variances[pick].sqrt() * noise
    mixture = on(world, clean, guidance={"cfg_scale": 1.0}, noise={"cfg_scale": 1.0})
    for one in (known, mixture):
        rows = FIG9.measure(one, lambda said: None).rows
        by_kappa = {(row["kappa"], row["t"]): row["error"] for row in rows}
        assert {row["kappa"] for row in rows} >= {"random", "fixed point", "gradient descent"}
        for share in SHARES:
            assert by_kappa["ddim inversion", share] < by_kappa["random", share], share


M, V = 1.0, 0.05  # means at -M and M, each of variance V


def two_peaks_denoised(x_bar: np.ndarray, level: float) -> np.ndarray:
    """E[x0 | x_bar] of data at two equal peaks, at noise level sigma."""
    spread = V + level**2
    return (V * x_bar + level**2 * M * np.tanh(M * x_bar / spread)) / spread


@pytest.mark.parametrize("t", [100, 300, 500, 700, 900])
def test_a_mixture_leaves_what_quadrature_and_an_ode_solver_say(t: int) -> None:
    """Fig. 9 on a Gaussian mixture, from formulas that share no code with the denoiser: random
    noise leaves the least mean square error of x0 (E x0^2 - E E[x0 | x]^2, by quadrature), and
    inversion the distance of x0 from what its exact flow is denoised to."""
    level = float(sigma(TABLE[t]))
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    weights = weights / weights.sum()
    noisy = M + math.sqrt(V + level**2) * nodes  # x_bar; the other peak is its mirror image
    random = M**2 + V - float(weights @ two_peaks_denoised(noisy, level) ** 2)
    few, shares = np.polynomial.hermite_e.hermegauss(40)
    clean = M + math.sqrt(V) * few

    def flow(s: float, x_bar: np.ndarray) -> np.ndarray:
        return s * (x_bar - M * np.tanh(M * x_bar / (V + s**2))) / (V + s**2)

    # At level 0 the flow stands still, so that the first Euler step, to t = 1, moves nothing.
    reached = solve_ivp(flow, (float(sigma(TABLE[1])), level), clean, rtol=1e-8, atol=1e-10).y[
        :, -1
    ]
    left = (two_peaks_denoised(reached, level) - clean) ** 2
    inverted = float(shares @ left) / float(shares.sum())

    quantiles = norm.ppf((np.arange(2000) + 0.5) / 2000)  # of one peak, evenly
    peak = torch.tensor(M + math.sqrt(V) * quantiles).reshape(-1, 1, 1, 1)
    means = torch.tensor([-M, M], dtype=torch.float64).reshape(2, 1, 1, 1)
    world = GaussianMixture(means, torch.full((2,), V, dtype=torch.float64))
    peaks = on(world, torch.cat([peak, -peak]))
    found, _ = error(peaks, RandomNoise(), 1.0, t)
    assert found == pytest.approx(random, rel=0.08)  # of 4,000 noises
    fine = DDIMInversion(cfg_scale=1.0, steps=t, tau_max=0.0, entropy=0.0)
    found, _ = error(peaks, fine, 1.0, t)
    assert found == pytest.approx(inverted, rel=0.03)  # every time of the table is a step
    assert inverted < random


def test_on_mini_inversion_is_below_random_at_every_time() -> None:
    """With minus the forward guidance, as in the paper. At 0 it is not at t = 0.9."""
    config = load("mini_2d", ["prompt=a red mug"])
    mug = bench(build.denoiser(config.model, torch.device("cpu")), config, 4)
    noise = dataclasses.replace(inversion(mug), cfg_scale=-mug.cfg_scale)
    for share in SHARES:
        random, _ = error(mug, RandomNoise(), mug.cfg_scale, round(share * 1000))
        inverted, _ = error(mug, noise, mug.cfg_scale, round(share * 1000))
        assert inverted < random, share


def test_the_inversion_of_the_figures_has_no_randomness() -> None:
    mug = on(gaussian(torch.zeros(SHAPE).double(), 1.0), torch.zeros(1, *SHAPE).double())
    assert inversion(mug) == DDIMInversion(cfg_scale=-7.5, tau_max=0.0, entropy=0.0)
    other = on(mug.denoiser, mug.clean, noise="random")  # type: ignore[arg-type]
    assert inversion(other).cfg_scale == -7.5


def test_only_random_noise_is_turned_from_that_of_ddim_on_one_gaussian() -> None:
    """There DDIM moves along one line, and inversion finds it; two independent noises have a cosine
    of mean 0 and variance 1 / D."""
    mean = torch.zeros(SHAPE, dtype=torch.float64)
    few = on(gaussian(mean, VARIANCE), mean.expand(400, *SHAPE))
    rows = FIG4.measure(few, lambda said: None).rows
    assert len(rows) == 3 * (SAMPLING_STEPS - 1)
    for row in rows:
        if row["kappa"] == "random":
            error = 1 / math.sqrt(mean.numel() * 400)
            assert row["turn"] == pytest.approx(1.0, abs=5 * error)
        elif row["kappa"] == "ddim inversion" and row["t"] < 0.2:
            # One Euler step from level 0, where a clean picture shows no noise, finds none.
            assert row["turn"] == 1.0
        else:
            assert row["turn"] == pytest.approx(0.0, abs=1e-9)
            assert row["kappa"] == "ddim inversion" or row["x0_off"] == 0.0


def test_fig4_walks_along_ddim() -> None:
    """Whatever DDIM shows its model from the same noise, the figure shows it too."""
    rng = torch.Generator().manual_seed(2)
    means = torch.randn((3, *SHAPE), generator=rng, dtype=torch.float64)
    variances = torch.tensor([0.2, 0.3, 0.1], dtype=torch.float64)
    shown: list[Tensor] = []

    class Seen(GaussianMixture):
        def predict_noise(self, x_t: Tensor, t: Tensor, condition: Any) -> Tensor:
            shown.append(x_t[:2])
            return super().predict_noise(x_t, t, condition)

    few = on(Seen(means, variances, names={"mug": [0, 1]}), means[:2], guidance={"cfg_scale": 1.0})
    FIG4.measure(few, lambda said: None)
    figure, shown[:] = torch.stack(shown), []
    noise = normal_like(few.clean, torch.Generator().manual_seed(few.seed))
    ddim_sample(few.predictor(), noise, SAMPLING_STEPS, 1.0)
    assert len(shown) == SAMPLING_STEPS
    for x_t in shown:
        assert float((figure - x_t).abs().amax(dim=(1, 2, 3, 4)).min()) < 1e-9


@pytest.mark.parametrize("degrees", [0.0, 30.0, 90.0, 180.0])
def test_turn_is_one_minus_the_cosine(degrees: float) -> None:
    angle = math.radians(degrees)
    a = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64).reshape(1, 4, 1, 1)
    b = torch.tensor([math.cos(angle), math.sin(angle), 0, 0], dtype=torch.float64)
    assert float(turned(2 * a, 3 * b.reshape(1, 4, 1, 1))) == pytest.approx(
        1 - math.cos(angle), abs=1e-12
    )


def test_fig10_pairs(known: Bench) -> None:
    result = FIG10.measure(known, lambda said: None)
    names = list(dict.fromkeys(row["kappa"] for row in result.rows))
    forward = ("7.5", "0", "1", "7.5", "7.5", "7.5")
    assert names == [
        f"inversion {a}, forward {b}"
        for a, b in zip(("7.5", "0", "1", "0", "-7.5", "-6.5"), forward, strict=True)
    ]
    # One Gaussian knows no words: guidance changes nothing, and all six agree.
    for share in SHARES:
        values = [row["error"] for row in result.rows if row["t"] == share]
        assert max(values) == pytest.approx(min(values), rel=1e-6)


def test_root_finders_by_price_are_what_one_gaussian_says() -> None:
    """On one Gaussian eq. 8 is linear with one eigenvalue, and the exact inversion is known:
    kappa = (F - 1) d / sigma with F = sqrt(1 + sigma^2 / lambda)."""
    mean = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    bench = on(
        gaussian(mean, VARIANCE), mean + torch.linspace(-1, 1, 64).double().reshape(4, *SHAPE)
    )
    told: list[str] = []
    rows = root_finders.measure(bench, told.append)
    by_price = {(row["kappa"], row["network_samples"]): row for row in rows}
    # With guidance a prediction costs two samples; one Gaussian knows no words.
    assert by_price["Anderson", 2]["error"] > 1e-2
    for n in (4, 8, 16, 32):
        assert by_price["Anderson", n]["error"] < 1e-20
    for n in (1, 2, 3):
        assert by_price["Newton-Krylov", 10 * n]["error"] < 1e-20
    assert by_price["fixed point", 32]["error"] > 1e-6
    assert by_price["random", 0]["distance"] > 0.5
    for steps in (1, 2, 5, 20):
        away = []
        for t in (300, 500, 700, 900):
            one = torch.tensor([t])
            levels = [0.0, *(float(sigma(TABLE[k])) for k in DDIMInversion(steps=steps)
                             .times(one, one, TABLE)[0, 1:])]  # fmt: skip
            growth = math.prod(
                (VARIANCE + a * b) / (VARIANCE + a * a) for a, b in itertools.pairwise(levels)
            )
            whole = math.sqrt(1 + levels[-1] ** 2 / VARIANCE)
            away.append(abs(growth - whole) / (whole - 1))
        found = by_price["inversion, Euler", 2 * steps]["distance"]
        # The exact inversion is made in many steps, not in none.
        assert found == pytest.approx(sum(away) / 4, rel=5e-3)
    heun = [by_price["inversion, Heun, even in sigma^(1/3)", 4 * n]["distance"] for n in (5, 20)]
    assert heun[0] > 5 * heun[1]
    assert not [said for said in told if "diverged" in said]


def test_what_diverges_is_said_and_left_out() -> None:
    """A steep world under guidance: the fixed-point map expands, and a plot has no room for it."""
    means = torch.stack([torch.zeros(SHAPE), torch.ones(SHAPE)]).double()
    world = GaussianMixture(
        means, torch.tensor([1.0, 0.01], dtype=torch.float64), names={"mug": [1]}
    )
    bench = on(world, 0.5 * torch.ones(2, *SHAPE).double(), guidance={"cfg_scale": 7.5})
    told: list[str] = []
    rows = root_finders.measure(bench, told.append)
    left_out = [said for said in told if said.startswith("left out: fixed point at 32")]
    assert len(left_out) == 1
    assert all(row["error"] < root_finders.DIVERGED for row in rows)
    names = {row["kappa"] for row in rows}
    assert {"Anderson", "fixed point", "inversion, Euler"} <= names


def test_round_trip_loses_what_its_factor_says() -> None:
    """There and back multiplies the offset from the mean by prod(1 - ...) (oracle 2)."""
    mean = 0.1 * torch.ones(SHAPE).double()
    clean = mean + 0.2 * torch.linspace(-1, 1, 16).double().reshape(1, *SHAPE)
    trip = on(gaussian(mean, VARIANCE), clean)
    rows = {
        row["steps"]: row["psnr_db"]
        for row in FIG18.measure(trip, lambda said: None).rows
        if row["guidance"] == "inversion 0, forward 0"
    }
    for steps in STEPS:
        levels = [0.0]
        levels += [float(sigma(TABLE[round(k * 999 / steps)])) for k in range(1, steps + 1)]
        factor = math.prod(
            1 - VARIANCE * (b - a) ** 2 / ((VARIANCE + a * a) * (VARIANCE + b * b))
            for a, b in itertools.pairwise(levels)
        )
        again = trip.denoiser.decode(mean + factor * (clean - mean))
        expected = float(psnr(again, trip.denoiser.decode(clean)))
        assert rows[steps] == pytest.approx(expected, abs=1e-3)
    assert rows[10] < rows[30] < rows[100] < rows[300]


def test_random_noise_hides_a_torn_picture_of_one_gaussian_and_inversion_does_not(
    known: Bench,
) -> None:
    """With data N(m, v I) eps is sqrt(1 - a) (x - sqrt(a) m) / (a v + 1 - a). Under random noise
    its mean square has a share of the picture that falls with a; the ODE stretches every offset
    from m alike, so that a picture stays as unlikely as it was at every t."""
    z = bad_pictures.torn(known.clean)
    rows = bad_pictures.hidden(known, lambda said: None).rows
    half = known.clean.shape[-1] // 2
    assert torch.equal(z[..., :half], known.clean[..., :half])
    assert torch.equal(z[:, :, 1:, half:], known.clean[:, :, :-1, half:])
    assert isinstance(known.denoiser, GaussianMixture)
    off = float((z - known.denoiser.means[0]).square().mean())
    found = {(row["picture, kappa"], row["t"]): row["noise_seen"] for row in rows}
    for share in SHARES:
        a = float(TABLE[round(share * 1000)])
        expected = (a * off + 1 - a) / (a * VARIANCE + 1 - a)
        assert found["torn, random", share] == pytest.approx(expected, rel=0.03)
        own = found["its own, ddim inversion", share]
        inverted = found["torn, ddim inversion", share]
        assert inverted / own == pytest.approx(off / VARIANCE, rel=0.05)
    assert found["torn, random", 0.1] > 1.9
    assert found["torn, random", 0.9] == pytest.approx(1.0, abs=0.1)


def test_the_bench_is_made_of_the_models_own_samples() -> None:
    mean = torch.full(SHAPE, 0.4, dtype=torch.float64)
    made = bench(gaussian(mean, 0.05), from_plain({"prompt": "a mug", "resolution": 8}), 400)
    assert made.clean.shape == (400, *SHAPE)
    # DDIM in few steps shrinks: the factor of its Euler steps, from noise of variance 1.
    levels = [float(sigma(TABLE[t])) for t in ddim_times(SAMPLING_STEPS, 1000)] + [0.0]
    factor = math.prod((0.05 + a * b) / (0.05 + a * a) for a, b in itertools.pairwise(levels))
    spread = factor / float(TABLE[-1].sqrt())
    assert float(made.clean.mean()) == pytest.approx(0.4 * (1 - factor), abs=0.01)
    assert float(made.clean.std()) == pytest.approx(spread, rel=0.02)


def test_detail_and_saturation_of_known_pictures() -> None:
    stripes = torch.tensor([0.0, 1.0]).repeat(4).expand(1, 3, 8, 8)
    assert float(detail(stripes)) == pytest.approx(1.0)  # across only
    assert float(detail(stripes.mean(dim=3, keepdim=True).expand(1, 3, 8, 8))) == 0.0
    assert float(saturation(stripes)) == 0.0
    red = torch.tensor([0.9, 0.1, 0.3]).reshape(1, 3, 1, 1).expand(2, 3, 4, 4)
    assert saturation(red).tolist() == pytest.approx([0.8, 0.8])


def test_one_step_pictures_of_the_inverted_noise_are_nearest_at_low_noise(known: Bench) -> None:
    """On Gaussian data nothing depends on guidance, and PSNR falls as t rises."""
    few = on(known.denoiser, known.clean[:200] * 0.2)
    rows = FIG6.measure(few, lambda said: None).rows
    for kappa in ("random", "ddim inversion"):
        values = [row["psnr_db"] for row in rows if row["kappa"] == kappa]
        assert values == sorted(values)  # the moments fall


def test_kappa_is_never_the_noise_that_its_picture_was_drawn_from() -> None:
    """With it random noise would look far better than it is: the samples solve eq. 8 for it."""
    seen = []

    class Spy(GaussianMixture):
        def predict_noise(self, x_t, t, condition):  # type: ignore[no-untyped-def]
            seen.append(x_t.clone())
            return super().predict_noise(x_t, t, condition)

    model = Spy(torch.zeros(1, *SHAPE), torch.ones(1))
    made = bench(model, from_plain({"prompt": "a mug", "resolution": 8, "seed": 5}), 3)
    first = seen[0][:3]  # of DDIM: pure noise
    t = torch.tensor([500] * 3)
    kappa = made.noised(RandomNoise(), made.clean, t, made.predictor(), made.rng()).kappa
    assert float(torch.corrcoef(torch.stack([first.flatten(), kappa.flatten()]))[0, 1].abs()) < 0.5
    assert float(first.std()) == pytest.approx(1.0, abs=0.3)


def test_files_hold_the_same_numbers(tmp_path: Path) -> None:
    rows = [{"kind": k, "t": t, "error": v} for k, t, v in
            (("a", 0.1, 1.0), ("a", 0.2, 0.1), ("b", 0.1, 2.5))]  # fmt: skip
    result = Result(rows, "kind", "t", "error", log=True)
    paths = write(result, "fig0", "nothing", tmp_path, {"prompt": "a mug"})
    assert [path.name for path in paths] == ["fig0.json", "fig0.csv", "fig0.svg"]
    report = json.loads(paths[0].read_text())
    assert report["rows"] == rows
    assert report["prompt"] == "a mug"
    with paths[1].open() as stream:
        read = [{**row, "t": float(row["t"]), "error": float(row["error"])}
                for row in csv.DictReader(stream)]  # fmt: skip
    assert read == rows
    root = ElementTree.parse(paths[2]).getroot()
    assert len(root.findall(".//{*}circle")) == 3
    assert table(result).splitlines()[1:] == ["0.1    1  2.5", "0.2  0.1    -"]


def test_a_logarithmic_plot_puts_equal_ratios_at_equal_distances() -> None:
    drawn = plot([Line("a", [(0.0, 100.0), (1.0, 10.0), (2.0, 1.0), (3.0, 0.0)])], "x", "y", True)
    heights = [float(c.attrib["cy"]) for c in ElementTree.fromstring(drawn).iter("circle")]
    assert len(heights) == 3  # zero has no logarithm
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=0.11)
    assert heights[0] < heights[1]  # down is less
    assert "nothing to draw" in plot([Line("a", [(0.0, math.nan)])], "x", "y")


@pytest.mark.parametrize("count", [5, 6, 13])
def test_no_two_lines_of_a_plot_look_alike(count: int) -> None:
    """And the names of many stand under the plot, where no line is."""
    lines = [Line(f"line {i}", [(0.0, i), (9.0, 1.0)]) for i in range(count)]
    drawn = ElementTree.fromstring(plot(lines, "x", "y"))
    looks = [(e.get("stroke"), e.get("stroke-dasharray")) for e in drawn.iter("polyline")]
    assert len(set(looks)) == len(looks) == count
    named = {e.text: float(e.get("y", 0)) for e in drawn.iter("text") if e.text in
             {line.label for line in lines}}  # fmt: skip
    assert len(named) == count
    height = float(drawn.get("height", 0))
    if count > 5:
        axis = max(float(e.get("y", 0)) for e in drawn.iter("text") if e.text == "x")
        assert min(named.values()) > axis
    assert max(named.values()) < height


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_runs_from_the_command_line(
    sdi_gs: Run, fast: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What it comes to with its own many steps is measured elsewhere.
    monkeypatch.setattr("sdi_gs.experiments.round_trip.STEPS", (4, 8))
    monkeypatch.setattr("sdi_gs.experiments.root_finders.STEPS", (1, 2))
    monkeypatch.setattr("sdi_gs.experiments.root_finders.EXACT_STEPS", 4)
    out = tmp_path / name
    said = sdi_gs("experiment", name, "a mug", "--config", fast, "--samples", 2, "--out", out)
    assert said.code == 0, said.err
    assert EXPERIMENTS[name].shows in said.out
    suffixes = {path.suffix for path in out.iterdir()}
    assert suffixes - {".png"} == {".json", ".csv", ".svg"}
    assert (".png" in suffixes) == (name in ("fig1", "fig3", "fig4", "fig6"))
    report = json.loads((out / f"{name}.json").read_text())
    for row in report["rows"]:
        assert all(math.isfinite(v) for v in row.values() if not isinstance(v, str))
    again = sdi_gs("experiment", name, "--config", fast, "--out", out)
    assert again.code == 2
    assert "exists" in again.err or "not empty" in again.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("fig99",), "experiment fig99: did you mean 'fig9'?"),
        (("fig9", "--samples", "0"), "--samples 0: allowed is 1 or more"),
        (("fig9", " "), "the prompt is empty"),
    ],
)
def test_bad_input_is_told(
    sdi_gs: Run, fast: Path, tmp_path: Path, arguments: tuple[str, ...], expected: str
) -> None:
    out = tmp_path / "out"
    said = sdi_gs("experiment", *arguments, "--config", fast, "--out", out)
    assert said.code == 2
    assert expected in said.err
    assert not out.exists()


def test_the_list_says_what_each_shows(sdi_gs: Run) -> None:
    said = sdi_gs("experiment", "list")
    assert said.code == 0
    assert all(entry.shows in said.out for entry in EXPERIMENTS.values())
