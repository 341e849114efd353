# SPDX-License-Identifier: Apache-2.0
"""The log for TensorBoard: read back by an independent reader of its file format."""

from __future__ import annotations

import importlib.util
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sdi_gs.artefacts import scalars

PROMPT = "a red mug"
Run = Callable[..., Any]

needs_writer = pytest.mark.skipif(
    importlib.util.find_spec("tensorboardX") is None,
    reason="the extra 'tensorboard' is not installed",
)


def events(folder: Path) -> Iterator[Any]:
    """Every event in the order of writing. A record of TFRecord is its length (8 bytes), a checksum
    (4), the data, a checksum (4)."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.glob("events.out.tfevents.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            yield Event.FromString(data[at + 12 : at + 12 + length])
            at += 12 + length + 4


def series(folder: Path) -> dict[str, dict[int, float]]:
    """Values by name and step, as a reader of the log ends up with: a restart at a step forgets
    everything from there on."""
    found: dict[str, dict[int, float]] = {}
    for event in events(folder):
        if event.session_log.status == 1:  # START
            for values in found.values():
                for step in [step for step in values if step >= event.step]:
                    del values[step]
        for value in event.summary.value:
            if value.WhichOneof("value") == "simple_value":
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


@needs_writer
def test_the_log_has_what_stats_jsonl_has_also_after_a_resume(
    sdi_gs: Run, interrupted: Run, fast: Path, tmp_path: Path
) -> None:
    out = tmp_path / "r"
    interrupted("generate", PROMPT, "--config", fast, "--out", out, "--tensorboard")
    assert sdi_gs("resume", out).code == 0
    lines = [json.loads(line) for line in (out / "stats.jsonl").read_text().splitlines()]
    logged = series(out / "tensorboard")
    assert len(lines) == 6
    for line in lines:
        step = line["step"]
        single = pytest.approx(line["loss"], rel=1e-6)  # the log holds float32
        assert logged["loss/total"][step] == single
        assert logged["splats"][step] == line["size"]
        assert logged["t"][step] == pytest.approx(line["t"], abs=1e-3)
        for stage, seconds in line["seconds"].items():
            assert logged[f"seconds/{stage}"][step] == pytest.approx(seconds, abs=1e-5)
    assert sorted(logged["loss/total"]) == list(range(6))


def test_no_log_without_a_wish(sdi_gs: Run, fast: Path, tmp_path: Path) -> None:
    out = tmp_path / "r"
    assert sdi_gs("generate", PROMPT, "--config", fast, "--out", out).code == 0
    assert not (out / "tensorboard").exists()


def test_a_missing_writer_is_told_before_anything_is_done(
    sdi_gs: Run, fast: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scalars, "find_spec", lambda name: None)
    out = tmp_path / "r"
    said = sdi_gs("generate", PROMPT, "output.tensorboard=true", "--config", fast, "--out", out)
    assert said.code == 2
    assert "-m pip install 'tensorboardX>=2.6'" in said.err
    assert not out.exists()
