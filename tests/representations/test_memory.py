# SPDX-License-Identifier: Apache-2.0
"""How much memory is left, and what is refused for want of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from representations import memory
from representations.instant_ngp import GridConfig, InstantNGPConfig, InstantNGPRenderer

CPU = torch.device("cpu")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("meminfo", "most", "current", "expected"),
    [
        ("MemTotal: 900 kB\nMemAvailable:   400 kB\n", None, None, 400 * 1024),
        ("MemAvailable: 400 kB\n", "max", "5", 400 * 1024),
        ("MemAvailable: 400 kB\n", "100000", "30000", 70_000),
        ("MemAvailable: 400 kB\n", "10", "30", 0),
        (None, "100000", "30000", 70_000),
        ("nothing of the kind\n", None, None, None),
        (None, None, None, None),
    ],
)
def test_the_smallest_limit_counts(
    machine: Path, meminfo: str | None, most: str | None, current: str | None, expected: int | None
) -> None:
    files = {"meminfo": meminfo, "memory.max": most, "memory.current": current}
    for name, text in files.items():
        if text is not None:
            (machine / name).write_text(text)
    assert memory.available_bytes(CPU) == expected


def test_more_than_there_is_is_refused_with_what_to_write(machine: Path) -> None:
    (machine / "meminfo").write_text("MemAvailable: 1000000 kB\n")
    memory.require_memory(1_024_000_000, CPU, "a thing", "less")
    with pytest.raises(ValueError, match=r"a thing needs 2\.0 GB, and 1\.0 GB are free on cpu"):
        memory.require_memory(2_000_000_000, CPU, "a thing", "less")


def test_where_the_system_says_nothing_nothing_is_refused(machine: Path) -> None:
    memory.require_memory(10**18, CPU, "a thing", "less")


def test_the_estimate_is_what_training_takes(machine: Path) -> None:
    """Table, gradient and two moments, counted on a small grid after one step."""
    config = InstantNGPConfig(
        grid=GridConfig(levels=2, log2_size=10, max_resolution=32, start_levels=1)
    )
    renderer = InstantNGPRenderer(config)
    table = renderer.field.table
    table.grad = torch.zeros_like(table)
    renderer.optimizer.step()
    moments = [m for m in renderer.optimizer.state[table].values() if m.ndim]
    bytes_used = sum(4 * tensor.numel() for tensor in (table, table.grad, *moments))
    kilobytes = bytes_used // 1024 + 1
    (machine / "meminfo").write_text(f"MemAvailable: {kilobytes} kB\n")
    InstantNGPRenderer(config)
    (machine / "meminfo").write_text(f"MemAvailable: {kilobytes - 2} kB\n")
    with pytest.raises(ValueError, match=f"a hash grid of {table.numel():,} numbers"):
        InstantNGPRenderer(config)
