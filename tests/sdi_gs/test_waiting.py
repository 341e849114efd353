# SPDX-License-Identifier: Apache-2.0
"""How often a step makes the host wait for the device: every read of a value does on a card. It is
counted without one, at the operators that read."""

from __future__ import annotations

import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from representations import checks
from sdi_gs import build
from sdi_gs.config import load
from sdi_gs.trainer import train_step

ROOT = str(Path(__file__).parents[2])
READS = ("_local_scalar_dense", "nonzero", "masked_select", "aten.equal", "unique")


class Reads(TorchDispatchMode):
    """Where in our code values were read, and how often."""

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        masked = name.startswith("aten.index.Tensor") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if masked or any(word in name for word in READS):
            stack = traceback.extract_stack()
            ours = [f for f in stack if f.filename.startswith(ROOT) and ".venv" not in f.filename]
            ours = [f for f in ours if f.name != "__torch_dispatch__"]
            # Adam counts its steps on the CPU.
            if not any("torch/optim/" in f.filename for f in stack):
                self.places[f"{Path(ours[-1].filename).stem}.{ours[-1].name}"] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("guidance", ["sdi", "sds", "ism", "nfsd"])
@pytest.mark.parametrize("kind", ["splats", "field"])
def test_a_step_reads_nothing_but_its_losses(
    fast: Path, field_config: Path, kind: str, guidance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those are read in one ``tolist``, which is no operator. numba stands in for the kernels of a
    card; a march has to say how many samples it found, which is one more wait there."""
    for module in ("hash_grid", "ray_types"):  # as if the tensors were on a card
        monkeypatch.setattr(f"representations.ops.fields.{module}.readable", lambda tensor: False)
    config = load(str(fast if kind == "splats" else field_config), ["prompt=a mug", "steps=50"],
                  guidance)  # fmt: skip
    training = build.training(config)
    for step in range(2):
        train_step(training, step)
    with Reads() as reads:
        train_step(training, 4)  # neither growth nor the occupancy grid is due
    # Times are drawn on the CPU and stay there for whoever plans or chooses by them.
    assert set(reads.places) <= {"inversion._shares", "update.__call__"}


def test_reads_are_seen() -> None:
    with Reads() as reads:
        assert checks.readable(torch.zeros(1))
        build.use_threads(1)
        found = torch.tensor([1.0, 2.0])
        assert bool((found > 0).all())
        assert len(found[found > 1]) == 1
    assert sum(reads.places.values()) >= 2
