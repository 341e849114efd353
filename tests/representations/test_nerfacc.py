# SPDX-License-Identifier: Apache-2.0
"""nerfacc beside ours. Its dense functions are plain torch, and an oracle for what rays see. As a
back-end it needs a card; here its own Python runs on a twin of what it compiles."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import nerfacc
import pytest
import torch
from torch import Tensor
from torch.utils import cpp_extension

from representations.cameras import rays as rays_of_cameras
from representations.instant_ngp import InstantNGPConfig, InstantNGPRenderer
from representations.instant_ngp.renderer import TERMS
from representations.ops import MissingBackend, extension, self_test
from representations.ops.fields import (
    FieldOps,
    field_ops,
    hash_cpu,
    nerfacc_state,
    ray_nerfacc,
    ray_reference,
)
from representations.ops.fields.ray_types import STOP, MarchSpec, Rays, Samples

from . import nerfacc_twin
from .helpers import cameras_around, relative_l2, seeded
from .ray_scenes import BACKENDS, Backend, cast, each_backend, pulled, random_march, random_samples
from .test_ngp_contract import FieldContract
from .test_rays import SCENES

MODULES = ("nerfacc.csrc", "nerfacc.cuda._backend")
TWIN = Backend(ray_nerfacc, torch.float32, 1e-6)


@pytest.fixture(name="twin")
def _twin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """nerfacc finds its twin where it would find its compiled library, by the way that a run
    takes, and our back-end takes tensors of the CPU."""
    library = tmp_path / "nerfacc_cuda" / "nerfacc_cuda.so"
    monkeypatch.setattr(extension.Extension, "ensure", lambda self, say: library)
    monkeypatch.setattr(
        cpp_extension, "_import_module_from_library", lambda *how: nerfacc_twin.library()
    )
    monkeypatch.setattr(ray_nerfacc, "require_float32", lambda *args, **tensors: None)
    before = {name: sys.modules.pop(name) for name in MODULES if name in sys.modules}
    ray_nerfacc._nerfacc.cache_clear()
    yield
    ray_nerfacc._nerfacc.cache_clear()
    for name in MODULES:
        sys.modules.pop(name, None)
    sys.modules.update(before)


OPS = FieldOps(
    "nerfacc", hash_cpu.encode, hash_cpu.encode_jacobian, ray_nerfacc.march, ray_nerfacc.composite
)


# Its dense functions as an oracle.


def dense(
    sigma: Tensor, features: Tensor, samples: Samples
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights [M], features [N, C], opacity [N] and depth [N] by nerfacc's functions for rays of
    equal length; the missing samples of shorter ones are empty."""
    counts = samples.offsets.diff()
    width = max(1, int(counts.max()))
    column = torch.arange(len(sigma)) - samples.offsets[samples.ray]
    place = samples.ray * width + column

    def table(values: Tensor) -> Tensor:
        shape = (len(counts), width, *values.shape[1:])
        flat = values.new_zeros(len(counts) * width, *values.shape[1:])
        return flat.index_add(0, place, values).reshape(shape)

    start, end = table(samples.start), table(samples.end)
    weights, _, _ = nerfacc.render_weight_from_density(start, end, table(sigma))
    seen = nerfacc.accumulate_along_rays(weights, table(features))
    opacity = nerfacc.accumulate_along_rays(weights, None)
    depth = nerfacc.accumulate_along_rays(weights, (start + end)[..., None] / 2.0)
    return weights.flatten()[place], seen, opacity[:, 0], depth[:, 0]


