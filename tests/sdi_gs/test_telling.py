# SPDX-License-Identifier: Apache-2.0
"""How far slow work has come: the levels, the line of a terminal, the lines of a log."""

from __future__ import annotations

import fcntl
import itertools
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import typer

from representations.export import bake, surface
from representations.interface import RefineReport
from representations.telling import Level, each, heard, level, listening
from sdi_gs import child, fitting, look
from sdi_gs.artefacts.run_folder import RunFolder
from sdi_gs.child import Lines
from sdi_gs.config import load
from sdi_gs.pages.text import text_table
from sdi_gs.trainer import StepReport
from sdi_gs.views import ViewPolicy
from sdi_gs.watch import line
from sdi_gs.watch.line import Part, Work, bar, clock, described, fitted
from sdi_gs.watch.progress import Live

CODE = re.compile(r"\x1b\[(\??)(\d*)([A-Za-z])")


class Screen:
    """What a terminal shows after what it was sent: carriage returns, erased lines, the cursor one
    line up. Nothing scrolls away."""

    def __init__(self) -> None:
        self.rows, self.row, self.column = [""], 0, 0

    def send(self, text: str) -> None:
        at = 0
        while at < len(text):
            code = CODE.match(text, at)
            if code:
                self._obey(code[1], code[2], code[3])
                at = code.end()
                continue
            char, at = text[at], at + 1
            if char == "\r":
                self.column = 0
            elif char == "\n":
                self.row += 1
                if self.row == len(self.rows):
                    self.rows.append("")
            else:
                row = self.rows[self.row].ljust(self.column)
                self.rows[self.row] = row[: self.column] + char + row[self.column + 1 :]
                self.column += 1

    def _obey(self, private: str, number: str, letter: str) -> None:
        if letter == "K":
            assert number == "2"
            self.rows[self.row] = ""
        elif letter == "A":
            self.row -= int(number or 1)
        else:
            assert private or letter == "m", letter

    def shown(self) -> list[str]:
        return [row.rstrip() for row in self.rows if row.strip()]


