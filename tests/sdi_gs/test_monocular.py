# SPDX-License-Identifier: Apache-2.0
"""Stein's control variate made of depth or normals: mean zero, less variance, and its estimator."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from representations.cameras import look_at, pinhole
from representations.interface import Cameras
from sdi_gs.artefacts import archive
from sdi_gs.config import guidances, load
from sdi_gs.diffusion.schedule import scaled_linear_alpha_bar, sigma
from sdi_gs.guidance.distillation import GuidanceConfig, ScoreDistillation, TimeConfig
from sdi_gs.guidance.monocular import Monocular, Target, agreement, target
from sdi_gs.guidance.noise import NoiseStrategy, RandomNoise
from sdi_gs.guidance.prompts import PromptConfig, PromptSet
from sdi_gs.guidance.stein import ControlVariate, Stein, SteinConfig, _solved
from sdi_gs.guidance.update import UpdateInput, UpdateRule
from sdi_gs.guidance.viewpoints import Seen, Viewpoints
from sdi_gs.ramp import Ramp

from .doubles import Given, Latent, around, before_a_wall, randn, rng

SIZE, BALLS = 8, 4
TABLE = scaled_linear_alpha_bar()
KINDS = pytest.mark.parametrize("kind", ["depth", "normal"])


def balls(pixels: int = SIZE) -> tuple[Tensor, Viewpoints]:
    """Latents of four pictures of a ball that is elsewhere in each, and what was seen: three
    channels are normals, the fourth is closeness."""
    views = around(*(90.0 * k for k in range(BALLS)))
    at = views.camera_to_world[:, :3, 3]
    lens = pinhole(torch.ones(BALLS), pixels, pixels)
    cameras = Cameras(look_at(at, torch.zeros_like(at)), lens, pixels, pixels)
    side = torch.linspace(-1.0, 1.0, pixels, dtype=torch.float64)
    aside = 0.4 * torch.rand(BALLS, 2, 1, 1, generator=rng(1)).double() - 0.2
    right, down = (side - aside[:, :1]) / 0.7, (side[:, None] - aside[:, 1:]) / 0.7
    solid = (right.square() + down.square() < 1.0).double()
    near = (1.0 - right.square() - down.square()).clamp(min=0.0).sqrt()
    normal = torch.cat([right.expand_as(near), -down.expand_as(near), near], dim=1) * solid
    depth = (2.0 - 0.7 * near) * solid
    axes = views.camera_to_world[:, :3, :3]
    world = torch.einsum("bij,bjhw->bihw", axes, normal)
    latents = torch.cat([normal, 1.5 * (2.0 - depth) * solid], dim=1)
    return latents, replace(views, seen=Seen(depth, solid, cameras, world))


def distillation(
    model: Latent, update: UpdateRule | None = None, noise: NoiseStrategy | None = None
) -> ScoreDistillation:
    """t anywhere in DreamFusion's range, for each view."""
    prompts = PromptSet(model, "a mug", config=PromptConfig(view_dependent=False))
    times = TimeConfig(high=Ramp(0.98, 0.98), low=Ramp(0.02, 0.02))
    return ScoreDistillation(
        model, prompts, noise or RandomNoise(), update=update, steps=10,
        config=GuidanceConfig(cfg_scale=Ramp(1.0, 1.0), t=times),
    )  # fmt: skip


def world(latents: Tensor) -> Latent:
    """A mixture of two of the pictures."""
    return Latent(latents[:2], torch.tensor([0.3, 0.3], dtype=torch.float64))


def stein(model: Latent, noise: NoiseStrategy | None = None, **settings: Any) -> Stein:
    rule = ControlVariate(SteinConfig(**settings))
    return Stein(distillation(model, rule, noise), rule)


def taught(latents: Tensor, views: Viewpoints, steps: int, **settings: Any) -> Stein:
    method = stein(world(latents), **settings)
    for k in range(steps):
        method(latents, views, 0, rng(k))
    return method


# --- what phi is ----------------------------------------------------------------------------------


def blocks(x: np.ndarray, size: int) -> np.ndarray:
    """Means over squares of pixels, [..., size, size]."""
    side = x.shape[-1] // size
    return x.reshape(*x.shape[:-2], size, side, size, side).mean(axis=(-3, -1))


def test_phi_of_depth_is_pearson_of_closeness() -> None:
    """By numpy's corrcoef, on pictures that are larger than the latents; blind to scale and
    offset."""
    _, views = balls(24)
    assert views.seen is not None
    seen = replace(views.seen, alpha=0.5 * views.seen.alpha)
    found = randn(BALLS, 1, SIZE, SIZE)
    wanted = target(seen, "depth", (SIZE, SIZE))
    depth = seen.depth.numpy()
    closeness = blocks(np.where(depth > 0, 0.5 / np.where(depth > 0, depth, 1.0), 0.0), SIZE)
    expected = [
        np.corrcoef(a.ravel(), b.ravel())[0, 1]
        for a, b in zip(found.numpy(), closeness, strict=True)
    ]
    assert agreement(found, wanted).tolist() == pytest.approx(expected, abs=1e-6)
    assert agreement(5.0 * found - 3.0, wanted).tolist() == pytest.approx(expected, abs=1e-6)
    assert min(abs(e) for e in expected) > 1e-4


