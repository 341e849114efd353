# SPDX-License-Identifier: Apache-2.0
"""Some hundreds of damaged files of every kind that is read; benchmarks/damage.py does thousands,
in children with a limit on memory and time."""

from __future__ import annotations

import importlib
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
COUNTS = {"stats": 80, "summary": 60, "config": 50, "checkpoint": 40, "page": 12, "measure": 4,
          "model": 8, "clip": 8, "init": 15, "splats": 40}  # fmt: skip


@pytest.fixture(scope="module", name="damage")
def _damage() -> Iterator[ModuleType]:
    names = ("damage", "victims", "splat_victims", "wounds")
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module("damage")
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in names:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module", name="victims")
def _victims(damage: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    found = damage.victims.victims(tmp_path_factory.mktemp("whole"))
    return {victim.name: victim for victim in found}


NAMES = ["stats", "summary", "config", "checkpoint", "page", "measure", "model", "clip",
         "init a.ply", "init a.splat", "init b.glb", "init b.obj", "init b.stl",
         "init p.ply", "splats a.ply", "splats text.ply", "splats mesh.ply",
         "splats a.compressed.ply", "splats a.splat", "splats old.spz", "splats a.spz",
         "splats v4.spz", "splats a.ksplat", "splats small.ksplat", "splats a.sog",
         "splats a.splats.glb", "splats a.gltf"]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_refused_by_name_or_makes_sense(
    name: str,
    damage: ModuleType,
    victims: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert sorted(victims) == sorted(NAMES)
    victim = victims[name]
    damage.wounds.mirrored(victim.whole, tmp_path / "whole")  # type: ignore[attr-defined]
    whole = damage._sum(victim.read(tmp_path / "whole"))  # type: ignore[attr-defined]
    before = signal.getsignal(signal.SIGALRM)

    def late(*_: object) -> None:
        raise damage.Hang

    signal.signal(signal.SIGALRM, late)
    try:
        seen: Counter[str] = Counter()
        for number in range(COUNTS[name.split()[0]]):
            found = damage.attempt(victim, number, 1, tmp_path, whole, damage.SECONDS)
            assert found.kind in damage.GOOD, found
            seen[found.kind] += 1
    finally:
        signal.signal(signal.SIGALRM, before)
    if name == "splats mesh.ply":  # refused whole as well, which is the same answer
        assert seen["same"] == seen.total()
        return
    assert seen["refused"] > 0