@each_backend
@pytest.mark.parametrize("scene", [name for name in SCENES if SCENES[name][0] * SCENES[name][1]])
def test_weights_colours_depth_and_gradients_are_those_of_nerfacc(backend, scene) -> None:
    rays, longest, density = SCENES[scene]
    sigma, features, samples = random_samples(rays, 17, longest, density)
    pull = torch.randn(rays, 5, generator=seeded(18), dtype=torch.float64)

    def ours(sigma: Tensor, features: Tensor, given: Samples) -> tuple[Tensor, ...]:
        channels = torch.cat([features, given.middle[:, None]], dim=-1)
        out = backend.ops.composite(sigma, channels, given, rays)
        return out.weights, out.features[:, :3], out.opacity, out.features[:, 3]

    outcomes = []
    for how, dtype in ((ours, backend.dtype), (dense, torch.float64)):
        leaves = [t.detach().to(dtype).requires_grad_() for t in (sigma, features)]
        seen = how(*leaves, cast(samples, dtype))
        pictures = torch.cat([seen[1], seen[2][:, None], seen[3][:, None]], dim=-1)
        (pictures * pull.to(dtype)).sum().backward()
        outcomes.append(([t.detach().double() for t in seen], [t.grad.double() for t in leaves]))
    (found, slopes), (theirs, expected) = outcomes
    # We leave out what less than STOP of the light reaches: at most that much of each sum, and all
    # of a gradient behind it.
    thickness = sigma * (samples.end - samples.start)
    light = torch.exp(-ray_reference.in_front(thickness.double(), samples))
    whole = bool((light > 2 * STOP).all())
    rounding = backend.rounding if whole else STOP
    size = max(1.0, float(samples.end.max()))
    for a, b in zip(found, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=10 * size * rounding, rtol=10 * backend.rounding)
    lit = light > 2 * STOP
    for a, b in zip(slopes, expected, strict=True):
        off = (a - b)[lit].abs().max() / b.abs().max()
        assert float(off) < (100 * backend.rounding if whole else 20 * STOP)


def test_a_picture_of_the_field_is_what_nerfacc_renders() -> None:
    """The whole way: rays, steps, the field, colours, opacity and distance, and their gradient by
    every parameter, against nerfacc's ``rendering`` of the same field on steps that we count."""
    renderer = FieldContract().make()
    cameras = cameras_around(2, (6, 6), 3.0)
    spec, background = renderer.march_spec, torch.tensor([[0.2, 0.5, 0.9]])
    origins, directions = (t.reshape(-1, 3) for t in rays_of_cameras(cameras))
    near, far = ray_reference.clip(Rays(origins, directions), spec)
    start = near[:, None] + torch.arange(spec.steps) * spec.step
    end = start + spec.step
    middle = (start + end) / 2

    def field(*_: Tensor) -> tuple[Tensor, Tensor]:
        points = (origins[:, None] + middle[..., None] * directions[:, None]).reshape(-1, 3)
        inside = (middle < far[:, None]).flatten() & (points.abs() <= 1.0).all(-1)
        at = renderer.field(points)
        density = torch.where(inside, at.density, torch.zeros_like(at.density))
        return at.albedo.reshape(*middle.shape, 3), density.reshape(middle.shape)

    rgb, opacity, distance, _ = nerfacc.rendering(
        start, end, rgb_sigma_fn=field, render_bkgd=background[0]
    )
    render, _ = renderer.render(cameras, background.expand(2, 3))
    forward = cameras.world_to_cam[:, 2, :3].repeat_interleave(36, dim=0)
    depth = distance[:, 0] * (directions * forward).sum(-1)
    seen = [t.permute(0, 2, 3, 1).reshape(72, -1) for t in (render.rgb, render.alpha, render.depth)]
    # nerfacc's opacity is 1 - exp(-x), which has few digits where there is hardly anything.
    there = seen[1].detach() > 0.01
    assert 0 < there.sum() < 72
    other = [rgb, opacity, torch.where(there, depth[:, None], 0.0)]
    seen[2] = torch.where(there, seen[2], 0.0)
    pull = [torch.randn(t.shape, generator=seeded(k)) for k, t in enumerate(seen)]
    gradients = []
    for pictures in (seen, other):
        loss = sum((a * b).sum() for a, b in zip(pictures, pull, strict=True))
        parameters = list(renderer.field.parameters())
        gradients.append(torch.autograd.grad(loss, parameters, retain_graph=True))
    for a, b in zip(seen, other, strict=True):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=2e-6)
    for a, b in zip(*gradients, strict=True):
        assert relative_l2(a, b) < 1e-5


# As a back-end, on its twin.


def unsure(rays: Rays, samples: Samples, spec: MarchSpec, cells: int) -> Tensor:
    """Rays [N] with a middle so close to a border that rounding decides where it belongs."""
    place = (samples.positions(rays).double() / spec.radius + 1.0) * (0.5 * cells)
    drift = 2e-7 * (spec.steps * spec.radius + float(rays.origins.abs().max()))
    near = ((place - place.round()).abs() < drift / spec.radius * cells + 1e-6).any(-1)
    return torch.bincount(samples.ray[near], minlength=len(rays.origins)) > 0


