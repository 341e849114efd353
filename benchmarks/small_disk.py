# SPDX-License-Identifier: Apache-2.0
"""Every verb that writes, on disks that are too small, read-only or forbidden; needs root on Linux.

    python benchmarks/small_disk.py [--sizes 10] [--verbs generate,resume,...]

A verb gets a file system of its own (tmpfs) of k/10 of what it needs, k = 0 to 9. It must end with
exit code 0 or 2, name what could not be written, and leave every file that was there before as it
was. Then the disk is made larger, the command that was named is typed, and must end with exit code
0 and the files of a run that never met the end of a disk.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import children
import crashes
import races

LARGE = "64m"
NOBODY = 65534
FAULTS = ("full", "read-only", "forbidden")


class Verb(NamedTuple):
    name: str
    words: Callable[[Path], tuple[object, ...]]  # of the folder that it writes in
    source: str | None = None  # what lies in that folder before: a run that was killed, or a whole


def verbs(config: Path, other: Path) -> list[Verb]:
    """``other``: a whole run that lies elsewhere."""
    study = ("a mug", "--representations", config, "--guidances", "sdi", "--steps", 3)
    return [
        Verb("generate", lambda d: ("generate", "a mug", "--config", config, "--out", d / "x")),
        Verb("resume", lambda d: ("resume", d / "x"), "stopped"),
        Verb("table1", lambda d: ("table1", *study, "--out", d / "x")),
        Verb("compare", lambda d: ("compare", *study, "--out", d / "x")),
        Verb("render", lambda d: ("render", d / "x"), "whole"),
        Verb("export", lambda d: ("export", d / "x", "--format", "splat"), "whole"),
        Verb("report", lambda d: ("report", d / "x"), "whole"),
        Verb("convert", lambda d: ("convert", d / "x", "--splats", 50, "--steps", 2), "field"),
        Verb("generate2d", lambda d: ("generate2d", "a mug", "--config", config, "--steps", 2,
                                      "--samples", 1, "--out", d / "x")),
        Verb("experiment", lambda d: ("experiment", "fig9", "a mug", "--config", config,
                                      "--samples", 1, "--out", d / "x")),
        Verb("evaluate", lambda d: ("evaluate", other, "--clip", "mini", "--views", 5, "--no-flat",
                                    "--out", d / "e.json")),
    ]  # fmt: skip


def mount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], check=True)


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)


def used(disk: Path) -> int:
    found = os.statvfs(disk)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def sums(folder: Path) -> dict[str, str]:
    """What every file holds; a checkpoint of ours may be replaced by a newer one."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*") if path.is_file()
    }  # fmt: skip


