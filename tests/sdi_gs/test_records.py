# SPDX-License-Identifier: Apache-2.0
"""stats.jsonl and summary.json: what is whole is read, what is damaged is named."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from sdi_gs.artefacts import records
from sdi_gs.artefacts.run_folder import RunFolder
from sdi_gs.errors import UserError

Run = Callable[..., Any]


def line(at: int, /, **changed: Any) -> str:
    whole = {
        "step": at, "t": 500.0, "loss": 0.5, "losses": {"guidance": 0.5}, "size": 80,
        "unit": "splats", "added": 0, "removed": 0, "events": [], "evaluations": 8,
        "seconds": {"render": 0.01}, "peak_memory_mb": 500, "peak_cuda_memory_mb": None,
    }  # fmt: skip
    return json.dumps({**whole, **changed})


SUMMARY = {
    "prompt": "a mug", "asset": {"final.ply": "80 splats"}, "steps": 6, "seconds": 1.5,
    "seconds_per_stage": {"render": 0.1}, "size": 80, "versions": {"torch": "2"},
    "hardware": {"cpu": "x", "cores": 2, "gpu": None}, "peak_memory_mb": 500,
    "peak_cuda_memory_mb": None,
}  # fmt: skip


def stats(folder: Path, *lines: str, end: str = "\n") -> RunFolder:
    (folder / "stats.jsonl").write_text("\n".join(lines) + end)
    return RunFolder(folder)


def test_one_bad_line_costs_one_line(tmp_path: Path) -> None:
    lines = [line(step) for step in range(30)]
    lines[9] = lines[9][:40]
    run = stats(tmp_path, *lines)
    found = run.read_stats()
    assert [one.step for one in found.lines] == [*range(9), *range(10, 30)]
    assert found.texts == [*lines[:9], *lines[10:]]
    assert len(found.damage) == 1
    assert found.damage[0].startswith(f"{run.stats_file} line 10: it is not JSON")


def test_a_last_line_that_a_crash_cut_off_is_no_damage(tmp_path: Path) -> None:
    for cut in (1, 40, len(line(2)) - 1):
        found = stats(tmp_path, line(0), line(1), line(2)[:cut], end="").read_stats()
        assert [one.step for one in found.lines] == [0, 1]
        assert found.damage == []
    assert len(stats(tmp_path, line(0), line(1), end="").stats()) == 2
    assert stats(tmp_path, line(0), line(1)[:40]).read_stats().damage  # a line end follows


BAD: dict[str, dict[str, Any]] = {
    "a step below 0": {"step": -1},
    "a step that is half": {"step": 1.5},
    "a flag": {"step": True},
    "a word": {"loss": "0.5"},
    "nothing": {"loss": None},
    "NaN": {"loss": math.nan},
    "infinity": {"t": math.inf},
    "more than float32 has": {"loss": 1e300},
    "a list": {"seconds": [1.0]},
    "seconds below 0": {"seconds": {"render": -1.0}},
    "seconds that are a word": {"seconds": {"render": "x"}},
    "NaN within": {"losses": {"guidance": math.nan}},
    "memory below 0": {"peak_memory_mb": -3},
    "a size beyond counting": {"size": 10**13},
}


@pytest.mark.parametrize("name", BAD)
def test_a_value_that_no_run_writes(tmp_path: Path, name: str) -> None:
    run = stats(tmp_path, line(0), line(1, **BAD[name]), line(2))
    found = run.read_stats()
    assert [one.step for one in found.lines] == [0, 2]
    assert "line 2: " in found.damage[0]
    with pytest.raises(UserError, match=r"line 2: .*generate --config"):
        run.measured_stats(3)


@pytest.mark.parametrize("key", [*json.loads(line(0))])
def test_a_key_that_is_missing(tmp_path: Path, key: str) -> None:
    lacks = {name: value for name, value in json.loads(line(1)).items() if name != key}
    found = stats(tmp_path, line(0), json.dumps(lacks)).read_stats()
    assert len(found.damage) == (0 if key.startswith("peak_") else 1)


def test_as_many_steps_as_possible_are_believed(tmp_path: Path) -> None:
    """Twice written, swapped, and from the far future. Against all subsets."""
    for steps in ([0, 1, 1, 2], [0, 2, 1, 3], [0, 999, 1, 2, 3], [5, 0, 1], [3, 3, 3], []):
        found = stats(tmp_path, *map(line, steps), end="\n" if steps else "").read_stats()
        rising = [
            len(some)
            for count in range(len(steps) + 1)
            for some in combinations(steps, count)
            if list(some) == sorted(set(some))
        ]
        kept = [one.step for one in found.lines]
        assert len(kept) == max(rising)
        assert kept == sorted(set(kept))
        assert len(found.damage) == len(steps) - len(kept)


def test_what_is_measured_is_all_of_a_run(tmp_path: Path) -> None:
    run = stats(tmp_path, *map(line, range(6)))
    assert len(run.measured_stats(6)) == 6
    with pytest.raises(UserError, match="has 6 steps of a run of 5"):
        run.measured_stats(5)
    with pytest.raises(UserError, match="lacks the steps 6 to 8 of 9"):
        run.measured_stats(9)
    with pytest.raises(UserError, match="lacks the steps 0, 3 of 6"):
        stats(tmp_path, *map(line, (1, 2, 4, 5))).measured_stats(6)


def test_a_resumed_run_keeps_the_good_lines_and_says_which_are_lost(tmp_path: Path) -> None:
    lines = [line(step) for step in range(8)]
    run = stats(tmp_path, lines[0], "{", *lines[2:], '{"step": 8, "l', end="")
    told = run.truncate_stats(6)
    assert len(told) == 2
    assert "1 damaged line left out" in told[0]
    assert "stats.jsonl line 2: it is not JSON" in told[0]
    assert "no lines any more for the steps 1" in told[1]
    assert run.stats_file.read_text().splitlines() == [lines[0], *lines[2:6]]
    assert run.truncate_stats(6) == [told[1]]  # the gap stays, and is said again


@pytest.mark.parametrize(
    "content",
    [line(0).encode("utf-16"), b"\xff\xfe\x00", b"\x00" * 100 + b"\n", b"[" * 100_000 + b"\n",
     b"x" * (records.LONGEST_LINE + 10) + b"\n", b"1e999\n", b"9" * 5000 + b"\n"],
    ids=["utf-16", "no text", "zeros", "deep", "long", "infinite", "digits"],
)  # fmt: skip
def test_what_is_no_line_at_all(tmp_path: Path, content: bytes) -> None:
    run = RunFolder(tmp_path)
    run.stats_file.write_bytes(content + b"\n" + line(4).encode() + b"\n")
    found = run.read_stats()
    assert [one.step for one in found.lines] == [4]
    assert found.damage
    assert len(records.lost(found.damage)) < 2000
    run.summary_file.write_bytes(content)
    with pytest.raises(UserError, match=r"summary.json is damaged: .*resume"):
        run.summary()


def test_a_mark_of_the_byte_order_is_none_of_the_text(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.stats_file.write_text(line(0) + "\n", encoding="utf-8-sig")
    assert run.read_stats().damage == []
    run.summary_file.write_text(json.dumps(SUMMARY), encoding="utf-8-sig")
    assert run.summary().seconds == 1.5


def test_a_folder_or_a_loop_of_links_where_a_file_was(tmp_path: Path) -> None:
    for name in ("stats.jsonl", "summary.json"):
        (tmp_path / name).mkdir()
        run = RunFolder(tmp_path)
        read = run.stats if name == "stats.jsonl" else run.summary
        with pytest.raises(UserError, match=name):
            read()
        (tmp_path / name).rmdir()
        os.symlink(tmp_path / name, tmp_path / name)
        with pytest.raises(UserError, match=name):
            read()


@pytest.mark.parametrize(
    "changed",
    [{"seconds": math.nan}, {"seconds": -1}, {"seconds": "1.5"}, {"seconds": None},
     {"asset": ["final.ply"]}, {"versions": None}, {"hardware": {"cores": [2]}}, {"steps": 6.5},
     {"size": "80"}, {"peak_memory_mb": "500"}, {"psnr_db": {"mean": math.inf}}],
    ids=str,
)  # fmt: skip
def test_a_damaged_summary(tmp_path: Path, changed: dict[str, Any]) -> None:
    (key,) = changed
    run = RunFolder(tmp_path)
    run.summary_file.write_text(json.dumps({**SUMMARY, **changed}))
    with pytest.raises(UserError, match=rf"summary.json is damaged: .*(?:{key}|NaN|Infinity)"):
        run.summary()
    run.summary_file.write_text(json.dumps({k: v for k, v in SUMMARY.items() if k != "seconds"}))
    with pytest.raises(UserError, match="seconds: field required"):
        run.summary()
    run.summary_file.write_text('{"seconds": 1, ' + json.dumps(SUMMARY)[1:])
    with pytest.raises(UserError, match="'seconds' is given twice"):
        run.summary()


def test_no_file_of_ours_holds_what_json_lacks(tmp_path: Path) -> None:
    value = {"a": math.nan, "b": [math.inf, {"c": (-math.inf, 1.0)}], "d": "NaN", "e": None}
    path = records.write_json(tmp_path / "x.json", value)
    read = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert read == {"a": None, "b": [None, {"c": [None, 1.0]}], "d": "NaN", "e": None}


def test_verbs_that_show_name_the_damage_and_verbs_that_measure_refuse_it(
    sdi_gs: Run, fast: Path, tmp_path: Path
) -> None:
    out = tmp_path / "r"
    assert sdi_gs("generate", "a red mug", "--config", fast, "--out", out).code == 0
    text = (out / "stats.jsonl").read_text().splitlines()
    text[2] = text[2].replace('"loss"', '"lose"')
    (out / "stats.jsonl").write_text("\n".join(text) + "\n")
    said = sdi_gs("report", out)
    assert said.code == 0, said.err
    page = (out / "report.html").read_text()
    assert "stats.jsonl line 3: loss: field required" in page
    with pytest.raises(UserError, match=r"stats.jsonl line 3: .*nothing is measured"):
        RunFolder(out).measured_stats(6)
    (out / "summary.json").write_text('{"seconds": NaN}')
    said = sdi_gs("evaluate", out)
    assert said.code == 2
    assert "summary.json is damaged: NaN stands where a number is needed" in said.err
    said = sdi_gs("resume", out)
    assert said.code == 0, said.err
    assert "stats.jsonl line 3" in said.out
    assert RunFolder(out).summary().size == RunFolder(out).last_size()
