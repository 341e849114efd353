# SPDX-License-Identifier: Apache-2.0
"""Damage of the kinds that disks, networks, editors and other programs do to a file, drawn from a
generator; for :mod:`damage`."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Wound = Callable[[bytes, random.Random], bytes]

# --- bytes ------------------------------------------------------------------------------------


def flip(data: bytes, rng: random.Random) -> bytes:
    raw = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(raw)) if rng.random() < 0.6 else rng.randrange(min(len(raw), 400))
        raw[at] ^= 1 << rng.randrange(8)
    return bytes(raw)


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def lose(data: bytes, rng: random.Random) -> bytes:
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:a] + data[b:]


def repeat(data: bytes, rng: random.Random) -> bytes:
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:b] + data[a:]


def noise(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.randint(1, 60)) + data[at:]


def zeros(data: bytes, rng: random.Random) -> bytes:
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:a] + bytes(b - a) + data[b:]


def float_that_is_none(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(max(1, len(data) - 4))
    value = rng.choice((float("nan"), float("inf"), -float("inf"), 1e38, -0.0, 1e-40))
    return data[:at] + struct.pack("<f", value) + data[at + 4 :]


def nothing(data: bytes, rng: random.Random) -> bytes:
    return rng.choice((b"", b"\n", b"\x00" * 64, b"hello", b"version https://git-lfs.github.com\n"))


BYTES: tuple[Wound, ...] = (flip, cut, lose, repeat, noise, zeros, float_that_is_none, nothing)

# --- lines and words --------------------------------------------------------------------------


def lines(data: bytes, rng: random.Random) -> bytes:
    rows = data.split(b"\n")
    a, b = rng.randrange(len(rows)), rng.randrange(len(rows))
    match rng.randrange(4):
        case 0:
            rows[a], rows[b] = rows[b], rows[a]
        case 1:
            rows.insert(b, rows[a])
        case 2:
            del rows[a]
        case _:
            rows[a] = rows[a][: rng.randrange(len(rows[a]) + 1)]
    return b"\n".join(rows)


def coding(data: bytes, rng: random.Random) -> bytes:
    text = data.decode("utf-8", "replace")
    match rng.randrange(6):
        case 0:
            return text.encode("utf-16")
        case 1:
            return b"\xef\xbb\xbf" + data
        case 2:
            return data.replace(b"\n", b"\r\n")
        case 3:
            return data.replace(b"a", b"\xe4", 3)
        case 4:
            return text.encode("utf-32")
        case _:
            return data.replace(b'"', "\u201c".encode())


WORDS = (b"null", b"NaN", b".nan", b"-1", b"1e999", b"999999999999", b"true", b"[]", b"{}", b"''",
         b"2020-99-99", b"0x", b"&a [*a]", b"*a", b"!!python/none", b"1_0", b"9" * 5000,
         b"[" * 3000, b"? x", b"\t", b"#", b"%", b"@", b"-")  # fmt: skip


def word(data: bytes, rng: random.Random) -> bytes:
    rows = data.split(b" ")
    rows[rng.randrange(len(rows))] = rng.choice(WORDS)
    return b" ".join(rows)


TEXT: tuple[Wound, ...] = (lines, lines, coding, word, word)

# --- values -----------------------------------------------------------------------------------


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


VALUES: tuple[Any, ...] = (
    None, float("nan"), float("inf"), -float("inf"), -1, 0, 1, 2, 7, 10**6, 10**9, 10**30, 1e300,
    -1e300, 0.5, 1e-30, "", "x", "1", "../x", [], {}, [None], {"x": 1}, True, False, nested(40),
    nested(2000), [1, 2, 3], "\u0000", "a" * 3000,
)  # fmt: skip


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every container and key below a tree."""
    found = []
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        keys = node.keys() if isinstance(node, dict) else range(len(node))
        for key in list(keys):
            found.append((node, key))
            if isinstance(node[key], dict | list):
                waiting.append(node[key])
    return found


def value(tree: Any, rng: random.Random) -> Any:
    """One value of plain data is another, or is gone, or has another name."""
    if not isinstance(tree, dict | list) or not tree:
        return rng.choice(VALUES)
    tree = copy.deepcopy(tree)
    node, key = rng.choice(places(tree))
    match rng.randrange(8):
        case 0:
            del node[key]
        case 1 if isinstance(node, dict):
            node[str(key) + "s"] = node.pop(key)
        case 2 if isinstance(node, dict):
            node[rng.choice(("extra", "", "kind", "steps"))] = rng.choice(VALUES)
        case 3 if isinstance(node[key], int | float) and not isinstance(node[key], bool):
            node[key] = node[key] * rng.choice((-1, 2, 10, 1000, 0.5, 1e6)) + rng.choice((0, 0, 1))
        case 4 if isinstance(node[key], list) and node[key]:
            node[key] = node[key] * 2
        case _:
            node[key] = rng.choice(VALUES)
    return tree


