# SPDX-License-Identifier: Apache-2.0
"""One thread and no network: tests are small, and two busy pools on one core crawl."""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"
if not any(os.path.exists(card) for card in ("/dev/nvidiactl", "/dev/dxg")):
    # Without a card Triton's kernels are interpreted on the CPU. It asks when it is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from collections.abc import Callable, Iterator  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One process more than there are cores: tests of programs, browsers and engines often wait."""
    return 1 + (os.cpu_count() or 1)


LONG = (
    "test_on_a_card", "test_sweep_acceptance", "test_browser", "test_splat_triton", "test_crashes",
    "test_compare", "test_docs", "test_textured_runs",
)  # fmt: skip
"""Modules with the longest tests. They come first: one that began last would leave the other
processes with nothing to do."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: Path(str(item.path)).stem not in LONG)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A machine with a card and nothing else, and how to install a program on it."""
    from .machine import bare

    return bare(tmp_path, monkeypatch)


@pytest.fixture
def foreign_kinds() -> Iterator[None]:
    """Kinds that a test registers, and plug-ins that it loads, are forgotten afterwards."""
    from sdi_gs import plugins
    from sdi_gs.config import SEAMS, Config

    before = {seam: (dict(k.table), dict(k.makers)) for seam, k in SEAMS.items()}
    loaded = set(plugins._loaded)
    yield
    for seam, (table, makers) in before.items():
        SEAMS[seam].table.clear()
        SEAMS[seam].table.update(table)
        SEAMS[seam].makers.clear()
        SEAMS[seam].makers.update(makers)
    plugins._loaded.clear()
    plugins._loaded.update(loaded)
    Config.model_rebuild(force=True)
