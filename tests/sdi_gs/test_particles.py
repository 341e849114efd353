# SPDX-License-Identifier: Apache-2.0
"""Several shapes of one sentence that take turns: whose turn it is, that none disturbs another, and
what a run of them leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from representations.cameras import turntable
from representations.gaussians import GaussianRenderer
from representations.gaussians.config import DensifyConfig, GaussianConfig
from representations.interface import Renderer
from representations.particles import Particles, all_shapes, whose_turn
from sdi_gs import build
from sdi_gs.budget import estimate
from sdi_gs.config import load

from .test_run import same

Run = Callable[..., Any]
CAMERAS = turntable(6, 15.0, 3.0, 40.0, (16, 16))
SETTINGS = GaussianConfig(
    count=30, max_count=50, densify=DensifyConfig(every=2, start=0.0, stop=1.0)
)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_every_shape_has_its_turn_once_in_as_many_steps_in_an_order_by_chance(count: int) -> None:
    rounds = [
        tuple(whose_turn(count * k + i, count, seed=4) for i in range(count)) for k in range(30)
    ]
    assert all(sorted(turns) == list(range(count)) for turns in rounds)
    assert len(set(rounds)) > 1
    others = [tuple(whose_turn(count * k + i, count, seed=5) for i in range(count))
              for k in range(30)]  # fmt: skip
    assert rounds != others


def splats(seed: int, steps: int) -> GaussianRenderer:
    return GaussianRenderer(SETTINGS, steps=steps, seed=seed)


def one_step(shape: Renderer, step: int, view: int) -> None:
    """As the trainer makes it: every view wants another grey."""
    render, trace = shape.render(CAMERAS[view : view + 1], torch.ones(1, 3))
    (render.rgb - view / 6.0).square().mean().backward()
    for optimizer in shape.optimizers:
        optimizer.step()
    shape.refine(step, trace)
    for optimizer in shape.optimizers:
        optimizer.zero_grad(set_to_none=True)


def test_each_is_bit_for_bit_what_it_would_be_alone() -> None:
    """With its moments, its statistics and its splats cut and cloned: 3 shapes, 12 steps, beside
    each by itself in the 4 steps that were its own. A state of the middle goes on like that."""
    together = Particles([splats(seed, 4) for seed in range(3)], seed=7)
    alone, own = [splats(seed, 4) for seed in range(3)], [0, 0, 0]
    for step in range(12):
        turn = whose_turn(step, 3, seed=7)
        assert together.turn == turn
        one_step(together, step, step % 6)
        one_step(alone[turn], own[turn], step % 6)
        own[turn] += 1
        if step == 3:
            saved = together.state_dict()
            together = Particles([splats(9, 4) for _ in range(3)], seed=7)
            assert together.turn != whose_turn(4, 3, seed=7)
            together.load_state_dict(saved)
    assert own == [4, 4, 4]
    for shape, lone in zip(together.shapes, alone, strict=True):
        assert same(shape.state_dict(), lone.state_dict())
    assert any(len(shape.cloud()) != 30 for shape in alone)  # their structure did change


def test_states_of_other_things_are_refused() -> None:
    pair = Particles([splats(0, 4), splats(1, 4)])
    three = Particles([splats(seed, 4) for seed in range(3)])
    with pytest.raises(ValueError, match="write particles=3"):
        pair.load_state_dict(three.state_dict())
    with pytest.raises(ValueError, match="no state of particles"):
        pair.load_state_dict(splats(0, 4).state_dict())
    with pytest.raises(ValueError, match="allowed is 0 to 1"):
        pair.load_state_dict({**pair.state_dict(), "turn": 2})
    with pytest.raises(ValueError, match="two or more"):
        Particles([splats(0, 4)])


def test_a_run_leaves_every_shape_and_goes_on_to_the_same_bytes(
    sdi_gs: Run, interrupted: Run, fast: Path, tmp_path: Path
) -> None:
    """By VSD, whose second network is taught both and is saved with them."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    words = ["generate", "a red mug", "--config", fast, "--guidance", "vsd", "particles=2",
             "guidance.cfg_scale=2", "output.checkpoint_every=0"]  # fmt: skip
    said = sdi_gs(*words, "--out", whole)
    assert said.code == 0, said.err
    interrupted(*words, "--out", cut)
    assert sdi_gs("resume", cut).code == 0
    first, second = (whole / name for name in ("final.ply", "particle_2.ply"))
    assert first.read_bytes() != second.read_bytes()
    for path in (first, second):
        assert path.read_bytes() == (cut / path.name).read_bytes()
    views = Image.open(whole / "particles.png").convert("RGB")
    rows = [views.crop((0, top, views.width, top + views.height // 2))
            for top in (0, views.height // 2)]  # fmt: skip
    assert rows[0].tobytes() != rows[1].tobytes()
    assert "particle_2.ply" in (whole / "report.html").read_text()
    # What looks at a run sees the first; the second is a file of splats like any other.
    assert sdi_gs("export", whole, "--format", "splat").code == 0
    assert sdi_gs("export", second, "--format", "splat", "--out", tmp_path / "two.splat").code == 0


def test_more_shapes_than_steps_are_refused_and_the_way_out_works(
    sdi_gs: Run, fast: Path, tmp_path: Path
) -> None:
    words = ["generate", "a red mug", "--config", fast, "--out", tmp_path / "r"]
    said = sdi_gs(*words, "particles=7")
    assert said.code == 2
    assert "particles=7 take turns in --steps 6" in said.err
    assert "write --steps 7 or more, or particles=6" in said.err
    assert sdi_gs(*words, "particles=6").code == 0


def test_shapes_differ_by_seed_share_the_steps_and_take_memory() -> None:
    config = load("mini", ["prompt=a red mug", "particles=3", "steps=10", "seed=5"])
    shapes = all_shapes(build.renderer(config, torch.device("cpu")))
    assert [shape.steps for shape in shapes] == [4, 4, 4]  # type: ignore[attr-defined]
    lone = [build.renderer(config.model_copy(update={"particles": 1, "seed": 5 + number}),
                           torch.device("cpu")) for number in range(3)]  # fmt: skip
    for shape, one in zip(shapes, lone, strict=True):
        assert same(shape.state_dict()["gaussians"], one.state_dict()["gaussians"])
    one, three = (estimate(config.model_copy(update={"particles": n})) for n in (1, 3))
    assert three.representation > one.representation
