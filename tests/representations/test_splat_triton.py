# SPDX-License-Identifier: Apache-2.0
"""Our Triton splat kernels, interpreted, beside the reference in float64; and compiled for the
cards of today, which needs no card."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from representations.gaussians import DensifyConfig, GaussianConfig, GaussianRenderer
from representations.interface import Cameras
from representations.ops import constants, triton_launch
from representations.ops.splats import SplatOps, Splats, reference, splat_ops

from .helpers import (
    Outcome,
    cameras_around,
    check_screen_gradient,
    in_dtype,
    on_axis_camera,
    random_splats,
    relative_l2,
    run,
    seeded,
)

ROOT = Path(__file__).parents[2]
interpreted = pytest.mark.skipif(
    not (triton_launch.available() and triton_launch.interpreted()), reason="needs Triton, no card"
)

VALUE = 1e-5  # of a picture, relative to 1 + itself; measured 1e-6
GRADIENT = 1e-4  # relative to the largest of a tensor; measured 4e-6


def needles() -> Splats:
    """Longer and thinner than the list of tiles trusts its ellipse."""
    splats = random_splats(20, 31, opacity=0.6)
    return splats._replace(scale=torch.tensor([[3.0, 0.002, 0.002]]).repeat(20, 1))


def equally_deep() -> Splats:
    """A wall of splats that overlap at one depth: the order is that in memory."""
    splats = random_splats(24, 32, opacity=0.6, size=0.2)
    return splats._replace(means=splats.means * torch.tensor([1.0, 1.0, 0.0]))


def one_broken() -> Splats:
    """x alone is not a number: of the mean, of the rotation, of the scale."""
    splats = Splats(*(t.clone() for t in random_splats(12, 33, opacity=0.6)))
    splats.means[0, 0] = math.nan
    splats.means[1, 0] = math.inf
    splats.quat_wxyz[2, 0] = math.nan
    splats.scale[3, 0] = math.inf
    splats.opacity[4] = math.nan
    return splats


# name -> (splats, views, picture, distance, channels). Each kind stresses one branch of a kernel.
SCENES = {
    "plain": (random_splats(60, 0), 3, (32, 32), 3.0, 3),
    "odd size, one channel": (random_splats(50, 1), 1, (19, 45), 3.0, 1),
    "opaque": (random_splats(60, 2, opacity=0.9999), 2, (32, 32), 3.0, 3),
    "faint": (random_splats(60, 3, opacity=0.01), 1, (32, 32), 3.0, 3),
    "tiny": (random_splats(60, 4, size=1e-4), 1, (32, 32), 3.0, 3),
    "huge": (random_splats(20, 5, size=3.0, opacity=0.2), 1, (24, 24), 3.0, 3),
    "enormous": (random_splats(6, 15, size=1e7, opacity=0.3), 2, (20, 20), 3.0, 3),
    "off screen and behind": (random_splats(100, 6, radius=6.0, size=0.3), 2, (32, 32), 2.0, 3),
    "single, picture of one pixel": (random_splats(1, 7, opacity=0.7), 1, (1, 1), 3.0, 3),
    "many layers": (random_splats(200, 8, radius=0.3, opacity=0.3), 1, (17, 16), 3.0, 7),
    "33 channels": (random_splats(30, 9), 2, (16, 16), 3.0, 33),
    "needles": (needles(), 1, (32, 32), 3.0, 2),
}


pytestmark = pytest.mark.usefixtures("large_groups")


def exactly(splats: Splats, features: Tensor, cameras: Cameras) -> Outcome:
    """The reference in float64: every difference belongs to the kernel."""
    double = Splats(*(t.double() for t in splats))
    return run(
        SplatOps("reference", reference.splat),
        double,
        features.double(),
        in_dtype(cameras, torch.float64),
    )


def compare(fast: Outcome, exact: Outcome, looser: float = 1.0) -> None:
    for name in ("features", "depth", "alpha"):
        a, b = getattr(fast.splatted, name).detach(), getattr(exact.splatted, name).detach()
        assert float(((a - b).abs() / (1.0 + b.abs())).max()) < looser * VALUE, name
    radii = (out.splatted.radii.double() for out in (fast, exact))
    torch.testing.assert_close(*radii, atol=0, rtol=1e-6)  # equal, below a million pixels
    for name in ("means2d", "depths", "conics"):
        a, b = getattr(fast.splatted, name).detach(), getattr(exact.splatted, name).detach()
        torch.testing.assert_close(a.double(), b, atol=1e-6, rtol=2e-5, msg=name)
    for name, expected in exact.gradients.items():
        actual = fast.gradients[name]
        assert torch.isfinite(actual).all(), name
        most = expected.abs().max().clamp(min=1e-12)
        assert float((actual - expected).abs().max() / most) < looser * GRADIENT, name
        assert relative_l2(actual, expected) < looser * GRADIENT, name


@interpreted
@pytest.mark.parametrize("scene", SCENES)
def test_values_and_gradients_are_those_of_the_reference(scene: str) -> None:
    splats, views, size, distance, channels = SCENES[scene]
    cameras = cameras_around(views, size, distance)
    features = torch.rand(views, len(splats.means), channels, generator=seeded(9))
    fast = run(splat_ops("cpu", "triton"), splats, features, cameras)
    exact = exactly(splats, features, cameras)
    # The covariance of a needle is nearly singular in float32. numba, which projects in float64,
    # is off as much: 2e-5 and 5e-3.
    compare(fast, exact, looser=100.0 if scene == "needles" else 1.0)
    assert (
        float(exact.splatted.alpha.detach().max()) > 1e-3 or scene == "single, picture of one pixel"
    )


@interpreted
def test_the_groups_that_ship_draw_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group is a matter of speed: one splat at a time, and as it ships."""
    from representations.ops.splats import triton_splats

    splats, cameras = random_splats(30, 20, opacity=0.95), cameras_around(1, (16, 16))
    features = torch.rand(1, 30, 3, generator=seeded(9))
    exact = exactly(splats, features, cameras)
    for groups in ((1, 1), (4, 2)):
        for how, group in zip((triton_splats.FORWARD, triton_splats.BACKWARD), groups, strict=True):
            monkeypatch.setitem(how, "SPLATS", group)
        compare(run(splat_ops("cpu", "triton"), splats, features, cameras), exact)


