# SPDX-License-Identifier: Apache-2.0
"""Stills of a run's film, small and side by side: what a gallery of thousands can load."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from representations.files import write_bytes

from ..artefacts.run_folder import RunFolder

STILLS = 3  # of a film, a third of a turn apart
SIDE = 112  # pixels of each
QUALITY = 82  # of JPEG: some 5 KB for a strip


def strip(run: Path, out: Path) -> bool:
    """Write the stills of a run's film as one JPEG, unless they are there and newer than the film.
    False where the run has no film, or one that cannot be read. OSError where ``out`` cannot be
    written."""
    folder = RunFolder(run)
    film = next((path for kind in ("mp4", "gif") if (path := folder.turntable(kind)).is_file()),
                None)  # fmt: skip
    if film is None:
        return False
    if out.is_file() and out.stat().st_mtime_ns >= film.stat().st_mtime_ns:
        return True
    try:
        frames = _gif(film) if film.suffix == ".gif" else _mp4(film)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False  # av's errors are ValueError or OSError
    if not frames:
        return False
    sheet = Image.new("RGB", (STILLS * SIDE, SIDE), "white")
    for place in range(STILLS):
        frame = frames[place * len(frames) // STILLS].convert("RGB")
        frame.thumbnail((SIDE, SIDE))
        left = place * SIDE + (SIDE - frame.width) // 2
        sheet.paste(frame, (left, (SIDE - frame.height) // 2))
    buffer = io.BytesIO()
    sheet.save(buffer, format="JPEG", quality=QUALITY)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(out, buffer.getvalue())
    return True


def _gif(path: Path) -> list[Image.Image]:
    with Image.open(path) as film:
        count = getattr(film, "n_frames", 1)
        frames = []
        for place in range(STILLS):
            film.seek(place * count // STILLS)
            frames.append(film.convert("RGB"))
        return frames


def _mp4(path: Path) -> list[Image.Image]:
    import av

    with av.open(str(path)) as container:
        return [frame.to_image() for frame in container.decode(video=0)]
