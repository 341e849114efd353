# SPDX-License-Identifier: Apache-2.0
"""Voxels of latents: the contract, and what a picture of them is, in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from representations.cameras import orbit
from representations.interface import HasLatents
from representations.latent_voxels import LatentVoxelConfig, LatentVoxelRenderer

from .contract import RendererContract
from .helpers import cameras_around, cube_turns, seeded

# Of colours that stay between 0 and 1, where clamping has no say.
COLOURS = ((0.2, 0.0, 0.1), (0.0, 0.2, 0.0), (0.1, 0.0, 0.2), (0.0, 0.1, 0.1), (0.1, 0.0, -0.1))
SMALL = LatentVoxelConfig(size=10, radius=1.0, samples=24, blob_radius=0.8, blob_strength=4.0,
                          colours=COLOURS)  # fmt: skip


class TestLatentVoxels(RendererContract):
    def make(self):
        renderer = LatentVoxelRenderer(SMALL)
        with torch.no_grad():
            noise = torch.randn(renderer.latents.shape, generator=seeded(3))
            renderer.latents.copy_(0.5 * noise)
        return renderer

    def parameters(self, renderer):
        return [renderer.volume, renderer.latents, *renderer.environment.parameters()]

    def motions(self):
        return cube_turns()

    def prepare_to_move(self, renderer):
        with torch.no_grad():
            renderer.volume[..., :3, :, :] = -20.0  # one side is empty

    def move(self, renderer, rotation, shift):
        assert not shift.any()
        size = renderer.config.size
        along = torch.arange(size)
        cells = torch.stack(torch.meshgrid(along, along, along, indexing="ij"), dim=-1)
        middle = (size - 1) / 2
        x, y, z = ((cells - middle) @ rotation + middle).round().long().unbind(-1)
        with torch.no_grad():
            for parameter in (renderer.volume, renderer.latents):
                parameter.copy_(parameter[:, :, x, y, z].clone())


def even(density: float, latents: list[float], **settings: object) -> LatentVoxelRenderer:
    """The same everywhere in the cube."""
    renderer = LatentVoxelRenderer(LatentVoxelConfig(
        **{"size": 6, "samples": 64, "colours": COLOURS, **settings}))  # fmt: skip
    with torch.no_grad():
        renderer.volume.fill_(math.log(math.expm1(density)))  # what the softplus makes density of
        renderer.latents.copy_(torch.tensor(latents)[None, :, None, None, None])
    return renderer


def test_a_cube_of_fog_is_what_beers_law_says() -> None:
    """A ray straight through the middle: alpha = 1 - exp(-density * 2 radius), and its latents are
    the fog's and those of the background by that share; depth is the mean of the exponential."""
    density, radius, values = 0.7, 0.8, [0.3, -1.0, 0.5, 2.0]
    white = (1.0, 2.0, -0.5, 0.25)
    renderer = even(density, values, radius=radius, white=white)
    assert isinstance(renderer, HasLatents)
    cameras = cameras_around(1, (33, 33), 4.0)
    straight = cameras.with_values(cameras.world_to_cam.clone(), cameras.intrinsics)
    # From +x along -x: right is +y, down is -z.
    straight.world_to_cam[0] = torch.tensor(
        [[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, -1.0, 0.0], [-1.0, 0.0, 0.0, 4.0], [0.0, 0.0, 0.0, 1.0]]
    )
    with torch.no_grad():
        render, trace = renderer.render(straight, torch.ones(1, 3))
    middle = (0, slice(None), 16, 16)
    alpha = 1.0 - math.exp(-density * 2 * radius)
    assert float(render.alpha[middle]) == pytest.approx(alpha, abs=1e-5)
    expected = alpha * torch.tensor(values) + (1 - alpha) * torch.tensor(white)
    assert render.latents is not None
    assert torch.allclose(render.latents[middle], expected, atol=1e-4)
    span = 2 * radius
    mean = 1 / density - span * math.exp(-density * span) / alpha
    assert float(render.depth[middle]) == pytest.approx(4.0 - radius + mean, abs=5e-3)
    matrix = torch.tensor(COLOURS)
    colour = 0.5 * (torch.tensor(values) @ matrix[:4] + matrix[4]) + 0.5
    shown = alpha * colour + (1 - alpha)
    assert torch.allclose(render.rgb[middle], shown, atol=1e-4)
    # emptiness, of the samples of that one ray
    weights = trace.weights[0, 16, 16]
    step = 2 * radius / 64
    along = torch.arange(64) * step
    assert torch.allclose(weights, (-density * along).exp() * (1 - math.exp(-density * step)),
                          atol=1e-6)  # fmt: skip
    term = float(renderer.terms(trace, ["emptiness"])["emptiness"])
    assert term == pytest.approx(float((10 * trace.weights + 1).log().mean()))