def test_phi_of_normals_is_their_cosine_on_the_surface() -> None:
    """In the camera's frame, where the ball looks alike from everywhere."""
    _, views = balls(24)
    assert views.seen is not None
    wanted = target(views.seen, "normal", (SIZE, SIZE))
    found = randn(BALLS, 3, SIZE, SIZE)
    axes = views.camera_to_world[:, :3, :3].numpy()
    inside = blocks(np.einsum("bij,bihw->bjhw", axes, views.seen.normal.numpy()), SIZE)
    cover = blocks(views.seen.alpha.numpy()[:, 0], SIZE)
    dot = (found.numpy() * inside).sum(1)
    length = np.linalg.norm(found.numpy(), axis=1) * np.linalg.norm(inside, axis=1)
    cosine = np.where(length > 0, dot / np.where(length > 0, length, 1.0), 0.0)
    expected = (cosine * cover).sum((1, 2)) / cover.sum((1, 2))
    assert agreement(found, wanted).tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert agreement(wanted.values, wanted).tolist() == pytest.approx([1.0] * BALLS, abs=1e-5)
    middle = wanted.values[:, :, SIZE // 2, SIZE // 2]
    assert float((middle[:, 2] / middle.norm(dim=1)).min()) > 0.8  # towards the viewer


@KINDS
def test_where_there_is_nothing_to_see_phi_is_flat(kind: Any) -> None:
    """A wall for depth, no surface for normals: phi is -1, and the first step is that of SDS."""
    latents, _ = balls()
    views = before_a_wall(around(*[0.0] * BALLS), SIZE)
    assert views.seen is not None
    if kind == "normal":
        views = replace(views, seen=replace(views.seen, alpha=0.0 * views.seen.alpha))
    model = world(latents)
    ours = stein(model, baseline=kind)(latents, views, 0, rng(5)).target
    theirs = distillation(model)(latents, views, 0, rng(5)).target
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    nothing = Target(torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4))
    assert agreement(torch.zeros(2, 3, 4, 4), nothing).tolist() == [0.0, 0.0]


# --- Stein's identity -----------------------------------------------------------------------------


@KINDS
def test_the_variate_has_mean_zero_by_quadrature(kind: Any) -> None:
    """E[kappa phi - d phi / d kappa] = 0 over every single number of kappa, whatever the others
    are: by Gauss and Hermite's rule, with an estimator that has learned something."""
    latents, views = balls()
    nodes, weights = np.polynomial.hermite_e.hermegauss(48)
    share = torch.tensor(weights / weights.sum())
    seen: list[tuple[Tensor, Tensor]] = []

    class Spy(ControlVariate):
        def variate(self, given: UpdateInput) -> Tensor:
            value = super().variate(given)
            assert self.estimator is not None
            phi = self.estimator.baseline(given.viewpoints)(given.noised.x_t)
            seen.append((value, phi.detach()))
            return value

    rule = Spy(SteinConfig(baseline=kind))
    rule.estimator = taught(latents, views, 60, baseline=kind, rate=3e-3).rule.estimator
    one = [0] * len(nodes)
    assert views.seen is not None
    first = views.seen[:1]
    many = Seen(
        first.depth[one], first.alpha[one],
        replace(first.cameras, world_to_cam=first.cameras.world_to_cam[one]), first.normal[one],
    )  # fmt: skip
    same = around(*[0.0] * len(nodes))
    for place in (0, 90, 200):
        kappa = randn(1, *latents.shape[1:], seed=place).flatten(1)[one]
        kappa[:, place] = torch.tensor(nodes)
        strategy = Given(kappa.reshape(-1, *latents.shape[1:]))
        method = distillation(world(latents), rule, strategy)
        method.config = replace(method.config, t=TimeConfig(high=Ramp(0.2, 0.2)))
        method(latents[one], replace(same, seen=many), 0, rng())
        variate, phi = seen.pop()
        mean = float((share * variate.flatten(1)[:, place]).sum())
        unsloped = float((share * phi * torch.tensor(nodes)).sum())
        assert abs(unsloped) > 1e-4
        assert abs(mean) < 0.02 * abs(unsloped)


@KINDS
def test_variance_is_less_than_that_of_sds(kind: Any) -> None:
    """Of one step at any t, on a mixture of Gaussians: the estimator alone below SDS, and with the
    constant beside it below that of the constant too."""
    latents, views = balls()

    def variance(method: Stein | ScoreDistillation) -> float:
        inner = method.inner if isinstance(method, Stein) else method
        directions = []
        for k in range(25):
            guided = inner(latents, views, 0, rng(5000 + k))
            length = sigma(TABLE[guided.t]).reshape(-1, 1, 1, 1)
            directions.append((latents - guided.target) / length)
        return float(torch.stack(directions).var(0).mean())

    plain = variance(distillation(world(latents)))
    constant, alone, both = (
        variance(taught(latents, views, 45, decay=0.98, **settings))
        for settings in ({}, {"baseline": kind}, {"baseline": kind, "beside_constant": True})
    )
    assert alone < 0.6 * plain
    assert both < 0.8 * constant
    assert constant < plain


