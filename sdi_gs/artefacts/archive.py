# SPDX-License-Identifier: Apache-2.0
"""A ``torch.save`` read without trust: neither code nor memory for more than the file holds."""

from __future__ import annotations

import pickletools
import zipfile
from typing import Any, BinaryIO

import torch
from torch import Tensor

SPARE = 64 * 2**20
"""Tensors may be this many bytes larger than the file they are from; they are where a row is stored
once and stands for many."""

VALUES = 1_000_000
"""Most values in all lists and dictionaries together, each counted as often as it is met."""

_NAMES = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "torch Size",
    "torch device",
    "builtins set",
    "_codecs encode",
    *(f"torch {name}" for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)),
    *(f"torch {cls.__name__}" for cls in torch._storage_classes if cls.__module__ == "torch"),
}
"""What the pickle inside may name. ``weights_only`` alone allows more, and some of that, such as
``bytearray``, makes gigabytes out of a number."""


def load(stream: BinaryIO, sums: bool) -> Any:
    """The plain data and tensors, on the CPU, of the ``torch.save`` that begins where ``stream``
    is and goes to its end; ``sums``: compare the check sums of its parts too.

    Raises ValueError where it claims to hold more than it does, and whatever zipfile, pickletools
    and torch raise about bytes that make no sense.
    """
    begin = stream.tell()
    length = stream.seek(0, 2) - begin
    with zipfile.ZipFile(stream) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("parts of it are compressed, and torch.save compresses nothing")
        claimed = sum(member.file_size for member in members)
        if claimed > length:
            raise ValueError(f"its parts claim {claimed:,} bytes, and it has {length:,}")
        if sums and (broken := archive.testzip()) is not None:
            raise ValueError(f"the check sum of its part {broken} does not fit")
        names = [name for name in archive.namelist() if name.endswith("data.pkl")]
        if len(names) != 1:
            raise ValueError("it has no data.pkl, or several")
        _require_known(archive.read(names[0]))
    stream.seek(begin)
    found = torch.load(stream, map_location="cpu", weights_only=True)
    _require_small(found, length + SPARE)
    return found


def _require_known(pickle: bytes) -> None:
    for code, argument, _ in pickletools.genops(pickle):
        if code.name == "STACK_GLOBAL" or (code.name == "GLOBAL" and argument not in _NAMES):
            raise ValueError(f"it asks for {argument or 'a class'}, which no state needs")


def _require_small(found: Any, limit: int) -> None:
    """Walks everything, shared parts as often as they are met; so may whoever reads it."""
    waiting, values, size = [found], 0, 0
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            if value.layout is not torch.strided or value.device.type != "cpu":
                raise ValueError(f"it holds a tensor on {value.device}, {value.layout}")
            size += value.numel() * value.element_size()
        elif isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set):
            waiting += value
        values += 1
        if size > limit or values + len(waiting) > VALUES:
            raise ValueError("it unfolds into far more than it has bytes for")
