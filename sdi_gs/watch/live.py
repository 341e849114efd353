# SPDX-License-Identifier: Apache-2.0
"""Pictures for visitors while a run goes on: who gets the next one, how large, and when.

Everything here is plain Python that knows no browser. All pictures are drawn in the thread that
trains, between two steps, so that none ever sees half a step; a budget keeps them from taking more
than their share of its time.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from representations.cameras import pinhole, posed, rotation_matrices
from representations.interface import Cameras

SIDES = (64, 96, 128, 192, 256, 384, 512, 768)  # longer side of a picture, pixels
SHARE = 0.08  # of the training time that visitors may take; 10 % is promised, the rest is margin
SETTLED = 0.3  # seconds after which a camera that has not moved counts as standing still
MOVING_EVERY = 0.3  # seconds between two pictures for a moving camera, aimed at
STILL_EVERY = 2.0  # the same for a camera that stands still


@dataclass(frozen=True)
class Look:
    """Where a visitor stands and looks to, in our world."""

    wxyz: tuple[float, float, float, float]  # rotation from the camera (OpenCV) to the world
    position: tuple[float, float, float]  # world units
    fov_y_rad: float
    aspect: float  # width / height of the window

    def usable(self) -> bool:
        """Whether a picture can be drawn; a browser may send anything."""
        numbers = (*self.wxyz, *self.position, self.fov_y_rad, self.aspect)
        return (
            all(math.isfinite(number) for number in numbers)
            and math.hypot(*self.wxyz) > 1e-6
            and 0.0 < self.fov_y_rad < math.pi
            and 0.05 < self.aspect < 20.0
        )

    def cameras(self, side: int) -> Cameras:
        """One camera whose picture has ``side`` pixels along its longer edge, at least 8 along the
        other."""
        width = side if self.aspect >= 1.0 else max(8, round(side * self.aspect))
        height = side if self.aspect <= 1.0 else max(8, round(side / self.aspect))
        axes = rotation_matrices(torch.tensor([self.wxyz], dtype=torch.float64))
        world_to_cam = posed(axes, torch.tensor([self.position], dtype=torch.float64))
        fov = torch.tensor([self.fov_y_rad])
        return Cameras(world_to_cam.float(), pinhole(fov, width, height), width, height)


class Controls:
    """What visitors have asked for: pause, resume, save, pictures and files. Any thread may ask;
    the thread that trains answers between two steps."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._paused = False
        self._save = False
        self._wishes: list[tuple[str, int]] = []

    @property
    def paused(self) -> bool:
        return self._paused

    def pause(self) -> None:
        with self._changed:
            self._paused = True
            self._changed.notify_all()

    def resume(self) -> None:
        with self._changed:
            self._paused = False
            self._changed.notify_all()

    def ask_save(self) -> None:
        with self._changed:
            self._save = True
            self._changed.notify_all()

    def take_save(self) -> bool:
        """Whether a save was asked for since the last call; several wishes are one."""
        with self._changed:
            asked, self._save = self._save, False
            return asked

    def ask_for(self, what: str, visitor: int) -> None:
        """For a visitor alone: a "snapshot" or an "export"."""
        with self._changed:
            if (what, visitor) not in self._wishes:
                self._wishes.append((what, visitor))
            self._changed.notify_all()

    def take_wishes(self) -> list[tuple[str, int]]:
        """What visitors have asked for since the last call, each once."""
        with self._changed:
            asked, self._wishes = self._wishes, []
            return asked

    def wait(self, seconds: float) -> None:
        """Until somebody asks for something, at most ``seconds``."""
        with self._changed:
            if not self._save and not self._wishes:
                self._changed.wait(seconds)


class Budget:
    """Seconds that may be spent on visitors: a share of those that training took.

    At most ``most`` seconds are saved up, so that a long quiet time is not followed by a long
    standstill; a debt deeper than ``deepest`` is forgiven, so that one slow picture, such as the
    first, for which kernels compile, does not leave visitors in the dark.
    """

    def __init__(self, share: float = SHARE, most: float = 0.5, deepest: float = 2.0) -> None:
        self.share, self.most, self.deepest = share, most, deepest
        self.credit = 0.0

    def earn(self, training_seconds: float) -> None:
        self.credit = min(self.most, self.credit + self.share * max(0.0, training_seconds))

    def spend(self, seconds: float) -> None:
        self.credit = max(-self.deepest, self.credit - seconds)

    def affords(self, seconds: float) -> bool:
        """Whether something that takes ``seconds`` may be done now; what costs more than can be
        saved up is done when everything is saved up that can be."""
        return self.credit >= min(seconds, self.most)


