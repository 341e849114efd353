# SPDX-License-Identifier: Apache-2.0
"""What the studio shows, as HTML: the macros of one template, filled with what is known now."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup

from ..pages.render import environment
from . import gallery, jobs
from .gallery import Entry
from .jobs import RUNNING, WAITING, Job, Progress
from .outputs import Outputs, Refused
from .queue import Queue

SILENT = 60.0  # seconds without a word after which that is said
KEPT_TO_ITSELF = ("stats.jsonl", "summary.json", "report.html")
LISTED = 60  # runs that a list shows at once


@dataclass(frozen=True)
class Now:
    """How far a run is, in words."""

    stage: str
    done: int
    steps: int
    left: str
    size: str
    notes: Sequence[str]


def made(name: str, *given: object) -> str:
    """The macro ``name`` of the studio's template with what it is ``given``."""
    text = getattr(environment().get_template("studio.html.j2").module, name)(*given)
    assert isinstance(text, Markup)
    return str(text)


def spoken(seconds: float) -> str:
    """A time that is only roughly known: "40 s", "3 min", "2 h 10 min"."""
    if seconds < 95:
        return f"{max(5, 5 * round(seconds / 5))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def now(progress: Progress, at: float) -> Now:
    """``progress`` as it is told at the time ``at``."""
    quiet = at - progress.at if progress.at else 0.0
    left, seconds = "", progress.seconds_left()
    if progress.done < progress.steps:
        left = "the time left is not known yet"
        if seconds is not None:
            left = f"about {spoken(max(0.0, seconds - quiet))} left"
    if quiet > SILENT:
        left = f"no word for {spoken(quiet)}"
    elif progress.steps and progress.done >= progress.steps:
        left = "all steps done; film and files are made"
    size = f"{progress.size:,} {progress.unit}" if progress.unit else ""
    return Now(progress.stage, progress.done, progress.steps, left, size, progress.notes)


def pictures(outputs: Outputs, queue: Queue) -> str:
    """Of everything that runs; where nothing does, how the last one ended."""
    running = [job for job in queue.all() if job.state == RUNNING and job.verb != "export"]
    if running:
        return made("pictures", [(_live(outputs, job), job.title) for job in running])
    ended = [job for job in queue.all() if job.ended and job.verb != "export"]
    if not ended:
        return made("nothing_runs")
    last = ended[-1]
    return made("ended", last, _live(outputs, last) or _thumb(outputs, last.run), last.run or "")


def progress(outputs: Outputs, queue: Queue) -> str:
    """How far everything is that runs."""
    running = [job for job in queue.all() if job.state == RUNNING and job.verb != "export"]
    return "".join(
        made("progress", job, now(_progress(outputs, job), time.time())) for job in running
    )


def waiting(queue: Queue) -> str:
    return made("queue", [job for job in queue.all() if job.state in (RUNNING, WAITING)])


def _progress(outputs: Outputs, job: Job) -> Progress:
    return jobs.read_progress(jobs.folder(outputs.jobs, job.number))


def _live(outputs: Outputs, job: Job) -> str:
    path = jobs.folder(outputs.jobs, job.number) / "live.jpg"
    try:
        return f"/live/{job.number}?{path.stat().st_mtime_ns}"
    except OSError:
        return ""


def _thumb(outputs: Outputs, name: str | None) -> str:
    if name is None:
        return ""
    try:
        source = gallery.picture_of(outputs, name)
        if source is None:
            return ""
        shown = f"previews/{source.name}" if source.parent.name == "previews" else source.name
        return f"/file/{quote(name)}/{shown}?{source.stat().st_mtime_ns}"
    except (Refused, OSError):
        return ""


def listed(entries: Sequence[Entry], total: int, most: int = LISTED) -> str:
    """The first ``most`` of the runs that fit."""
    return made("gallery", entries[:most], len(entries), total)


def rows(entry: Entry, summary: str) -> list[tuple[str, str]]:
    """What is known of a run in a few lines."""
    if entry.state == gallery.DAMAGED and not entry.prompt:
        return []
    steps = (
        f"{entry.done:,} of {entry.steps:,}" if entry.done != entry.steps else f"{entry.steps:,}"
    )
    found = [("made of", entry.made_of), ("steps", steps), ("seed", str(entry.seed))]
    return [*found, *([("time", summary)] if summary else [])]


def seen(outputs: Outputs, name: str) -> str:
    """The report of a run in a frame: its shape to turn or its film, and what it took. The address
    changes when there is something new to see."""
    run = outputs.run(name)
    new = [_time(run / name) for name in ("summary.json", "final.ply")]
    source = gallery.picture_of(outputs, name)
    new.append(0 if source is None else source.stat().st_mtime_ns)
    there = gallery.steps_done(run) > 0 or (run / "summary.json").is_file()
    return made("seen", name, max(new) if there else None)


def _time(path: Path) -> int:
    try:
        return path.lstat().st_mtime_ns
    except OSError:
        return 0


def files_of(outputs: Outputs, name: str) -> list[tuple[str, str]]:
    """The files of a run that are worth taking away, with their sizes."""
    run = outputs.run(name)
    found = []
    for path in sorted(run.iterdir(), key=_order):
        if path.name in KEPT_TO_ITSELF or not is_there(outputs, name, path.name):
            continue
        found.append((path.name, _size(path.stat().st_size)))
    return found


def _order(path: Path) -> tuple[bool, str]:
    return not path.name.startswith(("final", "export", "mesh")), path.name


def is_there(outputs: Outputs, name: str, inner: str) -> bool:
    """Whether a run has that file."""
    try:
        outputs.file(name, inner)
    except Refused:
        return False
    return True


def _size(count: int) -> str:
    if count < 1000:
        return f"{count} bytes"
    return f"{count / 1000:.0f} kB" if count < 10**6 else f"{count / 10**6:.1f} MB"
