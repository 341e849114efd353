# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small scenes are fastest on one thread, and timings of the suite do not depend on the box."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def large_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter takes as long for many splats as for few, so it gets many at once."""
    from representations.ops import triton_launch

    if triton_launch.available():
        from representations.ops.splats import triton_splats

        for how in (triton_splats.FORWARD, triton_splats.BACKWARD):
            monkeypatch.setitem(how, "SPLATS", 16)