class Costs:
    """Seconds of a picture by its side, learned while drawing."""

    def __init__(self) -> None:
        self._measured: dict[int, float] = {}

    def measured(self, side: int, seconds: float) -> None:
        before = self._measured.get(side, seconds)
        # A faster time is believed at once: a slow one may be compilation or a busy machine.
        self._measured[side] = seconds if seconds < before else 0.7 * before + 0.3 * seconds

    def of(self, side: int) -> float:
        """Seconds to expect; inf while nothing is known. Time grows at most like the pixels, so
        what a smaller picture took bounds what a larger one can take."""
        below = [t * max(1.0, (side / s) ** 2) for s, t in self._measured.items()]
        return min(below, default=math.inf)

    def largest(self, seconds: float) -> int:
        """The largest side that takes no more than ``seconds``, else the smallest there is."""
        return max((side for side in SIDES if self.of(side) <= seconds), default=SIDES[0])


@dataclass
class Client:
    """One browser, and what it was shown last."""

    look: Look
    moved_at: float  # seconds of the clock
    shown: Look | None = None
    side: int = 0
    version: int = -1
    shown_at: float = -math.inf


class Viewers(Protocol):
    """Where visitors are: a page in browsers."""

    def looks(self) -> Mapping[int, Look]:
        """Where each visitor stands now, by a number that stays its own."""
        ...

    def show(self, visitor: int, picture: Tensor) -> None:
        """Put a picture [3, H, W] in [0, 1] before a visitor."""
        ...


@dataclass(frozen=True)
class Limits:
    """Seconds that a picture may take."""

    moving: float
    still: float


class RenderScheduler:
    """Draws for the visitors of ``window``, one picture at a time.

    Args:
        window: where visitors are.
        draw: pictures [1, 3, H, W] in [0, 1] of the current shape, without gradients.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        window: Viewers,
        draw: Callable[[Cameras], Tensor],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.window, self.draw, self.clock = window, draw, clock
        self.costs = Costs()
        self.visitors: dict[int, Client] = {}

    def draw_next(self, version: int, limits: Limits, budget: Budget | None = None) -> bool:
        """Draw the picture that is due, if there is one and ``budget`` (None: no limit) affords it.
        Returns whether a picture was drawn. ``version`` counts the changes of the shape."""
        began = self.clock()
        self._see(began)
        due = self._due(version, began, limits)
        if due is None:
            return False
        name, side = due
        if budget is not None and not budget.affords(self._price(side)):
            return False
        visitor = self.visitors[name]
        look = visitor.look
        self.window.show(name, self.draw(look.cameras(side))[0])
        ended = self.clock()
        self.costs.measured(side, ended - began)
        if budget is not None:
            budget.spend(ended - began)
        visitor.shown, visitor.side = look, side
        visitor.version, visitor.shown_at = version, ended
        return True

    def _price(self, side: int) -> float:
        cost = self.costs.of(side)
        return 0.0 if math.isinf(cost) else cost

    def _see(self, now: float) -> None:
        """Who has come, moved and left."""
        looks = {name: look for name, look in self.window.looks().items() if look.usable()}
        self.visitors = {name: v for name, v in self.visitors.items() if name in looks}
        for name, look in looks.items():
            visitor = self.visitors.setdefault(name, Client(look, now))
            if visitor.look != look:
                visitor.look, visitor.moved_at = look, now

    def _due(self, version: int, now: float, limits: Limits) -> tuple[int, int] | None:
        """Who is drawn for next, and how large: who moved first, then whose picture is old or
        smaller than it could be, and among equals who has waited longest."""
        waiting = sorted(self.visitors.items(), key=lambda item: item[1].shown_at)
        for name, visitor in waiting:
            if visitor.look != visitor.shown:
                return name, self.costs.largest(limits.moving)
        side = self.costs.largest(limits.still)
        for name, visitor in waiting:
            settled = now - max(visitor.moved_at, visitor.shown_at) >= SETTLED
            old = visitor.version != version and now - visitor.shown_at >= STILL_EVERY
            if old or (settled and visitor.side < side):
                return name, side
        return None
