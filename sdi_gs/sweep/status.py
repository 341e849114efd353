# SPDX-License-Identifier: Apache-2.0
"""How a sweep stands: counts from listings alone, and a closer look at the few lines that run or
have failed."""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError, command, refused
from ..pages.text import text_table
from . import states
from .manifest import Line, Manifest, Sweep
from .states import NEW, Ledger, State
from .worker import BEAT, read_claim

NEAR = 4096  # bytes at the end of stats.jsonl that are looked at: some eight steps
SAMPLE = 200  # finished runs whose seconds are asked for
SHOWN = 20  # lines of a kind that a table has
WORDS = (states.DONE, states.DIVERGED, states.RUNNING, states.WAITING, states.FAILED)


class Standing(NamedTuple):
    """Of all lines of a sweep."""

    manifest: Manifest
    states: dict[str, State]  # by digest, of the lines that anything happened to
    counts: Counter[str]  # lines by word

    def state(self, line: Line) -> State:
        return self.states.get(line.digest, NEW)

    def of(self, *words: str) -> list[tuple[Line, State]]:
        """The lines of these words, in the manifest's order."""
        pairs = ((line, self.states.get(line.digest, NEW)) for line in self.manifest.lines)
        return [(line, state) for line, state in pairs if state.word in words]

    @property
    def results(self) -> int:
        return self.counts[states.DONE] + self.counts[states.DIVERGED]

    @property
    def whole(self) -> bool:
        """Whether every line has a result."""
        return self.results == len(self.manifest.lines) and not self.manifest.damage


def standing(sweep: Sweep, manifest: Manifest | None = None) -> Standing:
    """Read it from disk: the manifest, unless given, and one listing a block."""
    manifest = manifest or sweep.read()
    ledger = Ledger(sweep)
    found: dict[str, State] = {}
    for block in sorted({line.block for line in manifest.lines}):
        found.update(ledger.block(block))
    counts = Counter(found.get(line.digest, NEW).word for line in manifest.lines)
    return Standing(manifest, found, counts)


class Progress(NamedTuple):
    """Of a run that is being made."""

    step: int  # done
    seconds_per_step: float | None


def progress(run: Path) -> Progress:
    """From the end of its stats.jsonl; nothing done where there is none yet."""
    lines = []
    for raw in _tail(run / "stats.jsonl"):
        try:
            tree = json.loads(raw)
            lines.append((int(tree["step"]), float(sum(tree["seconds"].values()))))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    if not lines:
        return Progress(0, None)
    return Progress(lines[-1][0] + 1, statistics.median(seconds for _, seconds in lines))


def _tail(path: Path) -> list[bytes]:
    try:
        with path.open("rb") as stream:
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - NEAR))
            return stream.read().splitlines()
    except OSError:
        return []


def left(line: Line, seen: Progress) -> float | None:
    """Seconds until a run that is being made is done; None before its first step."""
    if seen.seconds_per_step is None:
        return None
    return max(0, line.steps - seen.step) * seen.seconds_per_step