@pytest.mark.usefixtures("twin")
@pytest.mark.parametrize("seed", range(24))
def test_its_walk_finds_our_samples(seed: int) -> None:
    rays, occupied, spec, jitter = random_march(seed, 200)
    ours = ray_reference.march(rays, occupied, spec, jitter)
    theirs = ray_nerfacc.march(rays, occupied, spec, jitter)
    everywhere = ray_reference.march(
        rays, torch.ones_like(occupied), MarchSpec(spec.radius, spec.step, 10**6, spec.near), jitter
    )
    sure = ~unsure(rays, everywhere, spec, len(occupied))
    assert sure.sum() > 80
    assert torch.equal(theirs.offsets.diff()[sure], ours.offsets.diff()[sure])
    assert theirs.ray.dtype == torch.int64
    assert bool((theirs.ray.diff() >= 0).all())
    assert torch.equal(theirs.offsets.diff(), torch.bincount(theirs.ray, minlength=200))
    a, b = sure[theirs.ray], sure[ours.ray]
    assert a.sum() > 0
    drift = 2e-7 * spec.steps * spec.radius
    torch.testing.assert_close(theirs.start[a], ours.start[b], atol=1e-6 + drift, rtol=1e-6)
    torch.testing.assert_close(theirs.end[a], ours.end[b], atol=1e-6 + drift, rtol=1e-6)
    assert drift < 0.1 * spec.step
    assert float((theirs.offsets.diff() - ours.offsets.diff()).abs().max()) <= 2


@pytest.mark.usefixtures("twin")
def test_its_walk_stops_where_told_and_meets_nothing_where_there_is_nothing() -> None:
    rays, occupied, spec, jitter = random_march(5, 100)
    few = MarchSpec(spec.radius, spec.step, 3)
    assert int(ray_nerfacc.march(rays, occupied, few, jitter).offsets.diff().max()) == 3
    for nothing in (
        ray_nerfacc.march(rays, torch.zeros_like(occupied), spec, jitter),
        ray_nerfacc.march(Rays(*(t[:0] for t in rays)), occupied, spec, jitter[:0]),
    ):
        assert len(nothing.start) == 0
        empty = ray_nerfacc.composite(
            torch.zeros(0), torch.zeros(0, 3), nothing, len(nothing.offsets) - 1
        )
        assert float(empty.opacity.sum()) == 0.0


@pytest.mark.usefixtures("twin")
@pytest.mark.parametrize("scene", SCENES)
def test_its_sums_are_ours(scene: str) -> None:
    rays, longest, density = SCENES[scene]
    inputs = random_samples(rays, 7, longest, density)
    theirs, ours = (pulled(backend, *inputs) for backend in (TWIN, BACKENDS["reference"]))
    for name in ("features", "opacity", "weights"):
        a, b = getattr(theirs[0], name), getattr(ours[0], name)
        torch.testing.assert_close(a.double(), b, atol=2e-6, rtol=2e-6, msg=name)
    for a, b in zip(theirs[1:], ours[1:], strict=True):
        # Its opacity of one interval is 1 - exp(-x), with an error of 6e-8.
        torch.testing.assert_close(a.double(), b, atol=5e-7, rtol=1e-5)


@pytest.mark.usefixtures("twin")
class TestContract(FieldContract):
    """Everything that the field promises, with nerfacc along the rays."""

    ops = OPS


@pytest.mark.usefixtures("twin")
def test_pictures_and_gradients_are_those_of_plain_torch() -> None:
    cameras = cameras_around(3, (20, 20), 3.0)
    outcomes = []
    for backend, ops in (("reference", None), ("cpu", OPS)):
        contract = FieldContract()
        contract.backend, contract.ops = backend, ops
        renderer = contract.make()
        renderer.occupancy.occupied[:3] = False
        renderer.occupancy.occupied[:, 6:] = False
        render, trace = renderer.render(cameras, torch.full((3, 3), 0.3))
        there = render.alpha.detach() > 0.01  # elsewhere nerfacc's opacity has few digits
        render = render._replace(depth=torch.where(there, render.depth, 0.0))
        pull = [torch.randn(t.shape, generator=seeded(k)) for k, t in enumerate(render[:4])]
        loss = sum((a * b).mean() for a, b in zip(render[:4], pull, strict=True))
        names = set(TERMS) - {"tv_depth", "opaque", "orientation"}  # of what is hardly there
        loss = loss + sum(renderer.terms(trace, names).values())
        loss.backward()
        outcomes.append((render, [p.grad for p in renderer.field.parameters()]))
    (ours, slopes), (theirs, others) = outcomes
    for name in ("rgb", "alpha", "depth", "normal"):
        a = getattr(theirs, name)
        torch.testing.assert_close(a, getattr(ours, name), atol=1e-5, rtol=1e-5, msg=name)
    for a, b in zip(others, slopes, strict=True):
        assert relative_l2(a, b) < 1e-5