@contextmanager
def terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[str]]]:
    """stdout and stderr are a terminal that wide; a function that tells what it shows."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("COLUMNS", raising=False)
    sent: list[bytes] = []

    def read() -> None:
        with open(ours, "rb", buffering=0, closefd=False) as stream:
            try:
                while data := stream.read(4096):
                    sent.append(data)
            except OSError:  # the other side is closed
                return

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    stream = os.fdopen(theirs, "w", encoding="utf-8")
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, stream)

    def shown() -> list[str]:
        stream.flush()
        time.sleep(0.05)
        screen = Screen()
        screen.send(b"".join(sent).decode())
        return screen.shown()

    try:
        yield shown
    finally:
        monkeypatch.undo()
        stream.close()
        reader.join(timeout=5)
        os.close(ours)


class Heard:
    """Remembers what was told."""

    def __init__(self) -> None:
        self.levels: list[Level] = []
        self.told: list[tuple[tuple[str, int, int], ...]] = []

    def changed(self) -> None:
        self.told.append(tuple((one.what, one.done, one.of) for one in self.levels))


def test_loops_within_loops_are_levels_and_leave_nothing_behind() -> None:
    def broken() -> None:
        with level("picture", 5) as entered:
            entered.at(4)
            raise KeyError

    listener = Heard()
    with listening(listener):
        assert heard()
        for _ in each("ab", "run"):
            for _ in each([1, 2, 3], "step"):
                pass
        with pytest.raises(KeyError):
            broken()
    assert not heard()
    assert listener.told[:4] == [
        (("run", 0, 2), ("step", 1, 3)), (("run", 0, 2), ("step", 2, 3)),
        (("run", 0, 2), ("step", 3, 3)), (("run", 0, 2),),
    ]  # fmt: skip
    assert (("picture", 4, 5),) in listener.told
    assert listener.levels == []
    assert list(each([1, 2], "nobody hears it")) == [1, 2]


def test_a_thread_that_was_started_inside_tells_nothing() -> None:
    listener = Heard()
    with listening(listener):
        thread = threading.Thread(target=lambda: list(each(range(3), "view")))
        thread.start()
        thread.join()
    assert listener.told == []


def test_the_first_part_counts_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    one = Level("step", 11)
    seen = []
    for done, spent in enumerate((60.0, 2.0, 4.0), start=1):
        now[0] += spent
        one.at(done)
        seen.append(one.left())
    assert seen == [None, 2.0 * 9, 3.0 * 8]
    one.at(11)
    assert one.left() is None


def test_a_run_that_is_gone_on_with_is_timed_by_its_own_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    one = Level("step", 100)
    one.at(80)
    now[0] += 10.0
    one.at(85)
    assert one.left() == 2.0 * 15


def test_what_does_not_fit_goes_by_rank_and_the_step_and_the_time_stay() -> None:
    parts = [Part("step 10/400", 0), Part(bar(10, 400), 3), Part("t 900", 5), Part("loss 0.02", 6),
             Part("splats 3000", 4), Part("0.25 s/step", 2), Part("1:37 left", 1)]  # fmt: skip
    whole = "  ".join(part.text for part in parts)
    seen = [fitted(parts, width) for width in range(len(whole), 21, -1)]
    assert seen[0] == whole
    for width, text in zip(range(len(whole), 21, -1), seen, strict=True):
        assert len(text) <= width
        assert "step 10/400" in text
        assert "1:37 left" in text
    order = [next(i for i, text in enumerate(seen) if part.text not in text)
             for part in sorted(parts, key=lambda part: -part.rank)[:5]]  # fmt: skip
    assert order == sorted(order)
    assert fitted(parts, 5) == "step "


def test_bars_and_clocks() -> None:
    assert [bar(done, 4).count("█") for done in range(5)] == [0, 6, 12, 18, 24]
    assert [clock(seconds) for seconds in (0.4, 59.6, 3723)] == ["0:00", "1:00", "1:02:03"]


def test_the_time_of_all_runs_is_not_promised_by_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    runs, steps = Level("run", 3), Level("step", 10)
    for done in (1, 2):
        now[0] += 1.0
        steps.at(done)
    assert fitted(described([runs, steps]), 80) == "run 0/3  step 2/10  0:08 left of this run"
    runs.at(1)
    now[0] += 30.0
    runs.at(2)
    assert fitted(described([runs]), 80) == "run 2/3  0:30 left"


def test_what_is_printed_stands_above_the_line_and_nothing_remains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """typer writes past a stream that rich puts in the place of stdout, into the moving line."""
    monkeypatch.setattr(line, "SOON", 0.0)
    long = "/a/path/that/is/longer/than/the/terminal/is/wide/" + 10 * "x"
    with terminal(40, monkeypatch) as shown, listening(Work()):
        for number in each(range(3), "run"):
            for _ in each(range(3), "step"):
                time.sleep(0.02)
            typer.echo(f"run {number} is done")
            if number == 1:
                typer.echo(long, err=True)
                time.sleep(0.3)
                assert "run 1/3" in shown()[-1]
        seen = shown()
    assert seen == ["run 0 is done", "run 1 is done", long, "run 2 is done"]
    assert not isinstance(sys.stdout, line.Above)


def test_work_that_is_soon_done_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(80, monkeypatch) as shown, listening(Work()):
        for _ in each(range(3), "step"):
            pass
        assert shown() == []


def report(step: int, steps: int) -> StepReport:
    return StepReport(step, 700.0, {"guidance": 0.5}, RefineReport(3000, unit="splats"), steps, {})


def test_a_run_in_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 60 columns the number of the step was the first to go, the time left was cut, and the last
    line stood there twice."""
    scene: Any = SimpleNamespace(config=SimpleNamespace(steps=400), first_step=0)
    with terminal(60, monkeypatch) as shown:
        live = Live()
        live.say("loading mini")
        time.sleep(0.3)
        assert re.fullmatch(r"[|/\\-] 0 s", shown()[-1])  # something moves from the first second
        live.begin(scene)
        for step in range(3):
            time.sleep(0.02)
            live.step(report(step, 400))
        time.sleep(0.3)
        during = shown()
        live.hush()
        typer.echo("  asset  final.ply")
        live.end()
        after = shown()
    assert during[0] == "loading mini"
    assert re.match(r"step 3/400 .* s/step  \d:\d\d left$", during[1])
    assert len(during[1]) <= 60
    assert after == ["loading mini", "  asset  final.ply"]


