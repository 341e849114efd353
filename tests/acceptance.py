# SPDX-License-Identifier: Apache-2.0
"""What a sweep must come to on any engine, whatever is killed: every run has the bytes of the same
run made alone, and one whose sentence cannot work is a failure with its name."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sdi_gs.config import to_plain
from sdi_gs.families import made_of
from sdi_gs.origin import noted
from sdi_gs.sweep import plan
from sdi_gs.sweep.manifest import Line, Sweep
from sdi_gs.sweep.plan import Plan, configuration, digest
from sdi_gs.sweep.status import standing

IMPOSSIBLE = "xyzzy plugh"
"""No word that mini knows."""


def planned(folder: Path, seeds: int, *settings: str, representation: str = "gaussians") -> Sweep:
    """A sweep of mini in ``folder``: one run for each seed, and as its second one a run of a
    sentence that a plan would have refused."""
    what = Plan(
        ("a red mug",), representations=(representation,), seeds=tuple(range(seeds)),
        settings=("threads=1", *settings),
    )  # fmt: skip
    sweep = plan.write(what, folder).sweep
    first, *others = sweep.read().lines
    key = digest(to_plain(configuration(first)) | {"prompt": IMPOSSIBLE})
    bad = first._replace(
        prompt=IMPOSSIBLE, digest=key, folder=f"runs/{first.block}/xyzzy-plugh-{key[:8]}"
    )
    lines = [first, bad, *others]
    sweep.manifest.write_text("".join(f"{line.text()}\n" for line in lines), encoding="utf-8")
    return sweep


def make_alone(
    sweep: Sweep, alone: Path, sdi_gs: Callable[..., Any], more: Callable[[], bool] = lambda: True
) -> None:
    """Each run of the sweep that can work by itself, below the folder ``alone``, as long as there
    is time for ``more``."""
    alone.mkdir(exist_ok=True)
    for line in sweep.read().lines:
        made = alone / line.name
        if not more():
            return
        if line.prompt != IMPOSSIBLE and not made.exists():
            settings = alone / f"{line.name}.yaml"
            origin = made_of(line.family, line.representation, line.method)
            settings.write_text(noted(configuration(line), origin), encoding="utf-8")
            said = sdi_gs("generate", "--config", settings, "--out", made)
            assert said.code == 0, said.err


def require_end(sweep: Sweep, alone: Path, sdi_gs: Callable[..., Any]) -> None:
    """All runs but one are done once, with the bytes of the same runs made alone below ``alone``;
    the other one has failed, and the reason names its sentence."""
    seen = standing(sweep)
    lines = seen.manifest.lines
    assert dict(seen.counts) == {"done": len(lines) - 1, "failed": 1}
    said = sdi_gs("sweep", "status", sweep.path)
    (bad,) = (line for line in lines if line.prompt == IMPOSSIBLE)
    assert seen.state(bad).word == "failed"
    assert any(bad.name in line and "xyzzy" in line for line in said.out.splitlines()), said.out
    make_alone(sweep, alone, sdi_gs)
    for line in lines:
        ends = list((sweep.state / line.block).glob(f"{line.digest}.*.done"))
        assert len(ends) == (line is not bad)
        if line is not bad:
            assert content(sweep.run(line)) == content(alone / line.name), line.name


def content(run: Path) -> dict[str, Any]:
    """What a run came to: every file byte for byte, but those that hold seconds, paths or states;
    of the steps what they computed."""
    found: dict[str, Any] = {
        path.relative_to(run).as_posix(): path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.suffix in (".ply", ".png", ".mp4", ".gif", ".glb", ".yaml")
    }
    assert {"final.ply", "preview.png", "config.yaml"} <= found.keys()
    steps = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    return found | {"steps": [(one["step"], one["losses"], one["size"]) for one in steps]}


# --- processes ------------------------------------------------------------------------------------


def words_of(pid: int) -> list[str]:
    """The command line of a process; nothing where it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    return []


def parents() -> dict[int, int]:
    """Of every process the one that has started it."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            found[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    return found


def workers(sweep: Sweep) -> list[int]:
    """The processes that are workers of that sweep and nothing else."""
    folder = str(sweep.path.resolve())
    return [pid for pid in parents() if words_of(pid)[-3:] == ["sweep", "work", folder]]


def runs_of(worker: int) -> list[int]:
    """The runs that a worker makes now."""
    return [pid for pid, parent in parents().items() if parent == worker]


def kill(pids: Sequence[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def steps(sweep: Sweep, line: Line) -> int:
    """Lines of its stats.jsonl."""
    with contextlib.suppress(OSError):
        return (sweep.run(line) / "stats.jsonl").read_bytes().count(b"\n")
    return 0


def maker(run: Path) -> int | None:
    """The living process that makes a run; None where there is none."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        pid = int(json.loads((run / ".holder.json").read_text())["pid"])
        return pid if "sdi_gs" in words_of(pid) else None
    return None


def in_the_middle(sweep: Sweep) -> list[int]:
    """The processes of the runs that have done a step and are not finished."""
    runs = [sweep.run(line) for line in sweep.read().lines if steps(sweep, line)]
    makers = [maker(run) for run in runs if not (run / "summary.json").exists()]
    return [pid for pid in makers if pid is not None]


def until(true: Callable[[], Any], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited {seconds:g} s in vain for {what}"
        time.sleep(0.1)