@interpreted
def test_splats_of_one_depth_keep_their_order() -> None:
    splats, cameras = equally_deep(), on_axis_camera(24, 30.0, torch.float32)
    cameras.world_to_cam[:, 2, 3] = 3.0
    features = torch.rand(1, 24, 3, generator=seeded(9))
    fast = run(splat_ops("cpu", "triton"), splats, features, cameras)
    assert float(fast.splatted.depths.min()) == float(fast.splatted.depths.max()) == 3.0
    compare(fast, exactly(splats, features, cameras))


@interpreted
def test_what_is_broken_is_not_drawn_and_breaks_nothing_else() -> None:
    splats, cameras = one_broken(), cameras_around(2, (20, 20))
    features = torch.rand(2, 12, 3, generator=seeded(9))
    fast = run(splat_ops("cpu", "triton"), splats, features, cameras)
    whole = Splats(*(t[5:] for t in splats))
    alone = run(splat_ops("cpu", "triton"), whole, features[:, 5:], cameras)
    assert (fast.splatted.radii[:, :5] == 0).all()
    assert torch.equal(fast.splatted.means2d[:, :5], torch.zeros(2, 5, 2))
    for name in ("features", "depth", "alpha"):
        a, b = getattr(fast.splatted, name), getattr(alone.splatted, name)
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)
    for name, gradient in fast.gradients.items():
        rows = gradient if name in splats._fields else gradient.transpose(0, 1)
        expected = alone.gradients[name]
        expected = expected if name in splats._fields else expected.transpose(0, 1)
        assert (rows[:5] == 0).all(), name
        torch.testing.assert_close(rows[5:], expected, atol=1e-5, rtol=1e-5, msg=name)


@interpreted
def test_the_screen_gradient_is_the_derivative_by_the_principal_point() -> None:
    check_screen_gradient(splat_ops("cpu", "triton").splat, count=40, side=24, radius=0.3)


