# SPDX-License-Identifier: Apache-2.0
"""What every renderer must do. Subclass :class:`RendererContract` and say how to make one.

Not collected by itself: the class name does not start with ``Test``.
"""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import pytest
import torch
from torch import Tensor

from representations.interface import RefineReport, Renderer

from .helpers import cameras_around, seeded, slope_along


class RendererContract:
    """Tests for one representation on one back-end."""

    refine_steps = 8  # enough for at least one structural change

    def make(self) -> Renderer:
        """A fresh, small, seeded renderer whose picture is not empty."""
        raise NotImplementedError

    def parameters(self, renderer: Renderer) -> list[Tensor]:
        """Every trainable tensor the renderer has now."""
        raise NotImplementedError

    def move(self, renderer: Renderer, rotation: Tensor, shift: Tensor) -> None:
        """Turn the scene by ``rotation`` [3, 3], then shift it by ``shift`` [3], in place."""
        raise NotImplementedError

    def prepare_to_move(self, renderer: Renderer) -> None:
        """Make the scene lopsided where it would look the same after a turn."""

    def motions(self) -> list[tuple[Tensor, Tensor]]:
        """Rotations and shifts that the representation can hold exactly."""
        raise NotImplementedError

    def train(self, renderer: Renderer, steps: int, start: int = 0) -> list[RefineReport]:
        """Fit seeded noise: the shape does not matter, that everything moves does."""
        reports = []
        for step in range(start, start + steps):
            g = seeded(100 + step)
            cameras = cameras_around(2, (16, 16))
            background = torch.rand(2, 3, generator=g) if step % 2 else None
            render, trace = renderer.render(cameras, background)
            loss = (render.rgb - torch.rand(render.rgb.shape, generator=g)).square().mean()
            loss = loss + 1e-3 * torch.stack(list(renderer.terms(trace).values())).sum()
            loss.backward()
            for optimizer in renderer.optimizers:
                optimizer.step()
            reports.append(renderer.refine(step, trace))
            for optimizer in renderer.optimizers:
                optimizer.zero_grad(set_to_none=True)
        return reports

    def picture(self, renderer: Renderer) -> Tensor:
        with torch.no_grad():
            return renderer.render(cameras_around(1, (16, 16)), torch.ones(1, 3))[0].rgb

    def test_satisfies_the_protocol(self):
        assert isinstance(self.make(), Renderer)

    @pytest.mark.parametrize("size", [(16, 16), (12, 20)])
    def test_shapes_ranges_and_types(self, size):
        render, _ = self.make().render(cameras_around(3, size), torch.rand(3, 3))
        shapes = {"rgb": 3, "alpha": 1, "depth": 1, "normal": 3}
        for name, channels in shapes.items():
            picture = getattr(render, name)
            assert picture.shape == (3, channels, *size), name
            assert picture.dtype == torch.float32, name
            assert torch.isfinite(picture).all(), name
        assert 0.0 <= float(render.rgb.detach().min()) <= float(render.rgb.detach().max()) <= 1.0
        assert float(render.alpha.detach().min()) >= 0.0
        assert 0.05 < float(render.alpha.detach().max()) <= 1.0
        assert float(render.depth.detach().min()) >= 0.0
        length = render.normal.detach().norm(dim=1)
        assert bool(((length < 1e-6) | ((length - 1).abs() < 1e-3)).all())

    def test_depth_is_zero_exactly_where_nothing_is(self):
        render, _ = self.make().render(cameras_around(1, (24, 24), 6.0), torch.zeros(1, 3))
        empty = render.alpha.detach() == 0
        assert bool(empty.any())
        assert float(render.depth.detach()[empty].abs().max()) == 0.0
        solid = render.alpha.detach() > 0.1
        assert bool(((render.depth.detach() - 6.0).abs()[solid] < 2.0).all())

    def test_background_is_composited_with_one_minus_alpha(self):
        renderer, cameras = self.make(), cameras_around(2, (16, 16))
        black, _ = renderer.render(cameras, torch.zeros(2, 3))
        colour = torch.tensor([[0.2, 0.5, 0.9], [1.0, 0.0, 0.3]])
        tinted, _ = renderer.render(cameras, colour)
        expected = black.rgb + (1 - black.alpha) * colour[:, :, None, None]
        torch.testing.assert_close(tinted.rgb, expected, atol=1e-5, rtol=0)

    def test_learned_environment_fills_empty_pixels_and_is_trained(self):
        renderer = self.make()
        render, _ = renderer.render(cameras_around(1, (24, 24), 6.0), None)
        assert float(render.rgb.detach().min()) > 0.0
        render.rgb.mean().backward()
        assert all(p.grad is not None for p in self.parameters(renderer) if p.numel())

    def test_wrong_background_is_named(self):
        with pytest.raises(ValueError, match="background has shape"):
            self.make().render(cameras_around(2, (8, 8)), torch.zeros(3))

    def test_a_batch_equals_its_single_views(self):
        renderer, cameras = self.make(), cameras_around(3, (16, 16))
        background = torch.rand(3, 3, generator=seeded(1))
        with torch.no_grad():
            batch, _ = renderer.render(cameras, background)
            for b in range(3):
                single, _ = renderer.render(cameras[b : b + 1], background[b : b + 1])
                for name, value in single._asdict().items():
                    if value is None:
                        continue
                    torch.testing.assert_close(
                        value, getattr(batch, name)[b : b + 1], atol=2e-5, rtol=1e-4, msg=name
                    )

    def test_scene_and_cameras_moved_together_change_nothing(self):
        cameras = cameras_around(3, (24, 24))
        for rotation, shift in self.motions():
            renderer = self.make()
            self.train(renderer, self.refine_steps)  # every parameter says something now
            self.prepare_to_move(renderer)
            pose = torch.eye(4)
            pose[:3, :3], pose[:3, 3] = rotation, shift
            moved = dataclasses.replace(
                cameras, world_to_cam=cameras.world_to_cam @ torch.linalg.inv(pose)
            )
            with torch.no_grad():
                before, _ = renderer.render(cameras, torch.zeros(3, 3))
                self.move(renderer, rotation, shift)
                after, _ = renderer.render(moved, torch.zeros(3, 3))
                left_behind, _ = renderer.render(cameras, torch.zeros(3, 3))
            turned = torch.einsum("ij,bjhw->bihw", rotation, before.normal)
            for name, expected in (("rgb", before.rgb), ("alpha", before.alpha),
                                   ("depth", before.depth), ("normal", turned)):  # fmt: skip
                difference = (getattr(after, name) - expected).abs()
                # Rounding may move a sample over a border: rarely, in single pixels.
                assert float(difference.mean()) < 1e-4, name
                assert float((difference > 1e-3).float().mean()) < 5e-3, name
            assert float((left_behind.rgb - before.rgb).abs().mean()) > 1e-3  # it did move

    def test_gradient_agrees_with_finite_differences(self):
        renderer, cameras = self.make(), cameras_around(2, (16, 16))
        target = torch.nn.functional.avg_pool2d(
            torch.rand(2, 3, 16, 16, generator=seeded(2)), 5, 1, 2
        )

        def loss() -> Tensor:
            render, _ = renderer.render(cameras, torch.full((2, 3), 0.4))
            return (render.rgb.double() * target).sum() + 0.1 * render.alpha.double().sum()

        loss().backward()
        compared = 0
        for index, parameter in enumerate(self.parameters(renderer)):
            if parameter.grad is None or float(parameter.grad.norm()) < 1e-3:
                continue
            compared += 1
            # Along the gradient the slope is largest, and rounding matters least.
            direction = parameter.grad / parameter.grad.norm()
            expected = float(parameter.grad.norm())
            numeric = slope_along(loss, parameter, direction, 3e-3)
            assert numeric == pytest.approx(expected, rel=0.03), (
                f"parameter {index} of shape {tuple(parameter.shape)}: {numeric} against {expected}"
            )
        assert compared >= 2

    def test_same_seed_same_run(self):
        a, b = self.make(), self.make()
        self.train(a, self.refine_steps)
        self.train(b, self.refine_steps)
        assert torch.equal(self.picture(a), self.picture(b))

    @pytest.mark.parametrize("at", [3, 6])
    def test_state_round_trip_continues_bit_for_bit(self, at):
        straight = self.make()
        self.train(straight, self.refine_steps)
        first = self.make()
        self.train(first, at)
        stream = io.BytesIO()
        torch.save(first.state_dict(), stream)
        stream.seek(0)
        second = self.make()
        self.train(second, 1)  # a renderer that has already lived something else
        second.load_state_dict(torch.load(stream, weights_only=True))
        self.train(second, self.refine_steps - at, start=at)
        assert torch.equal(self.picture(straight), self.picture(second))
        self._assert_same(straight.state_dict(), second.state_dict())

    def _assert_same(self, a: Any, b: Any, where: str = "state") -> None:
        if isinstance(a, dict):
            assert a.keys() == b.keys(), where
            for key in a:
                self._assert_same(a[key], b[key], f"{where}.{key}")
        elif isinstance(a, list | tuple):
            assert len(a) == len(b), where
            for i, (x, y) in enumerate(zip(a, b, strict=True)):
                self._assert_same(x, y, f"{where}[{i}]")
        elif torch.is_tensor(a):
            assert torch.equal(a, b), where
        else:
            assert a == b, where

    def test_a_state_is_a_snapshot(self):
        renderer = self.make()
        self.train(renderer, 2)
        state = renderer.state_dict()
        before = self.picture(renderer)
        self.train(renderer, 3, start=2)
        assert not torch.equal(before, self.picture(renderer))
        renderer.load_state_dict(state)
        assert torch.equal(before, self.picture(renderer))

    def test_a_foreign_state_is_refused_and_changes_nothing(self):
        renderer = self.make()
        before = self.picture(renderer)
        with pytest.raises(ValueError, match="state"):
            renderer.load_state_dict({"weights": torch.zeros(3)})
        assert torch.equal(before, self.picture(renderer))

    def test_the_optimisers_own_exactly_the_parameters_after_refine(self):
        renderer = self.make()
        optimizers = list(renderer.optimizers)
        reports = self.train(renderer, self.refine_steps)
        assert len(renderer.optimizers) == len(optimizers)
        assert all(a is b for a, b in zip(renderer.optimizers, optimizers, strict=True))
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        owned = [id(p) for group in groups for p in group["params"]]
        assert sorted(owned) == sorted(id(p) for p in self.parameters(renderer))
        states = [item for optimizer in optimizers for item in optimizer.state.items()]
        assert {id(parameter) for parameter, _ in states} <= set(owned)
        for parameter, state in states:
            for value in state.values():
                if torch.is_tensor(value) and value.ndim:
                    assert value.shape == parameter.shape
        assert all(report.size > 0 for report in reports)

    def test_terms_are_finite_scalars_even_when_nothing_is_visible(self):
        renderer = self.make()
        cameras = cameras_around(1, (8, 8))
        cameras.world_to_cam[:, 2, 3] = -50.0  # everything is behind
        render, trace = renderer.render(cameras, torch.zeros(1, 3))
        assert float(render.alpha.detach().max()) == 0.0
        terms = renderer.terms(trace)
        assert terms
        assert sorted(terms) == sorted(renderer.term_names)
        for name, term in terms.items():
            assert term.ndim == 0, name
            assert torch.isfinite(term), name
        sum(terms.values()).backward()
        for parameter in self.parameters(renderer):
            assert parameter.grad is None or torch.isfinite(parameter.grad).all()
        renderer.refine(0, trace)

    def test_rendering_without_gradients_works(self):
        renderer = self.make()
        with torch.no_grad():
            _, trace = renderer.render(cameras_around(1, (8, 8)), torch.zeros(1, 3))
        assert isinstance(renderer.refine(0, trace), RefineReport)
