# SPDX-License-Identifier: Apache-2.0
"""An update from outside of the package that needs more than settings: it counts its steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sdi_gs.guidance import Guided
from sdi_gs.methods import Method


@dataclass(frozen=True, kw_only=True)
class LearningConfig:
    """Settings only."""

    kind: Literal["learning"] = "learning"


class Learning:
    """Score distillation that remembers how often it was asked."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.asked = inner, 0

    def __call__(self, *arguments: Any) -> Guided:
        self.asked += 1
        guided: Guided = self.inner(*arguments)
        return guided

    def state_dict(self) -> dict[str, Any]:
        return {"asked": self.asked}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.asked = state["asked"]


def make(_: LearningConfig, method: Method) -> Learning:
    return Learning(method.distillation())
