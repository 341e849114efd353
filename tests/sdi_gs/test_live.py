# SPDX-License-Identifier: Apache-2.0
"""Pictures for visitors: cameras, the budget, and who is next. No browser and no real clock."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from representations.cameras import look_at
from representations.interface import Cameras
from sdi_gs.watch.live import (
    SHARE,
    SIDES,
    STILL_EVERY,
    Budget,
    Controls,
    Costs,
    Limits,
    Look,
    RenderScheduler,
)

FOV = math.radians(40.0)


def look(
    eye: tuple[float, float, float] = (2.0, 0.0, 0.5), aspect: float = 1.0, fov: float = FOV
) -> Look:
    """Somebody at ``eye`` who looks at the origin; the quaternion is scipy's."""
    matrix = look_at(
        torch.tensor([eye], dtype=torch.float64), torch.zeros(1, 3, dtype=torch.float64)
    )
    x, y, z, w = Rotation.from_matrix(matrix[0, :3, :3].T.numpy()).as_quat()
    return Look((w, x, y, z), eye, fov, aspect)


@pytest.mark.parametrize("sign", [1.0, -1.0, 3.0])
def test_a_visitor_becomes_our_camera(sign: float) -> None:
    """The camera that look_at makes goes through scipy's quaternion and comes back; so does a
    quaternion of the other sign or another length."""
    rng = np.random.default_rng(0)
    for eye in rng.normal(size=(20, 3)):
        there = look(tuple(eye.tolist()))
        w, x, y, z = (sign * part for part in there.wxyz)
        cameras = Look((w, x, y, z), there.position, FOV, 1.0).cameras(64)
        expected = look_at(torch.tensor(eye)[None].float(), torch.zeros(1, 3))
        torch.testing.assert_close(cameras.world_to_cam, expected, rtol=0, atol=1e-5)  # float32
        torch.testing.assert_close(
            cameras.positions[0], torch.tensor(eye).float(), rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("aspect", [0.5, 1.0, 16 / 9])
def test_the_picture_ends_where_the_view_ends(aspect: float) -> None:
    """A ray at half the vertical field of view hits the upper edge, and one at ``aspect`` times its
    tangent the right edge."""
    cameras = look(aspect=aspect).cameras(512)
    assert max(cameras.width, cameras.height) == 512
    assert cameras.width / cameras.height == pytest.approx(aspect, rel=0.01)  # whole pixels
    tangent = math.tan(FOV / 2)
    corner = torch.tensor([tangent * cameras.width / cameras.height, -tangent, 1.0])
    x, y, w = (cameras.intrinsics[0] @ corner).tolist()
    assert x / w == pytest.approx(cameras.width, abs=1e-2)
    assert y / w == pytest.approx(0.0, abs=1e-2)


@pytest.mark.parametrize(
    "broken",
    [
        Look((math.nan, 0.0, 0.0, 1.0), (0.0, 0.0, 0.0), FOV, 1.0),
        Look((0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0), FOV, 1.0),
        Look((1.0, 0.0, 0.0, 0.0), (math.inf, 0.0, 0.0), FOV, 1.0),
        Look((1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 0.0, 1.0),
        Look((1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0), FOV, math.nan),
        Look((1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0), FOV, 0.0),
    ],
)
def test_nonsense_from_a_browser_is_no_visitor(broken: Look) -> None:
    stage = Stage(lambda pixels: 0.01)
    stage.standing[1] = broken
    assert not stage.scheduler.draw_next(0, Limits(1.0, 1.0))
    assert look().usable()


def test_pause_resume_and_save() -> None:
    controls = Controls()
    assert (controls.paused, controls.take_save()) == (False, False)
    controls.resume()  # nothing to resume
    assert not controls.paused
    controls.pause()
    controls.pause()
    assert controls.paused
    controls.ask_save()
    controls.ask_save()
    assert controls.paused  # saving does not resume
    assert controls.take_save()
    assert not controls.take_save()  # two wishes are one
    controls.resume()
    assert not controls.paused


@pytest.mark.parametrize("ask", [Controls.resume, Controls.ask_save])
def test_who_waits_is_woken(ask: Callable[[Controls], None]) -> None:
    controls = Controls()
    controls.pause()
    waiting = threading.Thread(target=lambda: controls.wait(600.0), daemon=True)
    waiting.start()
    for _ in range(100):  # the thread may not wait yet when it is asked
        ask(controls)
        waiting.join(0.1)
        if not waiting.is_alive():
            break
    assert not waiting.is_alive()


class Stage:
    """Visitors, a shape whose pictures take ``seconds(pixels)``, and a clock that only they and
    training move."""

    def __init__(self, seconds: Callable[[int], float]) -> None:
        self.now, self.seconds = 0.0, seconds
        self.drawn = 0.0
        self.standing: dict[int, Look] = {}
        self.shown: list[tuple[int, int, float]] = []  # visitor, side, when
        self.scheduler = RenderScheduler(self, self._draw, lambda: self.now)
        self.budget = Budget()

    def looks(self) -> dict[int, Look]:
        return dict(self.standing)

    def show(self, visitor: int, picture: Tensor) -> None:
        assert picture.shape[0] == 3
        self.shown.append((visitor, max(picture.shape[1:]), self.now))

    def _draw(self, cameras: Cameras) -> Tensor:
        spent = self.seconds(cameras.width * cameras.height)
        self.now += spent
        self.drawn += spent
        return torch.zeros(1, 3, cameras.height, cameras.width)

    def train(self, steps: int, seconds: float, move: Callable[[int], None] = lambda step: None):  # type: ignore[no-untyped-def]
        for step in range(steps):
            self.now += seconds
            self.budget.earn(seconds)
            move(step)
            self.scheduler.draw_next(step, Limits(SHARE * 0.3, SHARE * STILL_EVERY), self.budget)


def around(step: int) -> Look:
    angle = 0.01 * step
    return look((2.0 * math.cos(angle), 2.0 * math.sin(angle), 0.5))


COSTS = {
    "cheap": lambda pixels: 2e-8 * pixels,
    "splats on a CPU": lambda pixels: 2e-3 + 4e-7 * pixels,
    "mostly overhead": lambda pixels: 0.05 + 1e-8 * pixels,
    "dear": lambda pixels: 0.3 + 5e-6 * pixels,
}


@pytest.mark.parametrize("visitors", [1, 4])
@pytest.mark.parametrize("step_seconds", [0.05, 0.17, 4.0])
@pytest.mark.parametrize("cost", COSTS)
def test_training_keeps_nine_tenths_of_its_time(
    cost: str, step_seconds: float, visitors: int
) -> None:
    stage = Stage(COSTS[cost])

    def move(step: int) -> None:
        for name in range(visitors):
            stage.standing[name] = around(10 * name + step)

    steps = max(60, math.ceil(60.0 / step_seconds))
    stage.train(steps, step_seconds, move)
    trained = steps * step_seconds
    assert stage.drawn <= 0.1 * trained
    # and nobody is starved: everyone gets a share of what can be afforded
    affordable = SHARE * trained / stage.seconds(SIDES[-1] ** 2)
    counts = [sum(name == who for who, _, _ in stage.shown) for name in range(visitors)]
    assert min(counts) >= max(1, min(steps, 0.5 * affordable) // visitors)


def test_without_visitors_nothing_is_drawn() -> None:
    stage = Stage(COSTS["cheap"])
    stage.train(50, 0.2)
    assert stage.shown == []


def test_who_stands_still_gets_larger_pictures_and_fewer() -> None:
    still, moving = Stage(COSTS["splats on a CPU"]), Stage(COSTS["splats on a CPU"])
    still.standing[0] = look()
    still.train(600, 0.1)
    moving.train(600, 0.1, lambda step: moving.standing.update({0: around(step)}))
    assert max(side for _, side, _ in still.shown) > max(side for _, side, _ in moving.shown)
    assert len(still.shown) < len(moving.shown)
    times = [when for _, _, when in still.shown[10:]]
    # A picture that is as large as it will be is renewed, because the shape goes on changing.
    assert max(b - a for a, b in itertools.pairwise(times)) < 2 * STILL_EVERY


def test_a_shape_that_rests_is_drawn_until_it_is_sharp_and_then_left() -> None:
    stage = Stage(lambda pixels: 2e-6 * pixels)
    stage.standing[0] = look()

    def serve(times: int) -> None:
        for _ in range(times):
            if not stage.scheduler.draw_next(0, Limits(0.1, 1.5)):
                stage.now += 0.05

    serve(200)
    _, side, _ = stage.shown[-1]
    assert side == SIDES[-1]
    before = len(stage.shown)
    serve(200)
    assert len(stage.shown) == before
    stage.standing[0] = look((0.0, 2.0, 0.5))
    serve(1)
    # 0.1 s at 2 us a pixel: 223 pixels square
    assert stage.shown[before][1] == 192
    assert stage.shown[before + 1 :] == []


def test_one_slow_picture_does_not_leave_a_visitor_in_the_dark() -> None:
    slow = itertools.chain([30.0], itertools.repeat(0.01))  # kernels compile
    stage = Stage(lambda pixels: next(slow))
    stage.train(400, 0.2, lambda step: stage.standing.update({0: around(step)}))
    # 2 s of debt and 0.5 s of savings take 31 s at 8 % of the time; 30 s would have taken 375.
    assert stage.shown[1][2] - stage.shown[0][2] < 32.0
    assert len(stage.shown) > 50


def test_who_leaves_is_forgotten() -> None:
    stage = Stage(COSTS["cheap"])
    stage.standing[7] = look()
    stage.train(5, 0.2)
    assert 7 in stage.scheduler.visitors
    del stage.standing[7]
    stage.train(1, 0.2)
    assert stage.scheduler.visitors == {}


def test_costs_are_bounded_by_smaller_pictures_and_heal() -> None:
    costs = Costs()
    assert math.isinf(costs.of(512))
    assert costs.largest(1.0) == SIDES[0]
    costs.measured(64, 0.001)
    assert costs.of(128) == pytest.approx(0.004)
    assert costs.largest(0.004) == 128
    costs.measured(256, 5.0)  # a busy moment
    assert costs.of(256) == pytest.approx(0.016)  # what the small one proves
    costs.measured(256, 0.01)
    assert costs.of(256) == pytest.approx(0.01)
    assert costs.of(192) == pytest.approx(0.009)


def test_a_long_silence_is_not_saved_up() -> None:
    budget = Budget(share=0.1, most=0.5)
    budget.earn(1000.0)
    assert budget.credit == 0.5
    assert budget.affords(3.0)  # dearer than all that can be saved: done when all is saved
    budget.spend(3.0)
    assert not budget.affords(0.01)
    budget.earn(-1.0)
    assert budget.credit == -2.0
