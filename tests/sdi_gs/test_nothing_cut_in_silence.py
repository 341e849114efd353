# SPDX-License-Identifier: Apache-2.0
"""A writer holds what it is given to the step of its format, or says what it cannot hold."""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from representations.cloud import SplatCloud
from representations.export import Layout, packed, write_ply, write_splat
from representations.framing import frame_of
from representations.reading import Reading, read_splats

from ..representations.test_splat_files import cloud

Run = Callable[..., Any]

pytest.importorskip("gsply", reason="gsply is not installed (extra 'formats')")


def sized(zoom: float, offset: float = 0.0, degree: int = 1) -> SplatCloud:
    splats = cloud(200, degree)
    return splats.replace(
        means=zoom * splats.means + offset,
        log_scale=(splats.log_scale - 3.0).clamp(max=-1.0) + math.log(zoom),
        sh_dc=splats.sh_dc.clamp(-1, 1),
    )


@pytest.mark.parametrize("offset", [0.0, 3.0])
@pytest.mark.parametrize("zoom", [1e-3, 0.05, 1.0, 40.0, 900.0])
def test_spz_positions_are_exact_to_a_step_that_suits_the_shape(
    tmp_path: Path, zoom: float, offset: float
) -> None:
    before = sized(zoom, offset * zoom)
    before = before.replace(log_scale=before.log_scale.clamp(min=-9.9))
    everything = Layout(up="z", min_opacity=0.0)
    packed.write_spz(tmp_path / "a.spz", before, everything)
    bits = gzip.decompress((tmp_path / "a.spz").read_bytes())[13]
    after = read_splats(tmp_path / "a.spz", Reading(up="z")).cloud
    error = float((after.means - before.means).abs().max())
    radius = frame_of(before).radius
    assert error <= 0.5 * 2.0**-bits * 1.01 + 1e-6 * radius
    assert 2.0**-bits < radius / 500
    assert float((after.log_scale - before.log_scale).abs().max()) <= 1 / 32 + 1e-5


def test_a_usual_shape_has_the_usual_steps(tmp_path: Path) -> None:
    packed.write_spz(tmp_path / "a.spz", sized(0.5))
    assert gzip.decompress((tmp_path / "a.spz").read_bytes())[13] == 12


@pytest.mark.parametrize(("zoom", "offset"), [(0.01, 500.0), (1.0, 1e6), (1e-7, 0.0), (1e-3, 50.0)])
def test_steps_that_would_be_seen_are_refused(tmp_path: Path, zoom: float, offset: float) -> None:
    with pytest.raises(ValueError, match=r"write a \.ply|change the size"):
        packed.write_spz(tmp_path / "a.spz", sized(zoom, offset))
    assert not list(tmp_path.iterdir())


def test_splats_thinner_than_spz_has_them_are_refused_where_it_shows(tmp_path: Path) -> None:
    flat = sized(0.01)
    flat.log_scale[3, 2] = -14.0
    with pytest.raises(ValueError, match=r"row 3, which has a log scale beyond -10"):
        packed.write_spz(tmp_path / "a.spz", flat)
    flat = sized(1.0)
    flat.log_scale[3, 2] = -14.0
    assert packed.write_spz(tmp_path / "a.spz", flat) > 0


WRITERS: dict[str, Callable[..., int]] = {
    "splat": write_splat, "spz": packed.write_spz, "compressed": packed.write_compressed_ply,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "field", "value", "told"),
    [
        ("splat", "sh_dc", 1.9, "1 of 60 splats have colours"),
        ("splat", "sh_rest", 0.1, "view-dependent colour is left out"),
        ("spz", "sh_dc", -3.6, "1 of 60 splats have colours"),
        ("spz", "sh_rest", 1.2, "1 of 60 splats have harmonics"),
        ("compressed", "sh_rest", -4.2, "1 of 60 splats have harmonics"),
    ],
)
def test_what_a_format_cuts_is_told(
    tmp_path: Path, kind: str, field: str, value: float, told: str
) -> None:
    calm = sized(1.0).map(lambda tensor: tensor[:60])
    calm = calm.replace(opacity_logit=torch.full((60,), 3.0), sh_rest=torch.zeros(60, 3, 3))
    for wild in (False, True):
        said: list[str] = []
        if wild:
            getattr(calm, field)[7, 0] = value
        # No frame turns harmonics, so that a limit is the limit.
        assert WRITERS[kind](tmp_path / "a", calm, Layout(up="z"), said.append) == 60
        assert (len(said) == 1 and told in said[0]) == wild, said


def test_the_line_of_an_export_says_what_is_missing(sdi_gs: Run, tmp_path: Path) -> None:
    splats = sized(1.0)
    splats.opacity_logit[:3] = -9.0
    write_ply(tmp_path / "a.ply", splats, Layout(min_opacity=0.0))
    said = sdi_gs("export", tmp_path / "a.ply", "--format", "splat")
    assert said.code == 0, said.err
    assert "(197 splats; 3 fainter or unusable ones are left out; view-dependent" in said.out


def test_the_remedy_works_when_it_is_typed(sdi_gs: Run, tmp_path: Path) -> None:
    before = sized(0.01, 500.0)
    before = before.replace(log_scale=before.log_scale.clamp(min=-9.5))
    write_ply(tmp_path / "a.ply", before, Layout(min_opacity=0.0))
    words = ("export", tmp_path / "a.ply", "--format", "spz", "--up", "z", "--min-opacity", 0)
    said = sdi_gs(*words, "--out", tmp_path / "a.spz")
    assert (said.code, "add --recentre" in said.err) == (2, True)
    factor = said.err.split("--scale ")[1].split()[0]
    said = sdi_gs(*words, "--recentre", "--scale", factor, "--out", tmp_path / "a.spz")
    assert said.code == 0, said.err
    assert "moved by -" in said.out
    after = read_splats(tmp_path / "a.spz", Reading(up="z")).cloud
    centre = frame_of(before).centre
    wanted = (before.means.double() - centre) * float(factor)
    assert float((after.means - wanted).abs().max()) < 0.01
    assert float((after.log_scale - before.log_scale - math.log(float(factor))).abs().max()) < 0.04


@pytest.mark.parametrize("value", ["0", "nan", "-1", "inf"])
def test_a_scale_that_is_none(sdi_gs: Run, tmp_path: Path, value: str) -> None:
    write_ply(tmp_path / "a.ply", sized(1.0))
    said = sdi_gs("export", tmp_path / "a.ply", "--format", "spz", "--scale", value)
    assert (said.code, "write --scale 0.1" in said.err) == (2, True)
    said = sdi_gs("export", tmp_path / "a.ply", "--format", "glb", "--recentre")
    assert (said.code, "--recentre: for splats" in said.err) == (2, True)
