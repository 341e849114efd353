# SPDX-License-Identifier: Apache-2.0
"""One door for every file of splats: :func:`read_splats`.

A format is one module with one function, ``open_...(path) -> Source``, that checks what the file
claims before it makes room for it. The readers are our own: of the packages on PyPI (measured
November 2026) gsply 0.4.6 knows no SPZ of version 1 and no .ksplat, needs imagecodecs for a SOG
and unpacks gzip without a limit, and gaussforge 0.6.0 takes 4.6 GB for an SPZ of 3 MB that is a
bomb, and returns damaged .ksplat files with NaN. In the tests both read beside ours.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..axes import VIEWER, rotate_from_file
from ..cloud import SplatCloud
from ..transfer import displayed
from .base import OPACITY_EDGE, Reading, Source, SplatFileError
from .gltf import has_splats, open_gltf
from .gltf_file import is_gltf
from .ksplat import open_ksplat
from .ply import open_ply
from .sog import is_sog, open_sog
from .splat import open_splat
from .spz import is_spz, open_spz

ENDINGS = (".ply", ".splat", ".spz", ".ksplat", ".sog", ".glb", ".gltf")
GLTF = (".glb", ".gltf")
NAMED_ROWS = 5  # of the bad ones

LINEAR = (
    "its colours are linear light: read as values for a screen, those that depend on the side in "
    "first order; where splats lie over each other they mix a little differently"
)
ACTIVATED = (
    "every scale in it is above 0 and every opacity between 0 and 1, so it may hold them as they "
    "are and not as logarithms and logits, as which they were read: --activated reads them right"
)


class Found(NamedTuple):
    """What a file holds, and what should be said of the reading."""

    cloud: SplatCloud
    notes: tuple[str, ...]


def read_splats(path: str | Path, how: Reading | None = None) -> Found:
    """The splats of a file in any format of ENDINGS, in our world frame, float32 on the CPU.

    Its contents say which format it is, where they can. Raises :class:`SplatFileError` for a file
    that is missing, damaged or no file of splats, and for one with rows that cannot be drawn (NaN,
    infinity, a rotation of length 0), unless ``how.drop_bad`` leaves them out.
    """
    path = Path(path)
    return _opened(path, None, how or Reading())


def read_ply(path: str | Path, up: str | None = None) -> SplatCloud:
    """:func:`read_splats` of a ``.ply``, whatever the name says."""
    return _as(Path(path), open_ply, up)


def read_splat(path: str | Path, up: str | None = None) -> SplatCloud:
    """:func:`read_splats` of a ``.splat``, whatever the name says."""
    return _as(Path(path), open_splat, up)


def _as(path: Path, opener: Callable[[Path], Source], up: str | None) -> SplatCloud:
    return _opened(path, opener, Reading(up=up)).cloud


def _opened(path: Path, opener: Callable[[Path], Source] | None, how: Reading) -> Found:
    notes: tuple[str, ...] = ()
    try:
        if not path.exists():
            raise SplatFileError(f"{path}: does not exist, so it cannot be opened")
        if opener is None:
            opener, notes = _opener(path)
        source = opener(path)
        return _assemble(path, source._replace(notes=(*notes, *source.notes)), how)
    except SplatFileError:
        raise
    except OSError as error:
        raise SplatFileError(f"{path}: cannot be opened: {error.strerror or error}") from error
    except MemoryError as error:
        raise SplatFileError(f"{path}: has more splats than fit in memory") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:  # of what a block holds
        told = str(error).strip() or type(error).__name__
        raise SplatFileError(f"{path}: broken file of splats: {told}") from error


def holds_splats(path: Path) -> bool:
    """Whether a file looks like splats rather than a mesh or points; it need not be whole."""
    if path.suffix.lower() in GLTF:
        return has_splats(path)
    if path.suffix.lower() != ".ply":
        return path.suffix.lower() in ENDINGS or path.name == "meta.json"
    try:
        with path.open("rb") as stream:
            head = stream.read(2**16).partition(b"end_header")[0]
    except OSError:
        return True
    splats = (b" scale_0", b" packed_position", b" f_dc_0", b" rot_0", b"chunk")
    return not head.startswith(b"ply") or any(word in head for word in splats)


def _opener(path: Path) -> tuple[Callable[[Path], Source], tuple[str, ...]]:
    """The reader of a file, and what is to be said where its name says another format."""
    with path.open("rb") as stream:
        first = stream.read(16)
    ending = path.suffix.lower()
    by_name = {".ply": open_ply, ".splat": open_splat, ".ksplat": open_ksplat,
               ".spz": open_spz, ".sog": open_sog, ".glb": open_gltf,
               ".gltf": open_gltf}.get(ending)  # fmt: skip
    found, kind = by_name, ending.lstrip(".")
    if first[:4] in (b"ply\n", b"ply\r"):
        found, kind = open_ply, "ply"
    elif is_spz(first):
        found, kind = open_spz, "spz"
    elif is_sog(path, first):
        found, kind = open_sog, "sog"
    elif is_gltf(path, first):
        found, kind = open_gltf, "glTF"
    if found is None:
        raise SplatFileError(f"{path}: is no file of splats: known are {', '.join(ENDINGS)}")
    if by_name is not None and found is not by_name:
        return found, (f"its name ends in {ending}, and it is read as what it is: {kind}",)
    return found, ()


class _Signs:
    """What every row has in common, which tells how the file was meant."""

    def __init__(self) -> None:
        self.activated = True

    def see(self, block: SplatCloud) -> None:
        scale, opacity = block.log_scale, block.opacity_logit
        self.activated &= bool((scale > 0).all() and (opacity >= 0).all() and (opacity <= 1).all())


def _assemble(path: Path, source: Source, how: Reading) -> Found:
    """All blocks in one cloud of our frame, in the memory of the cloud and little more."""
    if how.activated and not source.activatable:
        raise SplatFileError(
            f"{path}: holds scales and opacities in one way only, so --activated has no meaning; "
            "leave it out"
        )
    up = how.up or source.up or VIEWER
    n, signs, linear = source.splats, _Signs(), how.linear_colours or source.linear
    out = SplatCloud(
        *(torch.empty(n, *shape) for shape in ((3,), (3,), (4,), (), (3,), (source.rest, 3)))
    )
    row = kept = 0
    bad_rows: list[int] = []
    bad = 0
    for block in source.blocks:
        if source.activatable:
            signs.see(block)
        block = _deactivated(block) if how.activated else block
        fine = _drawable(block)
        here = int((~fine).sum())
        if here:
            bad_rows += (row + (~fine).nonzero()[: NAMED_ROWS - len(bad_rows), 0]).tolist()
            bad += here
            block = block.map(lambda tensor, fine=fine: tensor[fine])  # type: ignore[misc]
        row += len(fine)
        turned = rotate_from_file(displayed(block) if linear else block, up)
        for (_, to), (_, given) in zip(out.items(), turned.items(), strict=True):
            to[kept : kept + len(given)] = given
        kept += len(block)
    notes = list(source.notes)
    if bad:
        _require_dropped(path, how, bad, row, bad_rows)
        notes.append(f"{bad:,} of {row:,} splats were left out: {_faults(bad_rows, bad)}")
    if source.activatable and not how.activated and signs.activated:
        notes.append(ACTIVATED)
    notes += [LINEAR] if linear else []
    cloud = out.map(lambda tensor: tensor[:kept])
    try:
        cloud = how.cut.apply(cloud, notes.append)
    except ValueError as error:
        raise SplatFileError(f"{path}: {error}") from error
    return Found(cloud, tuple(notes))


def _faults(rows: list[int], bad: int) -> str:
    listed = ", ".join(map(str, rows)) + (", ..." if bad > len(rows) else "")
    return f"{'row' if bad == 1 else 'rows'} {listed}"


def _require_dropped(path: Path, how: Reading, bad: int, count: int, rows: list[int]) -> None:
    what = (
        f"{bad:,} of {count:,} splats hold NaN, infinity, a scale of 0 or a rotation of length 0: "
        f"{_faults(rows, bad)}"
    )
    if bad == count:
        hint = "; leave --activated out, it holds logarithms and logits" if how.activated else ""
        raise SplatFileError(f"{path}: {what}; none is left{hint}")
    if not how.drop_bad:
        raise SplatFileError(f"{path}: {what}; --drop-bad leaves them out")


def _drawable(block: SplatCloud) -> Tensor:
    """Bool [N]: every number is finite in float32, and the rotation is one."""
    return block.finite() & (block.quat_wxyz != 0).any(-1)


def _deactivated(block: SplatCloud) -> SplatCloud:
    """Logs of scales and logits of opacities; what is no scale or opacity becomes NaN."""
    given = block.opacity_logit
    opacity = torch.where((given >= 0) & (given <= 1), given, torch.nan)
    logit = torch.logit(opacity.clamp(OPACITY_EDGE, 1 - OPACITY_EDGE))
    return block.replace(log_scale=block.log_scale.log(), opacity_logit=logit)


__all__ = [
    "ENDINGS", "Found", "Reading", "SplatFileError", "holds_splats", "read_ply", "read_splat",
    "read_splats",
]  # fmt: skip
