# SPDX-License-Identifier: Apache-2.0
"""Random numbers of a step: a slice of the views draws what the whole batch would have drawn."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sdi_gs.guidance.draws import ViewSlice, integer_once, normal_like, uniform, uniform_once

from .doubles import rng as seeded


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng, rows: normal_like(torch.empty(rows, 4, 3, 2), rng),
        lambda rng, rows: uniform(rows, rng),
    ],
    ids=["normal", "uniform"],
)
def test_a_part_draws_its_rows_of_the_whole(draw: Callable[..., Tensor]) -> None:
    whole = draw(seeded(), 6)
    parts = [draw(ViewSlice(seeded(), first, 6), 2) for first in (0, 2, 4)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(parts[0], parts[1])


def test_what_is_drawn_once_is_the_same_for_all_parts_and_leaves_the_generator_alike() -> None:
    whole, part = seeded(), seeded()
    cut = ViewSlice(part, 4, 6)
    assert torch.equal(uniform_once(whole), uniform_once(cut))
    assert integer_once(1000, whole) == integer_once(1000, cut)
    uniform(6, whole)
    uniform(2, cut)
    assert torch.equal(whole.get_state(), part.get_state())