@interpreted
def test_a_conic_that_rounding_made_a_saddle_is_drawn_where_it_falls_off() -> None:
    """Of a very thin splat: where sigma is negative, nothing is."""
    from representations.ops.splats import triton_splats

    means2d = torch.tensor([[[8.2, 7.9], [7.0, 9.5]]])
    conics = torch.tensor([[[0.05, 0.2, 0.05], [0.1, 0.0, 0.1]]])
    opacity, features = torch.tensor([0.7, 0.8]), torch.rand(1, 2, 3, generator=seeded(1))
    depths, radii = torch.tensor([[1.0, 2.0]]), torch.full((1, 2, 2), 20, dtype=torch.int32)
    picture, alpha = triton_splats._Rasterise.apply(
        means2d, conics, opacity, features, depths, radii, (16, 20)
    )
    seen = reference.Projection(means2d[0], conics[0], depths[0], radii[0])
    expected = reference._draw(seen, features[0], opacity, (16, 20))
    torch.testing.assert_close(torch.cat([picture[0], alpha]), expected, atol=VALUE, rtol=0)
    assert float(alpha[0, 5, 11]) < 0.5 < float(alpha[0, 9, 8])


@interpreted
@pytest.mark.parametrize("seed", range(3))
def test_lists_hold_what_a_tile_shows_and_little_else(seed: int) -> None:
    """Against every splat at every pixel."""
    from representations.ops.splats import triton_splats

    splats, cameras = random_splats(80, seed, radius=1.5, size=0.15), cameras_around(2, (40, 50))
    seen = reference.project(splats, cameras)
    lists = triton_splats.tile_lists(
        seen.means2d, seen.conics, splats.opacity, seen.depths, seen.radii, (40, 50)
    )
    i, j = torch.meshgrid(torch.arange(40) + 0.5, torch.arange(50) + 0.5, indexing="ij")
    shown = listed = boxed = 0
    for b in range(2):
        d = torch.stack([j, i], -1) - seen.means2d[b, :, None, None]
        xx, xy, yy = (seen.conics[b, :, k, None, None] for k in range(3))
        sigma = 0.5 * (xx * d[..., 0] ** 2 + yy * d[..., 1] ** 2) + xy * d[..., 0] * d[..., 1]
        alpha = splats.opacity[:, None, None] * torch.exp(-sigma)
        visible = (alpha >= constants.ALPHA_MIN) & (seen.radii[b, :, 0] > 0)[:, None, None]
        reach = (d.abs() < seen.radii[b, :, None, None]).all(-1)
        for tile in range(3 * 4):
            y, x = 16 * (tile // 4), 16 * (tile % 4)
            there = (slice(None), slice(y, y + 16), slice(x, x + 16))
            needed = set(visible[there].flatten(1).any(1).nonzero()[:, 0].tolist())
            at = b * 12 + tile
            ids = lists.ids[lists.starts[at] : lists.starts[at + 1]].long()
            assert needed <= set(ids.tolist())
            depths = seen.depths[b, ids]
            assert (depths[1:] >= depths[:-1]).all()
            shown += len(needed)
            listed += len(ids)
            boxed += int(reach[there].flatten(1).any(1).sum())
    assert len(lists.ids) == listed
    assert 50 < shown <= listed < boxed
    assert listed < 1.25 * shown


@interpreted
def test_the_host_waits_once_for_a_picture_and_not_for_its_gradient() -> None:
    waits = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            name = func.overloadpacket._qualified_op_name
            if any(
                word in name for word in ("_local_scalar", "nonzero", "masked_select", "unique")
            ):
                waits.append(name)
            return func(*args, **(kwargs or {}))

    splats, cameras = random_splats(20, 3), cameras_around(2, (16, 16))
    leaves = Splats(*(t.clone().requires_grad_() for t in splats))
    ops = splat_ops("cpu", "triton")
    with Watch():
        out = ops.splat(leaves, torch.ones(2, 20, 3), cameras)
        assert waits == ["aten::_local_scalar_dense"]
        out.features.sum().backward()
    assert len(waits) == 1


@interpreted
def test_a_renderer_trains_and_grows_on_it() -> None:
    renderers = [
        GaussianRenderer(
            GaussianConfig(
                count=60, max_count=80, backend=backend,
                densify=DensifyConfig(start=0.0, stop=1.0, every=2, grow=0.2),
            ),
            steps=2,
        )
        for backend in ("triton", "torch")
    ]  # fmt: skip
    assert [renderer.ops.name for renderer in renderers] == ["triton", "reference"]
    for step in range(2):
        traces = []
        for renderer in renderers:
            render, trace = renderer.render(cameras_around(2, (16, 16)), torch.zeros(2, 3))
            (render.rgb - 0.7).square().mean().backward()
            assert trace.means2d.grad is not None
            traces.append(trace)
        if step == 0:  # afterwards Adam has made what is rounding into steps of full length
            names = ("means", "quat_wxyz", "log_scale", "opacity_logit", "sh_dc")
            for name in names:
                a, b = (getattr(r.gaussians, name) for r in renderers)
                # Round splats do not turn: what their rotation receives is rounding.
                assert float((a.grad - b.grad).norm()) < GRADIENT * float(b.grad.norm()) + 1e-8
        for renderer, trace in zip(renderers, traces, strict=True):
            renderer.optimizer.step()
            renderer.refine(step, trace)
            renderer.optimizer.zero_grad(set_to_none=True)
    assert len(renderers[0]) == len(renderers[1]) > 60


def test_other_numbers_than_float32_are_refused() -> None:
    if not triton_launch.available():
        pytest.skip("needs Triton")
    from representations.ops.splats import triton_splats

    splats = Splats(*(t.double() for t in random_splats(3)))
    with pytest.raises(ValueError, match=r'back-end "triton" takes float32.*torch.float64'):
        triton_splats.splat(splats, torch.ones(1, 3, 1).double(), cameras_around(1))


COMPILE = """
import sys
sys.path.insert(0, "benchmarks")
import triton_splats as table
for capability in map(int, sys.argv[1].split(",")):
    for variant in table.shipped((table.CHANNELS,)):
        made = table.compiled(variant, capability)
        found = table.counted(variant, made, capability)
        assert found.spilled == 0, (capability, variant, found)
        assert found.registers < 255, (capability, variant, found)
        assert 0 < found.occupancy <= 1, (capability, variant, found)
        assert bool(variant.group) == (found.instructions is not None), variant
        assert ("red." in made.asm["ptx"] or "atom." in made.asm["ptx"]) >= (
            variant.kernel is table.triton_raster.raster_backward
        )
        assert ".f64" not in made.asm["ptx"], variant
    print("compiled", capability)
"""


@pytest.mark.slow
@pytest.mark.skipif(not triton_launch.available(), reason="needs Triton")
def test_every_kernel_compiles_for_the_cards_of_today_and_spills_nothing(tmp_path: Path) -> None:
    """To machine code of compute capabilities 7.5 to 12.0; nothing counts in float64."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, "75,80,86,89,90,100,120"], env=environment, cwd=ROOT,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("compiled") == 7


LAUNCH = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction


class Card:
    get_current_target = lambda self: GPUTarget("cuda", 90, 32)
    get_current_device = lambda self: 0
    get_current_stream = lambda self, device=None: 0


driver.set_active(Card())
compiled, launch = {}, JITFunction.run


def only_compile(self, *arguments, grid, warmup, **options):
    made = launch(self, *arguments, grid=grid, warmup=True, **options)
    compiled.setdefault(self.__name__, set()).add(made.hash)


JITFunction.run = only_compile
torch.empty = torch.ones  # what no kernel writes: then there is a list to deal out
from representations.ops.splats import Splats, staged, triton_splats
from tests.representations.helpers import cameras_around, random_splats

staged.require_float32 = lambda *names, **tensors: None
for count, views, size in ((5, 2, (20, 31)), (1, 2, (1, 1)), (16, 1, (16, 16))):
    splats = Splats(*(t.requires_grad_() for t in random_splats(count)))
    out = triton_splats.splat(splats, torch.rand(views, count, 3), cameras_around(views, size))
    (out.features.sum() + out.means2d.sum()).backward()
print({name: len(hashes) for name, hashes in sorted(compiled.items())})
"""


@pytest.mark.slow
@pytest.mark.skipif(not triton_launch.available(), reason="needs Triton")
def test_what_is_launched_compiles_once_however_many_splats_there_are(tmp_path: Path) -> None:
    """Triton itself binds the arguments of a whole pass, for a card that is not there. Growing
    changes the number of splats all the time: nothing is compiled for that."""
    environment = {
        **os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH], env=environment, cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == str(
        {"deal_out": 2, "project_backward": 1, "project_forward": 1, "raster_backward": 1,
         "raster_forward": 1}
    )  # fmt: skip