def test_a_log_hears_after_five_seconds_and_then_ever_more_seldom(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    with listening(line.Now()):
        for length, of in ((4, "short"), (400, "long")):
            for _ in each(range(length), of):
                now[0] += 1.0
    said = [text.split("  ")[0] for text in capsys.readouterr().err.splitlines()]
    assert said == [f"long {done}/400" for done in (5, 15, 35, 75, 135, 195, 255, 315, 375)]


def test_the_lines_of_a_file_that_grows_and_is_cut(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "stats.jsonl")
    assert lines.count() == 0
    (tmp_path / "stats.jsonl").write_text("a\nb\nhal")
    assert lines.count() == 2
    with (tmp_path / "stats.jsonl").open("a") as stream:
        stream.write("f\n")
    assert lines.count() == 3
    (tmp_path / "stats.jsonl").write_text("a\n")  # as a run that is continued cuts it
    assert lines.count() == 1


def test_the_steps_of_a_child_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that its stats.jsonl has, while it runs."""
    run = RunFolder(tmp_path / "r")
    run.path.mkdir()
    script = f"for i in 1 2 3; do echo {{}} >> '{run.stats_file}'; sleep 0.5; done"
    start = subprocess.Popen
    monkeypatch.setattr(
        "subprocess.Popen", lambda words, **more: start(["sh", "-c", script], **more)
    )
    listener = Heard()
    with listening(listener), level("step", 3) as told:
        child.call(run, ["generate"], child.Orders(told=told))
    assert [told[0] for told in listener.told if told] == [("step", n, 3) for n in (1, 2, 3)]


def test_the_command_line_listens_and_a_process_that_follows_does_not(
    sdi_gs: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdi_gs.cli.known.greeting", lambda: f"heard: {heard()}")
    assert sdi_gs().out == "heard: True\n"
    monkeypatch.setenv("RANK", "1")
    assert sdi_gs().out == "heard: False\n"


def test_whatever_is_drawn_or_fitted_is_told() -> None:
    config = load("mini", ["prompt=a red mug", "device=cpu", "representation.count=20"])
    from sdi_gs import build

    shape = build.renderer(config, torch.device("cpu"))
    listener, cpu = Heard(), torch.device("cpu")
    with listening(listener):
        look.stage(config, shape).turntable(6, 16, 15.0)
        cameras = ViewPolicy().showcase(3, 16, 15.0)
        surface.pictures(shape, cameras, cpu)
        list(bake.one_by_one(shape, cameras, cpu))
        fitting.fit(shape, shape, config.views, fitting.Fit(2, 1, 16),
                    torch.Generator().manual_seed(0), cpu, print)  # fmt: skip
    moved = [told[0] for told in listener.told if told]
    wanted = [("view", 4, 6), ("view", 6, 6), *(("picture", n, 3) for n in (1, 2, 3, 1, 2, 3)),
              ("step", 1, 2), ("step", 2, 2)]  # fmt: skip
    assert [one for one, _ in itertools.groupby(moved)] == wanted


def test_a_table_that_is_too_wide_says_what_it_leaves_out() -> None:
    lines = [["run", "method", "PSNR dB", "seconds", "peak MB"], ["a", "sdi", "21.6", "93", "900"]]
    whole = text_table(lines)
    assert text_table(lines, width=len(whole.splitlines()[0])) == whole
    told = text_table(lines, width=len(whole.splitlines()[0]) - 1, keep=2)
    assert told.splitlines()[0].split() == ["run", "method", "PSNR", "dB", "seconds"]
    assert told.splitlines()[-1] == "(more columns with --wide: peak MB)"
    assert text_table(lines, width=1, keep=2).splitlines()[0] == "run  method"
