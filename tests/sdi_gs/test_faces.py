# SPDX-License-Identifier: Apache-2.0
"""How many faces a shape has: one for true objects, two for a Janus, none for two backs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from representations.cameras import turntable
from sdi_gs.evaluation.truth import RING, faces
from sdi_gs.mini.corpus import DISTANCE, FOV_Y_DEG, SIZE, render_instance, render_truth

CAMERAS = turntable(RING, 15.0, DISTANCE, FOV_Y_DEG, (SIZE, SIZE))
AZIMUTH = torch.arange(RING) * (360.0 / RING)
TWO_SIDED = ("cat", "duck", "elephant", "helicopter", "airplane", "car", "bear", "turtle")


def truth(kind: str) -> Tensor:
    return render_truth(kind, "gray", CAMERAS, samples=1)


@pytest.mark.parametrize("kind", TWO_SIDED)
def test_a_true_object_has_one_face_and_a_janus_two(kind: str) -> None:
    true = truth(kind)
    assert faces(true, true, AZIMUTH) == 1
    back = torch.arange(RING // 4 + 1, RING - RING // 4)  # beyond 90 degrees
    janus = true.clone()
    janus[back] = true[(RING // 2 - back) % RING]
    assert faces(janus, true, AZIMUTH) == 2
    headless = true.clone()
    front = (RING // 2 - back) % RING
    headless[front] = true[back]
    assert faces(headless, true, AZIMUTH) == 0


@pytest.mark.parametrize("kind", TWO_SIDED)
def test_objects_of_other_proportions_have_one_face_as_well(kind: str) -> None:
    true = truth(kind)
    counted = [
        faces(render_instance(kind, "gray", CAMERAS, np.random.default_rng(seed)), true, AZIMUTH)
        for seed in range(3)
    ]
    assert counted == [1, 1, 1]


def test_one_view_alone_is_no_face() -> None:
    true = truth("duck")
    chance = true.clone()
    chance[RING // 2] = true[0]
    assert faces(chance, true, AZIMUTH) == 1
    chance[RING // 2 + 1] = true[1]
    assert faces(chance, true, AZIMUTH) == 2


def test_where_the_front_begins_does_not_matter() -> None:
    true = truth("duck")
    turned = true.roll(5, 0)  # the shape faces another way
    assert faces(turned, true, AZIMUTH) == 1
