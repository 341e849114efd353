# SPDX-License-Identifier: Apache-2.0
"""Files of splats in every format and dialect that is read, for :mod:`damage`, and the wounds of
their containers: counts that are absurd, trees, archives, bombs."""

from __future__ import annotations

import functools
import gzip
import io
import json
import random
import re
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import wounds
from wounds import BYTES, TEXT, Wound

from sdi_gs.errors import UserError

ABSURD = (0, 1, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 10**12, 2**63)
SHARES = {
    "a.ply": 2400, "text.ply": 1600, "mesh.ply": 800, "a.compressed.ply": 1800, "a.splat": 1200,
    "old.spz": 1000, "a.spz": 1800, "v4.spz": 1800, "a.ksplat": 1800, "small.ksplat": 1000,
    "a.sog": 2000, "a.splats.glb": 2000, "a.gltf": 1600,
}  # fmt: skip


def splat_files(folder: Path) -> None:
    """One of each, whole."""
    import gaussforge
    import gsply
    import torch

    from representations.cloud import SplatCloud
    from representations.export import forge, packed, write_ply, write_splat
    from representations.export.gltf_splats import write_gltf_splats
    from representations.export.ksplat import write_ksplat

    folder.mkdir(parents=True)
    rng = torch.Generator().manual_seed(0)
    n = 9
    cloud = SplatCloud(
        means=torch.randn(n, 3, generator=rng),
        log_scale=torch.randn(n, 3, generator=rng) - 3,
        quat_wxyz=torch.randn(n, 4, generator=rng),
        opacity_logit=torch.randn(n, generator=rng) + 2,
        sh_dc=0.5 * torch.randn(n, 3, generator=rng),
        sh_rest=0.1 * torch.randn(n, 8, 3, generator=rng),
    )
    write_ply(folder / "a.ply", cloud)
    write_splat(folder / "a.splat", cloud)
    write_gltf_splats(folder / "a.splats.glb", cloud)
    packed.write_compressed_ply(folder / "a.compressed.ply", cloud)
    data = gsply.GSData.from_arrays(**packed._columns(cloud), shN=cloud.sh_rest.numpy())
    for name, version in (("a.spz", 3), ("v4.spz", 4)):
        gsply.write_spz(folder / name, data, version=version)
    write_ksplat(folder / "a.ksplat", cloud)
    forge.write_by_gaussforge(folder / "a.sog", cloud)
    raw = (folder / "a.ply").read_bytes()
    small = gaussforge.GaussForge().convert(raw, "ply", "ksplat")["data"]
    (folder / "small.ksplat").write_bytes(small[: len(small) // 2 * 2])
    table = struct.pack("<4sIIBBBB", b"NGSP", 2, n, 0, 12, 0, 0) + bytes(range(1, 1 + 19 * n))
    (folder / "old.spz").write_bytes(gzip.compress(table))
    (folder / "text.ply").write_text(_as_text(raw))
    names = ("x", "y", "z", "nx", "ny", "nz")
    head = "ply\nformat ascii 1.0\nelement vertex 3\n"
    head += "".join(f"property float {name}\n" for name in names)
    head += "element face 1\nproperty list uchar int vertex_indices\nend_header\n"
    (folder / "mesh.ply").write_text(head + "0 0 0 0 0 1\n1 0 0 0 0 1\n0 1 0 0 0 1\n3 0 1 2\n")
    (folder / "a.gltf").write_text(_as_gltf((folder / "a.splats.glb").read_bytes()))


def splat_files_apart(folder: Path) -> None:
    """:func:`splat_files` in a process of its own: the packages that write them start threads, and
    a fork does not survive those."""
    subprocess.run([sys.executable, __file__, str(folder)], check=True)


def _as_text(raw: bytes) -> str:
    import numpy as np

    head, _, body = raw.partition(b"end_header\n")
    rows = np.frombuffer(body, "<f4").reshape(9, -1)
    lines = [" ".join(f"{value:.6g}" for value in row) for row in rows]
    text = head.decode().replace("binary_little_endian", "ascii")
    return text + "end_header\n" + "\n".join(lines) + "\n"


def _as_gltf(raw: bytes) -> str:
    import base64

    length = struct.unpack_from("<I", raw, 12)[0]
    tree = json.loads(raw[20 : 20 + length])
    inside = base64.b64encode(raw[28 + length :]).decode()
    tree["buffers"][0]["uri"] = f"data:application/octet-stream;base64,{inside}"
    return json.dumps(tree)


def read(name: str) -> Callable[[Path], Any]:
    """By the one door; a mesh is refused there, and that is told from damage by its name."""

    def reader(folder: Path) -> Any:
        from victims import sane

        from representations.reading import SplatFileError, read_splats

        try:
            cloud = read_splats(folder / name).cloud
        except SplatFileError as error:
            if name == "mesh.ply":
                return "refused, as it should be"
            raise UserError(str(error)) from error
        found = [tensor for _, tensor in cloud.items()]
        sane([float(tensor.double().abs().max()) for tensor in found if tensor.numel()])
        if len(cloud) == 0 or not bool((cloud.quat_wxyz != 0).any(1).all()):
            from victims import Nonsense

            raise Nonsense(f"{len(cloud)} splats, or a rotation of length 0")
        return found

    return reader


# --- wounds -----------------------------------------------------------------------------------


def count_in_text(data: bytes, rng: random.Random) -> bytes:
    """A number of a header is absurd, a type another."""
    found = list(re.finditer(rb"\b(\d+|float|uchar|uint|double)\b", data[:4000]))
    at = rng.choice(found)
    words = (b"float", b"double", b"uchar", b"half", b"list uchar int", b"-1", b"1e9", b"nan")
    new = str(rng.choice(ABSURD)).encode() if at[0].isdigit() else rng.choice(words)
    return data[: at.start()] + new + data[at.end() :]


def count_in_bytes(data: bytes, rng: random.Random) -> bytes:
    """Four or eight bytes of a header are an absurd number."""
    wide = rng.choice((1, 2, 4, 8))
    at = rng.randrange(0, min(len(data), rng.choice((32, 64, 4200))), rng.choice((1, 4)))
    number = rng.choice(ABSURD) % 2 ** (8 * wide)
    return data[:at] + number.to_bytes(wide, "little") + data[at + wide :]


def in_glb(data: bytes, rng: random.Random) -> bytes:
    """The tree of a .glb holds something else, in a container that is whole."""
    length = struct.unpack_from("<I", data, 12)[0]
    text = json.dumps(wounds.value(json.loads(data[20 : 20 + length]), rng)).encode()
    text += b" " * (-len(text) % 4)
    whole = len(data) - length + len(text)
    head = struct.pack("<4sIII4s", b"glTF", 2, whole, len(text), b"JSON")
    return head + text + data[20 + length :]


def _no_bomb(data: bytes) -> bytes:
    """A second wound would make a bomb of the first go off here, and not in a reader."""
    if len(data) > 100_000:
        raise ValueError("a bomb already")
    return data


def in_gzip(data: bytes, rng: random.Random) -> bytes:
    return gzip.compress(rng.choice((*BYTES, count_in_bytes))(gzip.decompress(_no_bomb(data)), rng))


def in_archive(data: bytes, rng: random.Random) -> bytes:
    """A member of an archive is damaged, gone, or something else; the archive is whole."""
    with zipfile.ZipFile(io.BytesIO(_no_bomb(data))) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(sorted(held))
    wound = rng.choice((wounds.in_json, *BYTES)) if name.endswith(".json") else rng.choice(BYTES)
    match rng.randrange(6):
        case 0:
            del held[name]
        case 1:
            held[name] = held[rng.choice(sorted(held))]
        case 2 if not name.endswith(".json"):
            held[name] = _picture()
        case _:
            held[name] = wound(held[name], rng)
    return _archived(held)


def _archived(held: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in held.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@functools.cache
def _picture() -> bytes:
    """A PNG of 20,000 by 20,000 pixels, in 1.2 MB."""
    side = 20_000
    packer = zlib.compressobj(9)
    body = b"".join(packer.compress(bytes(1 + side)) for _ in range(side)) + packer.flush()

    def chunk(kind: bytes, data: bytes) -> bytes:
        sum_ = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + sum_

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(kind, data) for kind, data in ((b"IHDR", head), (b"IDAT", body), (b"IEND", b""))
    )


def gzip_bomb(data: bytes, rng: random.Random) -> bytes:
    """An SPZ of 2 MB whose tables are 2 GB of zeros."""
    return _gzip_bomb(rng.choice((2, 3)), rng.choice((1000, 10**8)))


@functools.cache
def _gzip_bomb(version: int, count: int) -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    head = packer.compress(struct.pack("<4sIIBBBB", b"NGSP", version, count, 3, 12, 0, 0))
    head += packer.flush(zlib.Z_FULL_FLUSH)
    # What follows a full flush depends on nothing before it: one piece stands for all.
    return head + (packer.compress(bytes(2**22)) + packer.flush(zlib.Z_FULL_FLUSH)) * 500


def zip_bomb(data: bytes, rng: random.Random) -> bytes:
    """Members of a SOG that unpack into 250 MB of zeros."""
    return _zip_bomb(rng.choice(("meta.json", "means_l.webp")))


@functools.cache
def _zip_bomb(name: str) -> bytes:
    buffer = io.BytesIO()
    meta = {"version": 2, "count": 4, "means": {"files": ["means_l.webp"] * 2}}
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open(name, "w", force_zip64=True) as member:
            for _ in range(64):
                member.write(bytes(2**22))
        if name != "meta.json":
            archive.writestr("meta.json", json.dumps(meta))
    return buffer.getvalue()


def prepare() -> None:
    """The bombs, which take seconds: once, and not in every child."""
    _picture()
    for name in ("meta.json", "means_l.webp"):
        _zip_bomb(name)


def renamed(data: bytes, rng: random.Random) -> bytes:
    """What another format holds, under this name."""
    heads = (b"ply\n", b"glTF\x02\0\0\0", b"PK\x03\x04", b"\x1f\x8b\x08\0", b"NGSP\x04\0\0\0", b"{")
    return rng.choice(heads) + data[rng.randrange(16) :]


def wounds_of(name: str) -> tuple[Wound, ...]:
    own: dict[str, tuple[Wound, ...]] = {
        ".ply": (*[count_in_text] * 6, *TEXT),
        ".spz": (count_in_bytes, gzip_bomb),
        ".ksplat": (*[count_in_bytes] * 8,),
        ".sog": (*[in_archive] * 12, zip_bomb),
        ".glb": (*[in_glb] * 12, *[count_in_bytes] * 2),
        ".gltf": (*[wounds.in_json] * 12, *TEXT),
    }
    packed: tuple[Wound, ...] = (in_gzip,) * 10 if name in ("old.spz", "a.spz") else ()
    newer: tuple[Wound, ...] = (count_in_bytes,) * 6 if name == "v4.spz" else ()
    return (*BYTES, renamed, *own.get(Path(name).suffix, ()), *packed, *newer)


if __name__ == "__main__":
    splat_files(Path(sys.argv[1]))