@pytest.mark.usefixtures("twin")
def test_a_library_that_is_there_is_loaded_as_if_a_wheel_had_brought_it() -> None:
    """nerfacc itself looks for nvcc before it looks at what it has built."""
    ray_nerfacc.prepare()
    library = importlib.import_module("nerfacc.cuda._backend")._C
    assert library.traverse_grids is nerfacc_twin.traverse_grids


# What is missing, and kernels that are not sound.


@pytest.mark.usefixtures("twin")
def test_it_is_tried_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    found = self_test.marching(ray_nerfacc.march, ray_nerfacc.composite, device)
    assert found.value < 1e-5
    assert found.gradient < 1e-5
    real = nerfacc_twin.exclusive_sum
    monkeypatch.setattr(nerfacc_twin, "exclusive_sum", lambda *given: 2.0 * real(*given))
    ray_nerfacc._nerfacc.cache_clear()
    for name in MODULES:
        sys.modules.pop(name, None)
    with pytest.raises(MissingBackend, match=r'"nerfacc" draws wrong pictures.*backend=cuda$'):
        self_test.require_sound(
            "nerfacc", lambda: self_test.marching(ray_nerfacc.march, ray_nerfacc.composite, device)
        )


def test_it_is_chosen_by_name_only_and_what_it_lacks_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MissingBackend, match=r'"nerfacc" was asked for, but torch.cuda.is_avail'):
        field_ops("cpu", "nerfacc")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match=r'"nerfacc" needs a cuda device, got "cpu"'):
        field_ops("cpu", "nerfacc")
    assert field_ops("cuda").name == "cuda"
    monkeypatch.setattr(extension.Extension, "compiled", lambda self: None)
    monkeypatch.setattr(extension.Extension, "folder", lambda self: None)
    words = r'"nerfacc" cannot be had here: nerfacc is not installed: .*-m pip install nerfacc\. '
    with pytest.raises(MissingBackend, match=words + r".*representation.backend=cuda"):
        field_ops("cuda", "nerfacc")
    monkeypatch.setattr(extension.Extension, "obstacle", lambda self: "no nvcc is found: get it")
    with pytest.raises(MissingBackend, match=r"no nvcc is found: get it\. Or write .*=cuda"):
        field_ops("cuda", "nerfacc")
    assert nerfacc_state.NERFACC.library == "nerfacc_cuda"


def test_the_setting_takes_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert InstantNGPConfig(backend="nerfacc").backend == "nerfacc"
    with pytest.raises(MissingBackend, match="nerfacc"):
        InstantNGPRenderer(InstantNGPConfig(backend="nerfacc"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_card_it_marches_and_adds_up_like_the_reference() -> None:
    if nerfacc_state.NERFACC.compiled() is None:
        pytest.skip("nerfacc's kernels are not compiled: sdi-gs doctor --build")
    ops = field_ops("cuda", "nerfacc")
    found = self_test.marching(ops.march, ops.composite, torch.device("cuda"))
    assert found.value < 1e-4
    assert found.gradient < 1e-4
    sigma, features, samples = random_samples(60, 7, 40, 3.0)
    moved = Samples(*(t.cuda() for t in samples))
    theirs = pulled(TWIN, sigma.cuda(), features.cuda(), moved)
    ours = pulled(BACKENDS["reference"], sigma, features, samples)
    torch.testing.assert_close(
        theirs[0].features.double().cpu(), ours[0].features, atol=1e-4, rtol=0
    )
    for a, b in zip(theirs[1:], ours[1:], strict=True):
        assert relative_l2(a.cpu(), b) < 1e-4
