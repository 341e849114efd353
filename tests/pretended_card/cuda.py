# SPDX-License-Identifier: Apache-2.0
"""``torch.cuda`` of a machine with one card of 80 GB, and what else asks whether there is one."""

from __future__ import annotations

import contextlib
import time
from types import SimpleNamespace
from typing import Any

import torch

GIB = 2**30
TOTAL = 80 * GIB
PROPERTIES = SimpleNamespace(
    name="pretended card", total_memory=TOTAL, major=9, minor=0, multi_processor_count=132,
    warp_size=32,
)  # fmt: skip


class Event:
    """On a card the host's clock is not read; here nothing runs behind the host's back."""

    def __init__(self, enable_timing: bool = False, **_: Any) -> None:
        self.timed, self.at = enable_timing, 0.0

    def record(self, stream: Any = None) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: Event) -> float:
        return 1e3 * (end.at - self.at)

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True


class Generator(torch.Generator):
    """A generator on the card, with the numbers of one on the CPU."""

    def __new__(cls, device: Any = "cpu") -> Any:
        made = super().__new__(cls)
        made.place = torch.device(device)  # type: ignore[attr-defined]
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.place  # type: ignore[attr-defined, no-any-return]


SYNC = SimpleNamespace(mode=0)


def _set_sync_debug_mode(mode: Any) -> None:
    SYNC.mode = {"default": 0, "warn": 1, "error": 2}.get(mode, mode)


ANSWERS: dict[str, Any] = {
    "is_available": lambda: True,
    "is_initialized": lambda: True,
    "init": lambda: None,
    "_lazy_init": lambda: None,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "set_device": lambda device: None,
    "synchronize": lambda device=None: None,
    "device": lambda device: contextlib.nullcontext(),
    "current_stream": lambda device=None: SimpleNamespace(synchronize=lambda: None),
    "Event": Event,
    "mem_get_info": lambda device=None: (TOTAL - GIB, TOTAL),
    "memory_allocated": lambda device=None: GIB,
    "max_memory_allocated": lambda device=None: GIB,
    "max_memory_reserved": lambda device=None: GIB,
    "memory_reserved": lambda device=None: GIB,
    "reset_peak_memory_stats": lambda device=None: None,
    "empty_cache": lambda: None,
    "get_device_name": lambda device=None: PROPERTIES.name,
    "get_device_capability": lambda device=None: (PROPERTIES.major, PROPERTIES.minor),
    "get_device_properties": lambda device=None: PROPERTIES,
    "get_arch_list": lambda: ["sm_90"],
    "is_bf16_supported": lambda *_, **__: True,
    "set_sync_debug_mode": _set_sync_debug_mode,
    "get_sync_debug_mode": lambda: SYNC.mode,
    "get_rng_state": lambda device="cuda": torch.get_rng_state(),
    "set_rng_state": lambda state, device="cuda": None,
    "manual_seed": lambda seed: None,
    "manual_seed_all": lambda seed: None,
}


def pretend() -> None:
    """Put the answers in the place of torch's own."""
    for name, answer in ANSWERS.items():
        setattr(torch.cuda, name, answer)
    torch.Generator = Generator  # type: ignore[misc, assignment]
    torch.version.cuda = torch.version.cuda or "13.0"
    torch._C._cuda_getDriverVersion = lambda: 13000  # type: ignore[attr-defined]
    import torch.distributed as dist
    from torch.optim import Optimizer

    for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
        if hasattr(Optimizer, name):
            setattr(Optimizer, name, lambda self: None)

    begin = dist.init_process_group
    dist.init_process_group = lambda backend=None, **k: begin("gloo", **k)  # no nccl without a card
    _pretend_collectives(dist)


def _pretend_collectives(dist: Any) -> None:
    from .tensors import bare

    reduce = dist.all_reduce
    dist.all_reduce = lambda tensor, *args, **kwargs: reduce(bare(tensor), *args, **kwargs)