def as_stranger() -> None:
    """A hook: go on as somebody who may read all and write only what is theirs: root without the
    capabilities that pass over permissions."""
    races.here()
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    libc.capget(header, data)
    for name in (1, 3):  # CAP_DAC_OVERRIDE, CAP_FOWNER
        data[0] &= ~(1 << name)
    if libc.capset(header, data) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def give_away(disk: Path) -> None:
    """Everything to somebody else, who lets others read."""
    for path in (disk, *disk.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
        path.chmod(0o755 if path.is_dir() else 0o644)


def named(said: str, words: Sequence[object]) -> list[str]:
    """The command that a message tells to type: 'sdi-gs ...' at its end, or the same one again."""
    found = re.findall(r"sdi-gs ((?:resume|generate) [^\n;]+)", said)
    return shlex.split(found[-1]) if found else [str(word) for word in words]


def attempt(verb: Verb, disk: Path, log: Path, fault: str, wanted: dict[str, object]) -> str:
    """One verb on a bad disk, then on a good one; what is wrong, or "" ."""
    words = verb.words(disk)
    before = sums(disk)
    first = children.run(words, log, as_stranger if fault == "forbidden" else races.here)
    remount(disk, f"size={LARGE},rw")
    codes = (0, 1, 2) if verb.name in ("table1", "compare") else (0, 2)
    if first.code not in codes or (first.code == 0 and fault != "full"):
        return f"exit {first.code}: {first.said[-300:]}"
    if "internal error" in first.said or "Traceback" in first.said:
        return f"not told: {first.said[-300:]}"
    if first.code != 0:
        now = sums(disk)
        ours = ("stats.jsonl", "checkpoints/")
        lost = [n for n in before if now.get(n) != before[n] and not any(o in n for o in ours)]
        if lost and verb.name not in ("resume", "render", "report"):
            return f"changed although it failed: {lost}"
        if str(disk) not in first.said and "could not be written" not in first.said:
            return f"names no file: {first.said[-300:]}"
        same = verb.name in ("table1", "compare")  # the messages of their runs are in its log
        again = list(map(str, words)) if same else named(first.said, words)
        second = children.run(again, log, races.here)
        if second.code != 0:
            return f"{shlex.join(again)} gave {second.code}: {second.said[-300:]}"
    found = crashes.files(disk)
    return (
        ""
        if not wanted or found == wanted
        else "other files: "
        + ", ".join(
            sorted(n for n in found.keys() | wanted.keys() if found.get(n) != wanted.get(n))
        )
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, default=10)
    parser.add_argument("--verbs", default="")
    args = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("small file systems are mounted by root only")
    children.load()
    bad, outcomes = 0, Counter[tuple[str, str, str]]()
    with tempfile.TemporaryDirectory(prefix="sdi-gs-disk-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        sources = _sources(folder)
        chosen = [v for v in verbs(folder / "fast.yaml", sources["whole"])
                  if not args.verbs or v.name in args.verbs.split(",")]  # fmt: skip
        for verb in chosen:
            for fault, size, why in _trials(verb, folder, sources, args.sizes):
                outcomes[verb.name, fault, "BAD" if why else "ok"] += 1
                if why:
                    bad += 1
                    print(f"{verb.name}, {fault}, {size} bytes: {why}", flush=True)
    for key, number in sorted(outcomes.items()):
        print(f"{key[0]:<11} {key[1]:<10} {key[2]:<4} {number:>3}")
    print(f"{sum(outcomes.values())} trials, {bad} bad")
    return 1 if bad else 0


def _sources(folder: Path) -> dict[str, Path]:
    """A run that was stopped, a whole one, and a whole one of a field."""
    crashes.cases(folder, [])
    track = races.Track("resume+resume", children.empty(folder / "track"))
    sources = {"stopped": folder / "stopped", "whole": folder / "whole", "field": folder / "field"}
    assert track.stopped is not None
    shutil.copytree(track.stopped, sources["stopped"])
    for name, config in (("whole", "fast.yaml"), ("field", "field.yaml")):
        words = ("generate", "a mug", "--config", folder / config, "--out", sources[name])
        ended = children.run(words, folder / "log")
        assert ended.code == 0, ended.said
    return sources


def _trials(verb: Verb, folder: Path, sources: dict[str, Path], sizes: int):  # type: ignore[no-untyped-def]
    """Fault, size and what is wrong, for every bad disk of a verb."""
    disk, log = folder / "disk", folder / "log"
    disk.mkdir(exist_ok=True)

    def fresh() -> int:
        """A large disk with what the verb finds there; the bytes of that."""
        mount(disk, f"size={LARGE},mode=755")
        if verb.source is not None:
            shutil.copytree(sources[verb.source], disk / "x")
        return used(disk)

    filled = fresh()
    ended = children.run(verb.words(disk), log, races.here)
    needs, wanted = used(disk) - filled, crashes.files(disk)
    subprocess.run(["umount", disk], check=True)
    if ended.code != 0:
        yield "none", 0, f"does not run at all: {ended.said[-300:]}"
        return
    bads = [("full", filled + k * needs // sizes) for k in range(sizes)]
    for fault, size in [*bads, ("read-only", 0), ("forbidden", 0)]:
        fresh()
        try:
            if fault == "full":
                remount(disk, f"size={max(4096, size)}")
            elif fault == "read-only":
                remount(disk, "ro")
            else:
                give_away(disk)
            yield fault, size, attempt(verb, disk, log, fault, wanted)
        except TimeoutError as error:
            yield fault, size, str(error)
        finally:
            subprocess.run(["umount", disk], check=True)


if __name__ == "__main__":
    sys.exit(main())