def test_what_is_in_front_hides_what_is_behind_and_depth_is_along_the_axis() -> None:
    """A wall at x = 0.3 or so, seen from +x: its own latents, and the same depth in every pixel."""
    renderer = even(1e-6, [0.0] * 4, size=20, radius=0.8, samples=400)
    with torch.no_grad():
        renderer.volume[:, :, 12:14] = 60.0
        renderer.latents[:, :, 10:] = 1.0
        renderer.latents[:, :, :10] = -1.0
        renderer.volume[:, :, :8] = 60.0
        cameras = orbit(*(torch.tensor([x]) for x in (0.0, 0.0, 4.0, 15.0)), (9, 9))
        render, _ = renderer.render(cameras, torch.ones(1, 3))
    assert render.latents is not None
    assert float((render.latents - 1.0).abs().max()) < 0.01
    depth = render.depth[0, 0]
    assert float(depth.max() - depth.min()) < 0.01
    assert float(depth[4, 4]) == pytest.approx(4.0 - 0.32, abs=0.05)


def test_a_coarser_camera_sees_the_same_with_larger_pixels() -> None:
    cameras = cameras_around(2, (50, 64), 4.0)
    coarse = cameras.coarser(4)
    assert (coarse.width, coarse.height) == (16, 13)
    points = torch.randn(5, 3, generator=seeded(1))
    at = []
    for one in (cameras, coarse):
        in_camera = one.world_to_cam[:, None, :3, :3] @ points[None, :, :, None]
        in_camera = in_camera[..., 0] + one.world_to_cam[:, None, :3, 3]
        pixels = torch.einsum("bij,bnj->bni", one.intrinsics, in_camera)
        at.append(pixels[..., :2] / pixels[..., 2:])
    assert torch.allclose(at[0] / 4, at[1], atol=1e-4)


def test_one_wall_costs_less_than_the_same_light_from_fog() -> None:
    fog, cameras = even(0.7, [0.0] * 4), cameras_around(1, (16, 16), 4.0)
    wall = even(0.7, [0.0] * 4)
    with torch.no_grad():
        wall.volume.fill_(-20.0)
        wall.volume[:, :, 3] = 20.0
    found = []
    for renderer in (fog, wall):
        with torch.no_grad():
            render, trace = renderer.render(cameras, torch.ones(1, 3))
            light = float(render.alpha.sum())
            found.append(float(renderer.terms(trace, ["emptiness"])["emptiness"]) / light)
    assert found[1] < 0.7 * found[0]


def test_latents_of_the_background_are_white_for_white_and_the_least_for_another() -> None:
    renderer = even(1e-6, [0.0] * 4, white=(1.0, 2.0, 3.0, 4.0))
    colour = torch.tensor([[1.0, 1.0, 1.0], [0.9, 0.95, 1.0]])
    with torch.no_grad():
        render, _ = renderer.render(cameras_around(2, (8, 8), 4.0), colour)
    assert render.latents is not None
    white, other = render.latents[:, :, 0, 0]
    assert torch.allclose(white, torch.tensor([1.0, 2.0, 3.0, 4.0]), atol=1e-4)
    apart = 0.5 * (other - white) @ torch.tensor(COLOURS)[:4]
    assert torch.allclose(apart, colour[1] - colour[0], atol=1e-4)


def test_density_and_colour_at_points_are_those_of_the_pictures() -> None:
    renderer = even(0.7, [0.3, -1.0, 0.5, 2.0])
    points = torch.tensor([[0.0, 0.0, 0.0], [0.9, -0.9, 0.9], [1.1, 0.0, 0.0]])
    assert renderer.density(points).tolist() == pytest.approx([0.7, 0.7, 0.0], abs=1e-5)
    with torch.no_grad():  # towards +x it grows
        renderer.volume.copy_(torch.linspace(-1, 1, 6)[None, None, :, None, None].expand(
            1, 1, 6, 6, 6))  # fmt: skip
    low, high = renderer.density(torch.tensor([[-0.5, 0.3, 0.1], [0.5, 0.3, 0.1]])).tolist()
    assert low < high
    matrix = torch.tensor(COLOURS)
    colour = 0.5 * (torch.tensor([0.3, -1.0, 0.5, 2.0]) @ matrix[:4] + matrix[4]) + 0.5
    assert torch.allclose(renderer.albedo(points[:1])[0], colour, atol=1e-5)


def test_settings_that_cannot_be_are_refused() -> None:
    for settings, expected in (
        ({"size": 1}, "2 to 512"),
        ({"colours": ((1.0, 2.0, 3.0),) * 4}, "5 rows of 3 numbers"),
        ({"white": (1.0, 2.0)}, "4 numbers"),
        ({"blob_radius": 0.0}, "above 0"),
    ):
        with pytest.raises(ValueError, match=expected):
            LatentVoxelConfig(**settings)  # type: ignore[arg-type]