def typical_seconds(sweep: Sweep, seen: Standing) -> float | None:
    """Of a run, from some that are done; None before the first."""
    done = seen.of(states.DONE)
    ledger = Ledger(sweep)
    asked = done[:: max(1, len(done) // SAMPLE)][:SAMPLE]
    seconds = [ledger.told(line, state).get("seconds") for line, state in asked]
    # One that another attempt had finished took no time to find.
    known = [one for one in seconds if isinstance(one, int | float) and one > 0]
    return statistics.median(known) if known else None


def text(sweep: Sweep, seen: Standing) -> str:
    """All of it for a terminal."""
    parts = [_headline(sweep, seen)]
    if seen.counts[states.RUNNING]:
        parts.append(_running(sweep, seen.of(states.RUNNING)))
    if seen.counts[states.FAILED]:
        parts.append(_failed(sweep, seen.of(states.FAILED)))
    again = sum(state.crashes > 0 for state in seen.states.values() if not state.settled)
    if again:
        parts.append(f"{again} of those that wait or run have crashed before and are tried again")
    if sweep.stop_mark.exists():
        parts.append("asked to stop: workers save and leave (sweep stop DIR --lift lets them on)")
    lost = seen.manifest.lost()
    return "\n\n".join([*parts, *([lost] if lost else [])])


def _headline(sweep: Sweep, seen: Standing) -> str:
    total = len(seen.manifest.lines)
    counted = ", ".join(f"{seen.counts[word]:,} {word}" for word in WORDS)
    told = f"{sweep.path}: {total:,} runs: {counted}"
    open_ = seen.counts[states.WAITING] + seen.counts[states.RUNNING]
    seconds = typical_seconds(sweep, seen) if open_ else None
    if seconds is not None:
        workers = seen.counts[states.RUNNING]
        told += f"\n{seconds:,.0f} s a run, so {duration(open_ * seconds)} of a machine are left"
        if workers:
            told += f", {duration(open_ * seconds / workers)} with {workers} at a time as now"
    return told


def _running(sweep: Sweep, running: list[tuple[Line, State]]) -> str:
    ledger = Ledger(sweep)
    rows = [["running", "step", "left", "where"]]
    for line, state in running[:SHOWN]:
        at = progress(sweep.run(line))
        seconds = left(line, at)
        who = read_claim(ledger.file(line, state.claim))
        rows.append([line.name, f"{at.step}/{line.steps}",
                     "-" if seconds is None else duration(seconds),
                     "-" if who is None else f"{who.host} {who.pid}"])  # fmt: skip
    return text_table(rows, left=1) + _more(len(running))


def _failed(sweep: Sweep, failed: list[tuple[Line, State]]) -> str:
    rows = [["failed", "why"]]
    for line, why in reasons(sweep, failed[:SHOWN]):
        rows.append([line.name, why])
    return (
        "\n".join(f"{name:<{max(len(row[0]) for row in rows)}}  {why}" for name, why in rows)
        + _more(len(failed))
        + f"\nto try them again: {command('sweep', 'retry', sweep.path)}"
    )


def reasons(sweep: Sweep, failed: Iterable[tuple[Line, State]]) -> list[tuple[Line, str]]:
    """The first line of why each has failed, with the number of crashes where there were some."""
    ledger, found = Ledger(sweep), []
    for line, state in failed:
        why = str(ledger.told(line, state).get("why", "")).splitlines()
        told = why[0] if why else f"see {sweep.run(line)}.log"
        found.append((line, f"crashed {state.crashes} times: {told}" if state.crashes else told))
    return found


def _more(count: int) -> str:
    return f"\n... and {count - SHOWN:,} more" if count > SHOWN else ""


def duration(seconds: float) -> str:
    """For people: 42 s, 12 min, 3.4 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"


def watch(sweep: Sweep, show: Callable[[str], None], every: float) -> None:
    """Show it again and again, every so many seconds, until no line is open any more."""
    stamp, manifest = sweep.stamp(), sweep.read()
    while True:
        if sweep.stamp() != stamp:
            stamp, manifest = sweep.stamp(), sweep.read()
        seen = standing(sweep, manifest)
        show(text(sweep, seen))
        if not seen.counts[states.RUNNING] + seen.counts[states.WAITING]:
            return
        time.sleep(every)


class Reopened(NamedTuple):
    """What 'retry' did."""

    failed: int
    gone: int  # results whose folder is not there any more


def retry(sweep: Sweep, names: Iterable[str] = ()) -> Reopened:
    """Have the lines that failed tried again, and those whose finished run is gone: all, or those
    of these names. Whoever asks twice asks once."""
    seen, ledger = standing(sweep), Ledger(sweep)
    wanted = set(names)
    failed = gone = 0
    for line, state in seen.of(states.FAILED, states.DONE, states.DIVERGED):
        if wanted and line.name not in wanted:
            continue
        if state.word == states.FAILED:
            failed += 1
        elif state.word == states.DONE and not (sweep.run(line) / "summary.json").exists():
            gone += 1
        else:
            continue
        ledger.reopen(line, state)
    return Reopened(failed, gone)


def stop(sweep: Sweep, lift: bool = False) -> str:
    """Ask every worker of a sweep to save and leave, or no longer; what is said to the user."""
    mark, again = sweep.stop_mark, command("sweep", "stop", sweep.path, "--lift")
    try:
        if lift:
            mark.unlink(missing_ok=True)
            return f"workers may go on: {command('sweep', 'run', sweep.path)}"
        mark.parent.mkdir(exist_ok=True)
        mark.touch()
    except OSError as error:
        raise UserError(refused(error, mark)) from error
    running = standing(sweep).counts[states.RUNNING]
    return (
        f"{running:,} runs save their state within {BEAT:.0f} seconds and a step, and are put "
        f"back; no worker claims another until: {again}"
    )