def test_two_weights_are_least_squares() -> None:
    """By numpy's lstsq; a variate that is the other again counts for nothing by itself."""
    first, second = randn(500, seed=1), randn(500, seed=2)
    second = second + 0.7 * first
    wanted = 0.4 * first - 0.3 * second + randn(500, seed=3)

    def solved(*variates: Tensor) -> Tensor:
        rows = torch.stack(variates)
        gram = torch.einsum("in,jn->ij", rows, rows) / 500
        return _solved((rows @ wanted / 500)[:, None], gram[:, :, None]).flatten()

    table = torch.stack([first, second], dim=1).numpy()
    expected = np.linalg.lstsq(table, wanted.numpy(), rcond=None)[0]
    assert solved(first, second).tolist() == pytest.approx(expected.tolist(), rel=1e-9)
    twice = solved(first, -first)
    assert float(twice[0] - twice[1]) == pytest.approx(float(solved(first)[0]), rel=1e-9)
    assert abs(float(twice[1])) < 1e-9


# --- the estimator --------------------------------------------------------------------------------


@KINDS
def test_the_estimator_learns_to_agree(kind: Any) -> None:
    latents, views = balls()
    estimator = Monocular(kind, 3e-3)
    before = float(estimator.baseline(views)(latents).detach().mean())
    for _ in range(60):
        estimator.learn(latents, views)
    after = float(estimator.baseline(views)(latents).detach().mean())
    assert before < -0.3
    assert after > -0.1


@KINDS
def test_a_view_alone_is_compared_with_what_its_own_camera_saw(kind: Any) -> None:
    latents, views = balls()
    estimator = Monocular(kind, 1e-3)
    together = estimator.baseline(views)(latents).detach()
    for k in range(BALLS):
        alone = estimator.baseline(views[k : k + 1])(latents[k : k + 1]).detach()
        torch.testing.assert_close(alone[0], together[k], rtol=0, atol=1e-6)
    assert float(together.std()) > 1e-3


@KINDS
def test_what_is_asked_has_not_seen_the_noise_of_the_step(kind: Any) -> None:
    """The answer is that of the estimator and weights before; they change afterwards."""
    latents, views = balls()
    method = taught(latents, views, 2, baseline=kind, rate=1e-2)
    before = method.state_dict()
    other = stein(world(latents), baseline=kind, rate=1e-2)
    other.load_state_dict(before)
    answer = method(latents, views, 0, rng(9)).target
    assert torch.equal(other.inner(latents, views, 0, rng(9)).target, answer)
    now = method.state_dict()["estimator"]["weights"]
    assert not torch.equal(now["0.weight"], before["estimator"]["weights"]["0.weight"])


@pytest.mark.parametrize("beside", [False, True])
@KINDS
def test_a_resumed_run_goes_on_bit_for_bit(kind: Any, beside: bool) -> None:
    """Through a file that holds tensors and plain data; and once more before the first step."""
    settings = {"baseline": kind, "rate": 1e-2, "beside_constant": beside}
    latents, views = balls()
    whole, cut = (taught(latents, views, n, **settings) for n in (5, 3))
    for _ in range(2):
        file = io.BytesIO()
        torch.save(cut.state_dict(), file)
        file.seek(0)
        cut = stein(world(latents), **settings)
        cut.load_state_dict(archive.load(file, sums=True))
    for k in (3, 4):
        cut(latents, views, 0, rng(k))
    ours, theirs = (m(latents, views, 0, rng(9)).target for m in (cut, whole))
    assert torch.equal(ours, theirs)
    assert stein(world(latents), **settings).state_dict() == {}
    with pytest.raises(ValueError, match="its estimator"):
        stein(world(latents)).load_state_dict(cut.state_dict())


def test_the_moments_of_older_checkpoints_are_read() -> None:
    latents, views = balls()
    method = taught(latents, views, 3)
    old = {name: value.flatten() for name, value in method.state_dict().items()}
    other = stein(world(latents))
    other.load_state_dict(old)
    ours, theirs = (m(latents, views, 0, rng(9)).target for m in (other, method))
    assert torch.equal(ours, theirs)


# --- refusals -------------------------------------------------------------------------------------


@KINDS
def test_pictures_of_no_shape_are_refused(kind: Any, sdi_gs: Any, tmp_path: Any) -> None:
    latents, views = balls()
    with pytest.raises(ValueError, match=r"show none; write update\.baseline=constant$"):
        taught(latents, replace(views, seen=None), 1, baseline=kind)
    name = f"stein_{kind}"
    assert load("mini", ["prompt=a mug"], name).update.baseline == kind  # type: ignore[union-attr]
    said = sdi_gs("generate2d", "a red mug", "--guidance", name, "--out", tmp_path / "no")
    assert said.code == 2
    assert said.err.rstrip().endswith("--guidance stein, whose baseline is the constant")
    assert "stein" in guidances()
    assert not (tmp_path / "no").exists()
