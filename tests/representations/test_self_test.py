# SPDX-License-Identifier: Apache-2.0
"""The self-test passes a sound back-end and finds what is wrong with another."""

from __future__ import annotations

import pytest
import torch

from representations.ops import MissingBackend, self_test
from representations.ops.fields import field_ops
from representations.ops.fields.hash_grid import Encoded
from representations.ops.fields.ray_types import MarchSpec, Rays
from representations.ops.self_test import Difference
from representations.ops.splats import Splatted, splat_ops

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_sound_backends_pass(name: str) -> None:
    splats, ops = splat_ops("cpu", name), field_ops("cpu", name)
    found = [
        self_test.splatting(splats.splat, CPU, count=200, size=48),
        self_test.encoding(ops.encode, CPU),
        self_test.slopes(ops.encode_jacobian, CPU),
        self_test.marching(ops.march, ops.composite, CPU),
    ]
    for difference in found:
        assert difference.sound, difference
        assert difference.value < 1e-4, difference
        assert difference.gradient < 1e-3, difference
    self_test.require_sound(name, lambda: self_test.splatting(splats.splat, CPU))


def test_slopes_that_are_wrong_are_found() -> None:
    real = field_ops("cpu").encode_jacobian

    def mirrored(table, x, spec, active=None):  # type: ignore[no-untyped-def]
        features, jacobian = real(table, x, spec, active)
        return Encoded(features, jacobian.flip(-1))

    assert not self_test.slopes(mirrored, CPU).sound


def wrong(change):  # type: ignore[no-untyped-def]
    real = splat_ops("cpu").splat

    def splat(splats, features, cameras) -> Splatted:  # type: ignore[no-untyped-def]
        return change(real(splats, features, cameras))

    return splat


@pytest.mark.parametrize(
    "change",
    [
        lambda out: out._replace(features=out.features * 1.1),
        lambda out: out._replace(alpha=out.alpha * float("nan")),
        lambda out: out._replace(features=torch.zeros_like(out.features) * out.features),
        lambda out: out._replace(depth=out.depth + 0.5 * (out.alpha - out.alpha.detach())),
        lambda out: out._replace(features=out.features.flip(-1)),
    ],
    ids=["brighter", "nan", "empty", "gradient only", "mirrored"],
)
def test_wrong_pictures_are_found(change) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(RuntimeError, match="draws wrong pictures on this card"):
        self_test.require_sound("gsplat", lambda: self_test.splatting(wrong(change), CPU))


@pytest.mark.parametrize(
    "kind", [RuntimeError, AttributeError, OSError, ImportError, AssertionError]
)
@pytest.mark.parametrize(("name", "instead"), [("gsplat", "triton"), ("triton", "torch")])
def test_a_kernel_that_does_not_work_is_told_with_its_last_words(
    kind: type[Exception], name: str, instead: str
) -> None:
    """Whatever a compiler, a loader or a driver raises; and what works instead."""

    def splat(*_: object) -> Splatted:
        raise kind("Error building extension\n\nnvcc fatal : Unsupported gpu\nninja: stop")

    words = (
        rf"nvcc fatal : Unsupported gpu \| ninja: stop.*doctor.*representation.backend={instead}$"
    )
    with pytest.raises(MissingBackend, match=words):
        self_test.require_sound(name, lambda: self_test.splatting(splat, CPU))


def test_what_is_missing_is_told_as_it_is() -> None:
    def splat(*_: object) -> Splatted:
        raise MissingBackend("no nvcc is found: install it")

    with pytest.raises(MissingBackend, match=r"^no nvcc is found: install it$"):
        self_test.require_sound("gsplat", lambda: self_test.splatting(splat, CPU))


def test_what_is_not_a_number_is_not_sound() -> None:
    assert Difference("x", 0.0, 0.0).sound
    assert not Difference("x", float("nan"), 0.0).sound
    assert not Difference("x", 0.0, float("nan")).sound


def test_a_march_is_tried_on_rays_that_rounding_cannot_move() -> None:
    """One along a border of cells, one that keeps clear, one with a middle on a border."""
    origins = torch.tensor([[-3.0, 0.0, 0.3], [-3.0, 0.1, 0.3], [-3.0, 0.1, 0.3]])
    directions = torch.tensor([[1.0, 0.0, 0.0]]).expand(3, 3)
    spec, jitter = MarchSpec(radius=1.0, step=0.1, max_samples=99), torch.tensor([0.1, 0.1, 0.0])
    clear = self_test._away_from_borders(Rays(origins, directions), spec, jitter, 8)
    assert clear.tolist() == [False, True, False]
