# SPDX-License-Identifier: Apache-2.0
"""One file that continues a run bit for bit: written whole or not at all, read without pickle.

The file is a ``torch.save`` of tensors and plain data only, so that ``weights_only=True`` reads it
and opening somebody else's checkpoint runs none of their code.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from representations.files import write_bytes

from ..errors import UserError, first_line

FORMAT = "sdi-gs checkpoint"
VERSION = 1
_KINDS = {"step": int, "config": dict, "renderer": dict, "guidance": dict, "rng": Tensor,
          "seconds": int | float}  # fmt: skip
_NAME = re.compile(r"step_(\d+)\.pt")


class CheckpointError(UserError):
    """A checkpoint that cannot be written or read."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run between two steps."""

    step: int  # how many steps are done; the next one has this index
    config: dict[str, Any]  # plain data, as config.to_plain gives it
    renderer: dict[str, Any]  # Renderer.state_dict()
    guidance: dict[str, Any]  # Guidance.state_dict(), empty when it learns nothing
    rng: Tensor  # state of the run's one generator
    seconds: float  # wall-clock seconds spent so far, resumed runs included


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write ``folder/step_<n>.pt``, then drop older ones. Failing leaves what was there."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{checkpoint.step:07d}.pt"
    payload = {"format": FORMAT, "version": VERSION, **vars(checkpoint)}
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    try:
        write_bytes(path, buffer.getbuffer())
    except OSError as error:
        kept = latest(folder)
        intact = f"{kept} is intact" if kept else "no earlier checkpoint exists"
        raise CheckpointError(
            f"the checkpoint of step {checkpoint.step} could not be written to {folder}: "
            f"{error.strerror or error} ({len(buffer.getbuffer()):,} bytes needed); {intact}"
        ) from error
    for older in _all(folder):
        if older != path:
            older.unlink(missing_ok=True)
    return path


def load(path: Path) -> Checkpoint:
    """Read a checkpoint of this version; any other file is refused with the reason."""
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except Exception as error:  # damaged bytes make an unpickler fail in any way there is
        raise CheckpointError(
            f"{path} is not a complete sdi-gs checkpoint ({first_line(error)})"
        ) from None
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        raise CheckpointError(f"{path} was not written by sdi-gs")
    if payload.get("version") != VERSION:
        raise CheckpointError(
            f"{path} is a checkpoint of version {payload.get('version')}, and this sdi-gs reads "
            f"version {VERSION}: resume with the sdi-gs that wrote it; the run's final.ply, if "
            "there is one, can still start a new run with --init"
        )
    names = Checkpoint.__dataclass_fields__
    missing = [name for name in names if name not in payload]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}: it is damaged")
    wrong = [name for name, kind in _KINDS.items() if not isinstance(payload[name], kind)]
    if wrong:
        raise CheckpointError(f"{path} holds something else in {', '.join(wrong)}: it is damaged")
    return Checkpoint(**{name: payload[name] for name in names})


def latest(folder: Path) -> Path | None:
    """The checkpoint with the most steps, or None."""
    found = _all(folder)
    return found[-1] if found else None


def _all(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        (path for path in folder.iterdir() if _NAME.fullmatch(path.name)),
        key=lambda path: int(_NAME.fullmatch(path.name)[1]),  # type: ignore[index]
    )
