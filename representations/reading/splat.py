# SPDX-License-Identifier: Apache-2.0
"""The ``.splat`` format; its layout is told where it is written, :mod:`..export.splat`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from ..cloud import SplatCloud
from ..ops.constants import SH_DC
from .base import ROWS, Source, SplatFileError, opacity_logit, tensor

ROW = np.dtype(
    [("position", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("quat_wxyz", "u1", 4)]
)


def open_splat(path: Path) -> Source:
    """Raises SplatFileError for a file that is not a whole number of rows."""
    size = path.stat().st_size
    if not size or size % ROW.itemsize:
        raise SplatFileError(f"{path}: has {size} bytes, needs a positive multiple of 32")
    return Source(size // ROW.itemsize, 0, _blocks(path))


def _blocks(path: Path) -> Iterator[SplatCloud]:
    with path.open("rb") as stream:
        while len(rows := np.fromfile(stream, ROW, ROWS)):
            rgba = rows["rgba"].astype(np.float32) / 255.0
            with np.errstate(divide="ignore", invalid="ignore"):
                log_scale = np.log(rows["scale"])
            yield SplatCloud(
                means=tensor(rows["position"]),
                log_scale=tensor(log_scale),
                quat_wxyz=tensor(rows["quat_wxyz"].astype(np.float32) / 128.0 - 1.0),
                opacity_logit=opacity_logit(rgba[:, 3]),
                sh_dc=tensor((rgba[:, :3] - 0.5) / SH_DC),
                sh_rest=torch.zeros(len(rows), 0, 3),
            )
