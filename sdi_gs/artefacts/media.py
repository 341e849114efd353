# SPDX-License-Identifier: Apache-2.0
"""Pictures and films out of tensors in [0, 1]."""

from __future__ import annotations

import io
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from representations.files import write_bytes


def psnr(pictures: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each picture, [B], of [B, 3, H, W] in [0, 1]; equal
    pictures have 120."""
    error = (pictures - truth).square().mean(dim=(1, 2, 3)).clamp(min=1e-12)
    return -10.0 * error.log10()


def to_uint8(images: Tensor) -> np.ndarray:
    """[N, 3, H, W] in [0, 1] -> [N, H, W, 3] bytes, rounded to the nearest."""
    scaled = images.detach().clamp(0.0, 1.0).mul(255.0).round()
    array: np.ndarray = scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return array


def contact_sheet(images: Tensor, columns: int | None = None) -> Image.Image:
    """All images [N, 3, H, W] on one sheet, row by row, on white."""
    tiles = to_uint8(images)
    count, height, width, _ = tiles.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = np.full((rows * height, columns * width, 3), 255, dtype=np.uint8)
    for index, tile in enumerate(tiles):
        y, x = divmod(index, columns)
        sheet[y * height : (y + 1) * height, x * width : (x + 1) * width] = tile
    return Image.fromarray(sheet)


def tiles(sheet: Image.Image, columns: int, rows: int) -> Tensor:
    """What :func:`contact_sheet` has put on a sheet: [columns * rows, 3, H, W] in [0, 1], row by
    row. ValueError where the sheet has no so many columns and rows of whole pixels."""
    if sheet.width % columns or sheet.height % rows:
        raise ValueError(f"{sheet.width} x {sheet.height} pixels are no {columns} x {rows} images")
    pixels = torch.from_numpy(np.array(sheet.convert("RGB"))).float() / 255.0
    apart: Tensor = pixels.unflatten(1, (columns, -1)).unflatten(0, (rows, -1))
    return apart.permute(0, 2, 4, 1, 3).flatten(0, 1)


def save_png(image: Image.Image, path: Path) -> Path:
    return write_bytes(path, png_bytes(image))


def png_bytes(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def save_film(frames: Tensor, path: Path, fps: int) -> Path:
    """[N, 3, H, W] as .mp4 (H.264, plays everywhere) or .gif, by the ending of ``path``."""
    match path.suffix:
        case ".mp4":
            data = _mp4(to_uint8(frames), fps)
        case ".gif":
            data = _gif(to_uint8(frames), fps)
        case other:
            raise ValueError(f"cannot write a film to '{path.name}': {other!r} is not .mp4 or .gif")
    write_bytes(path, data)
    return path


def first_frame(path: Path) -> Image.Image | None:
    """The first picture of a film, .mp4 or .gif; None where there is none that can be read."""
    import av

    try:
        with av.open(str(path)) as container:
            frame: Image.Image = next(container.decode(video=0)).to_image()
            return frame
    except (av.error.FFmpegError, StopIteration, IndexError, ValueError, OSError):
        return None


def _mp4(frames: np.ndarray, fps: int) -> bytes:
    import av

    # yuv420p stores colour at half size, so both sides must be even; a repeated edge row or
    # column changes nothing that can be seen, unlike rescaling.
    frames = np.pad(
        frames,
        ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)),
        mode="edge",
    )
    buffer = io.BytesIO()
    with av.open(buffer, mode="w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # The same frames are the same bytes, on any number of cores: x264 splits its work by them,
        # and the assembly of its macroblock tree reads beyond the end of a small picture.
        stream.thread_count = 1
        stream.options = {"crf": "18", "preset": "medium", "x264-params": "mbtree=0"}
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return buffer.getvalue()


def _gif(frames: np.ndarray, fps: int) -> bytes:
    pictures = [Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=max(20, round(1000 / fps)),  # viewers slow down anything below 20 ms
        loop=0,
    )
    return buffer.getvalue()