def in_json(data: bytes, rng: random.Random) -> bytes:
    return json.dumps(value(json.loads(data), rng), indent=2).encode()


def in_line(data: bytes, rng: random.Random) -> bytes:
    rows = data.split(b"\n")
    at = rng.randrange(max(1, len(rows) - 1))
    rows[at] = json.dumps(value(json.loads(rows[at]), rng)).encode()
    return b"\n".join(rows)


def in_yaml(data: bytes, rng: random.Random) -> bytes:
    import yaml

    if b"*a" in data:
        raise ValueError("a bomb already, which would go off here")
    return yaml.safe_dump(value(yaml.safe_load(data), rng), sort_keys=False).encode()


def alias_bomb(data: bytes, rng: random.Random) -> bytes:
    rows = [b"a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [b"a%d: &a%d [%s]" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 10)) for n in range(1, 12)]
    return b"\n".join(rows) + b"\nprompt: *a11\n" + data


# --- tensors ----------------------------------------------------------------------------------


def odd_tensor(tensor: torch.Tensor, rng: random.Random) -> Any:
    match rng.randrange(9):
        case 0:
            return tensor.to(rng.choice((torch.float64, torch.float16, torch.int64, torch.bool)))
        case 1:
            return tensor.reshape(-1)[: rng.randrange(tensor.numel() + 1)]
        case 2:
            return tensor[None]
        case 3:
            return tensor[:0] if tensor.dim() else tensor
        case 4 if tensor.is_floating_point() and tensor.numel():
            tensor = tensor.clone()
            tensor.reshape(-1)[rng.randrange(tensor.numel())] = rng.choice(
                (float("nan"), float("inf"), 1e38)
            )
            return tensor
        case 5:
            return torch.cat([tensor, tensor]) if tensor.dim() else tensor
        case 6:
            return tensor.reshape(-1)[:1].expand(2**33) if tensor.numel() else None
        case 7 if tensor.dim() > 1:
            return tensor.transpose(0, 1)
        case _:
            return rng.choice((None, "x", [], 3))


def in_state(tree: Any, rng: random.Random) -> Any:
    """One entry of a state, tensors included, is another."""
    if rng.random() < 0.4:
        return value(tree, rng)
    tree = copy.deepcopy(tree)
    tensors = [(n, k) for n, k in places(tree) if isinstance(n[k], torch.Tensor)]
    node, key = rng.choice(tensors)
    node[key] = odd_tensor(node[key], rng)
    return tree


def in_safetensors(data: bytes, rng: random.Random) -> bytes:
    """The header claims something else; or a number of the body is none."""
    length = struct.unpack("<Q", data[:8])[0]
    body = data[8 + length :]
    if rng.random() < 0.15:
        return struct.pack("<Q", rng.choice((0, 1, 2**31, 2**63, length * 2))) + data[8:]
    header = json.loads(data[8 : 8 + length])
    names = [name for name in header if name != "__metadata__"]
    name = rng.choice(names)
    entry = header[name]
    match rng.randrange(7):
        case 0:
            entry["dtype"] = rng.choice(("F32", "F16", "I64", "BF16", "X", None, "U8"))
        case 1:
            entry["shape"] = rng.choice(([], [10**9, 10**9], [0], [-1], None, entry["shape"][::-1]))
        case 2:
            entry["data_offsets"] = rng.choice(([0, 2**40], [5, 1], [0], None, [-1, 4]))
        case 3:
            del header[name]
        case 4:
            header[name + "x"] = header.pop(name)
        case 5:
            other = rng.choice(names)
            header[name], header[other] = header[other], header[name]
        case _:
            begin, _ = entry["data_offsets"]
            none = struct.pack("<e", rng.choice((float("nan"), float("inf"), 6e4)))
            body = body[:begin] + none + body[begin + 2 :]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


# --- files ------------------------------------------------------------------------------------


def in_folder(path: Path, rng: random.Random) -> None:
    """Something else is where the file was."""
    path.unlink()
    match rng.randrange(5):
        case 0:
            path.mkdir()
        case 1:
            os.symlink(path, path)
        case 2:
            os.symlink(path.parent / "nowhere", path)
        case 3:
            path.mkdir()
            (path / "x").write_text("x")
        case _:
            pass


def mirrored(whole: Path, target: Path) -> None:
    """``whole`` as links: a file is copied only when it is damaged."""
    if target.exists():
        shutil.rmtree(target)
    for path in sorted(whole.rglob("*")):
        other = target / path.relative_to(whole)
        if path.is_dir():
            other.mkdir(parents=True)
        else:
            other.parent.mkdir(parents=True, exist_ok=True)
            other.symlink_to(path)
