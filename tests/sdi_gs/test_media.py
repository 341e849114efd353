# SPDX-License-Identifier: Apache-2.0
"""Pictures and films are what they should be when they are read back."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from sdi_gs.artefacts import media


def smooth(frames: int, height: int, width: int) -> torch.Tensor:
    """Pictures without detail, which survive a codec: a gradient that shifts by frame."""
    y = torch.linspace(0, 1, height)[:, None].expand(height, width)
    x = torch.linspace(0, 1, width)[None].expand(height, width)
    shift = torch.linspace(0, 0.5, frames)[:, None, None]
    return torch.stack(
        [(x + shift).clamp(0, 1), (y + 0 * shift).clamp(0, 1), 0.5 + 0 * (x + shift)], dim=1
    )


@pytest.mark.parametrize("size", [(33, 21), (32, 20), (17, 16), (16, 17)])
def test_a_film_of_any_size_reads_back(size: tuple[int, int], tmp_path: Path) -> None:
    height, width = size
    frames = smooth(7, height, width)
    path = media.save_film(frames, tmp_path / "a.mp4", fps=12)
    with av.open(str(path)) as film:
        stream = film.streams.video[0]
        read = [frame.to_ndarray(format="rgb24") for frame in film.decode(stream)]
        assert stream.average_rate == 12
        assert stream.codec_context.pix_fmt == "yuv420p"  # others do not play everywhere
    assert len(read) == 7
    assert read[0].shape == (height + height % 2, width + width % 2, 3)
    wanted = media.to_uint8(frames).astype(float)
    got = np.stack(read)[:, :height, :width].astype(float)
    assert np.abs(got - wanted).mean() < 6.0  # of 255: limited range and half-size colour


def test_a_gif_reads_back(tmp_path: Path) -> None:
    path = media.save_film(smooth(5, 21, 33), tmp_path / "a.gif", fps=10)
    with Image.open(path) as film:
        assert (film.n_frames, film.size, film.info["duration"]) == (5, (33, 21), 100)
        assert film.info["loop"] == 0


def test_a_sheet_keeps_every_pixel_in_its_place(tmp_path: Path) -> None:
    tiles = torch.rand(5, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    path = media.save_png(media.contact_sheet(tiles, columns=3), tmp_path / "a.png")
    sheet = np.asarray(Image.open(path))
    assert sheet.shape == (8, 18, 3)
    assert np.array_equal(sheet[4:8, 6:12], media.to_uint8(tiles)[4])
    assert (sheet[4:8, 12:] == 255).all()  # the place of the missing sixth is white


def test_bytes_are_rounded_and_clamped() -> None:
    values = torch.tensor([-0.1, 0.0, 0.4999 / 255, 0.5001 / 255, 1.0, 1.5])
    picture = values.reshape(1, 1, 1, 6).expand(1, 3, 1, 6)
    assert media.to_uint8(picture)[0, 0, :, 0].tolist() == [0, 0, 0, 1, 255, 255]


def test_another_ending_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not \.mp4 or \.gif"):
        media.save_film(smooth(2, 16, 16), tmp_path / "a.avi", fps=5)
    assert not list(tmp_path.iterdir())


def test_psnr_of_a_known_difference() -> None:
    """An error of 0.1 everywhere is 20 dB, of 0.01 is 40; each picture on its own."""
    truth = torch.full((3, 3, 4, 4), 0.5)
    made = truth + torch.tensor([0.1, 0.01, 0.0]).reshape(3, 1, 1, 1)
    assert media.psnr(made, truth).tolist() == pytest.approx([20.0, 40.0, 120.0], abs=1e-3)


@pytest.mark.parametrize("size", [32, 64, 96])
def test_the_same_frames_are_the_same_film_every_time(tmp_path: Path, size: int) -> None:
    """A moving disc on white, at the sizes at which x264's macroblock tree is not repeatable."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij")
    frames = torch.ones(48, 3, size, size)
    for k, frame in enumerate(frames):
        stripes = torch.stack([(3 * x + k / 5).sin(), (2 * x * y + k / 7).cos(), (x + y) / 2])
        frame[:, x**2 + y**2 < 0.6] = stripes.square()[:, x**2 + y**2 < 0.6]
    films = {media.save_film(frames, tmp_path / "film.mp4", 24).read_bytes() for _ in range(30)}
    assert len(films) == 1
