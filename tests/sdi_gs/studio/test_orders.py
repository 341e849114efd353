# SPDX-License-Identifier: Apache-2.0
"""What the form says, and what is said of it before anything begins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sdi_gs.api import configure
from sdi_gs.errors import UserError
from sdi_gs.studio import orders
from sdi_gs.studio.jobs import Order
from sdi_gs.studio.outputs import Outputs, Refused

MUG = Order("a red mug")


def test_an_order_is_what_the_public_face_takes(runs: Outputs) -> None:
    order = Order("a red mug", "mini", "sds", "gaussians", 7, 3)
    assert orders.words(runs, order) == ("a red mug", "mini", "sds", 3, 7, ())
    assert orders.check(runs, order) == []


@pytest.mark.parametrize(
    ("preset", "kind", "means"),
    [
        ("mini", None, "mini"),
        ("mini", "gaussians", "mini"),
        ("mini", "instant_ngp", "mini_nerf"),
        ("mini_nerf", "gaussians", "mini"),
        ("sdi_gaussians", "instant_ngp", "sdi_nerf"),
        ("sdxl_gaussians", "instant_ngp", "sdxl_nerf"),
        ("sd35_nerf", "gaussians", "sd35_gaussians"),
        ("sdi_nerf_8gb", "gaussians", "sdi_gaussians_8gb"),
    ],
)
def test_a_representation_is_the_preset_that_was_tuned_for_it(
    runs: Outputs, preset: str, kind: str | None, means: str
) -> None:
    asked = orders.words(runs, replace(MUG, preset=preset, representation=kind))
    assert asked.preset == means
    if kind is not None:
        assert configure("x", asked.preset).representation.kind == kind


def test_a_representation_that_no_preset_was_tuned_for_is_refused(runs: Outputs) -> None:
    with pytest.raises(UserError, match="sdi_released has splats, and no preset like it has"):
        orders.words(runs, replace(MUG, preset="sdi_released", representation="instant_ngp"))


def test_the_settings_of_a_run_stand_in_for_a_preset(runs: Outputs) -> None:
    asked = orders.words(runs, replace(MUG, preset="run:base"))
    assert asked.preset == str(runs.path / "base" / "config.yaml")
    with pytest.raises(UserError, match="choose a preset to change the representation"):
        orders.words(runs, replace(MUG, preset="run:base", representation="instant_ngp"))
    for name in ("run:../base", "run:/etc", "run:.studio", "run:nothing"):
        with pytest.raises(Refused):
            orders.words(runs, replace(MUG, preset=name))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"preset": "minni"}, "did you mean 'mini'"),
        ({"preset": "mini_2d"}, "preset 'mini_2d'"),
        ({"preset": "../configs/mini.yaml"}, "preset"),
        ({"preset": "/etc/passwd"}, "preset"),
        ({"method": "sdss"}, "did you mean 'sds'"),
        ({"representation": "voxels"}, "representation 'voxels'"),
        ({"steps": 0}, "steps: 0 was given; write a whole number from 1 on"),
        ({"steps": 10**7}, "at most 1,000,000"),
        ({"seed": -1}, "seed: -1 was given"),
        ({"seed": 2**63}, "seed"),
        ({"model": "/no/such"}, "has no model_index.json"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": "a dragon"}, "knows no word of the prompt 'a dragon'. Objects: "),
        ({"prompt": "a mug\x00"}, "bytes that are no text"),
    ],
)
def test_what_cannot_work_is_refused_before_it_waits(
    runs: Outputs, changed: dict[str, object], told: str
) -> None:
    with pytest.raises(UserError) as caught:
        orders.check(runs, replace(MUG, **changed))  # type: ignore[arg-type]
    assert told in str(caught.value)


def test_a_word_that_mini_does_not_know_is_said_with_the_nearest(runs: Outputs) -> None:
    (note,) = orders.check(runs, replace(MUG, prompt="a red mugg, a mugg"))
    assert note == "mini was never taught: mugg; it knows mug; all of its words stand below"


def test_a_model_folder_is_a_setting(runs: Outputs, tiny_model: Path) -> None:
    asked = orders.words(runs, replace(MUG, model=f" {tiny_model} "))
    assert asked.settings == (f"model.source={tiny_model.resolve()}",)
    assert orders.check(runs, replace(MUG, prompt="a dragon", model=str(tiny_model))) == []


def test_a_run_that_names_plug_ins_is_left_alone(runs: Outputs) -> None:
    config = runs.path / "base" / "config.yaml"
    trap = runs.path / "trap.py"
    trap.write_text(f"open({str(runs.path / 'sprung')!r}, 'w')")
    config.write_text(config.read_text().replace("plugins: []", f"plugins: [{trap}]"))
    with pytest.raises(UserError, match=r"runs none that came with a run.*report"):
        orders.check(runs, replace(MUG, preset="run:base"))
    assert not (runs.path / "sprung").exists()
