# SPDX-License-Identifier: Apache-2.0
"""What a format cannot hold is refused when it is written, with the row; the old file stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from representations.cloud import SplatCloud
from representations.export import packed, playcanvas, read_ply, read_splat, write_ply, write_splat
from representations.export.mesh import Mesh, MeshError
from representations.framing import typical_radius

WRITERS = {
    "ply": write_ply,
    "splat": write_splat,
    "compressed.ply": packed.write_compressed_ply,
    "spz": packed.write_spz,
    "sog": lambda path, cloud: playcanvas.write_by_splat_transform(path, cloud, "sog"),
}
BEYOND = {"splat": 88.5, "compressed.ply": 20.5, "spz": 6.0, "sog": 88.5}  # log scales


def cloud() -> SplatCloud:
    rng = torch.Generator().manual_seed(0)
    return SplatCloud(
        means=torch.randn(6, 3, generator=rng),
        log_scale=torch.randn(6, 3, generator=rng) - 3,
        quat_wxyz=torch.nn.functional.normalize(torch.randn(6, 4, generator=rng), dim=-1),
        opacity_logit=torch.randn(6, generator=rng) + 2,
        sh_dc=torch.randn(6, 3, generator=rng),
        sh_rest=torch.zeros(6, 0, 3),
    )


def with_row(name: str, value: float, row: int = 4) -> SplatCloud:
    tensor = getattr(cloud(), name).clone()
    tensor[row, 0] = value
    return cloud().replace(**{name: tensor})


@pytest.fixture(autouse=True)
def _tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(playcanvas, "find_tool", lambda: ["false"])
    monkeypatch.setattr(packed, "_gsply", lambda kind: None)  # not to be asked


@pytest.mark.parametrize("ending", BEYOND)
@pytest.mark.parametrize("value", [None, 100.0, 3e38, -100.0])
def test_a_scale_beyond_the_format_is_refused_with_its_row(
    tmp_path: Path, ending: str, value: float | None
) -> None:
    path = tmp_path / f"a.{ending}"
    path.write_text("before")
    with pytest.raises(ValueError, match=r"1 of 6 splats do not fit, the first is row 4.*\.ply"):
        WRITERS[ending](path, with_row("log_scale", value or BEYOND[ending]))
    assert path.read_text() == "before"


def test_a_splat_file_at_the_ends_of_its_range_is_read_back(tmp_path: Path) -> None:
    for value in (-87.0, 88.0):
        write_splat(tmp_path / "a.splat", with_row("log_scale", value))
        read = read_splat(tmp_path / "a.splat").log_scale
        assert float((read - value).abs().min()) < 1e-3


def test_an_spz_reaches_so_far(tmp_path: Path) -> None:
    far = with_row("means", 2048.0)
    assert packed.position_bits(far, typical_radius(far)) == 11  # one fewer than the usual
    with pytest.raises(ValueError, match=r"reach to 1e\+06 world units \(row 4\)"):
        packed.write_spz(tmp_path / "a.spz", with_row("means", 1e6))


@pytest.mark.parametrize("length", [1e-30, 1e-20, 1.0, 1e20, 1e30])
def test_a_rotation_of_any_length_is_the_same_rotation(tmp_path: Path, length: float) -> None:
    whole = cloud()
    scaled = whole.replace(quat_wxyz=whole.quat_wxyz * length)
    assert write_ply(tmp_path / "a.ply", scaled) == 6
    torch.testing.assert_close(
        read_ply(tmp_path / "a.ply").quat_wxyz, whole.quat_wxyz, atol=1e-6, rtol=0
    )
    assert write_splat(tmp_path / "a.splat", scaled) == 6
    write_splat(tmp_path / "b.splat", whole)
    assert (tmp_path / "a.splat").read_bytes() == (tmp_path / "b.splat").read_bytes()


@pytest.mark.parametrize("name", ["means", "log_scale", "sh_dc"])
def test_what_float32_does_not_hold_is_refused_with_its_row(tmp_path: Path, name: str) -> None:
    wide = with_row(name, 0.0).map(lambda tensor: tensor.double())
    getattr(wide, name)[2, 1] = 1e39
    with pytest.raises(ValueError, match=r"row 2, which holds a number that float32 does not"):
        write_ply(tmp_path / "a.ply", wide)


def test_a_mesh_names_the_row_of_what_does_not_fit() -> None:
    corners = np.eye(3)
    face, colour = np.array([[0, 1, 2]]), np.full((3, 3), 0.5)
    Mesh(corners, face, colour).check()
    for value in (np.nan, np.inf, 1e39):
        bad = corners.copy()
        bad[2, 1] = value
        with pytest.raises(MeshError, match="1 vertices that are not finite, the first is row 2"):
            Mesh(bad, face, colour).check()
    with pytest.raises(MeshError, match="3 colors that are not finite, the first is row 0"):
        Mesh(corners, face, colour * np.nan).check()
    for index in (3, -1):
        with pytest.raises(MeshError, match="3 vertices"):
            Mesh(corners, np.array([[0, 1, index]]), colour).check()
