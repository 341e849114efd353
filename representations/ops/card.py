# SPDX-License-Identifier: Apache-2.0
"""Why torch sees no CUDA card, what mends it, and what an error says of a card that is there."""

from __future__ import annotations

import os
import shutil

import torch


def driver_version() -> int | None:
    """The CUDA version that the NVIDIA driver is for, 12020 for 12.2; 0 without a driver, None
    where torch was built without CUDA and cannot say."""
    ask = getattr(torch._C, "_cuda_getDriverVersion", None)
    return None if ask is None else int(ask())


def missing() -> str:
    """The reason, and the command; for where ``torch.cuda.is_available()`` is False."""
    wanted = torch.version.cuda
    if wanted is None:
        driver = shutil.which("nvidia-smi") is not None
        hint = "; a driver is here: make clean, then make setup TORCH=cuda" if driver else ""
        return f"this torch is a CPU build{hint}"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and hidden.strip() in ("", "-1"):
        return f'CUDA_VISIBLE_DEVICES="{hidden}" hides every card: unset CUDA_VISIBLE_DEVICES'
    version = driver_version()
    if not version:
        return (
            "torch is built for CUDA, but no NVIDIA driver is loaded: install one (Ubuntu: "
            "sudo ubuntu-drivers install), start anew, and see that nvidia-smi lists the card; a "
            "container needs --gpus all"
        )
    major, minor = version // 1000, version % 1000 // 10
    if major < int(wanted.split(".")[0]):
        other = "; or take a torch for this driver: make clean, then make setup TORCH=cu126"
        return (
            f"the NVIDIA driver is too old: it is for CUDA {major}.{minor}, and this torch is "
            f"built for CUDA {wanted}. Update the driver (Ubuntu: sudo ubuntu-drivers install)"
            f"{other if major == 12 else ''}"
        )
    return (
        f"torch is built for CUDA {wanted} and the driver is for {major}.{minor}, but no card is "
        "seen: see that nvidia-smi lists it; a container needs --gpus all"
    )


def unexpected() -> str | None:
    """The reason where somebody will have meant to use a card: torch is built for CUDA, a driver is
    loaded and nothing hides the cards; else None."""
    if torch.version.cuda is None or "CUDA_VISIBLE_DEVICES" in os.environ:
        return None
    return missing() if driver_version() else None


_FULL = ("CUDA error: out of memory", "Triton Error [CUDA]: out of memory")
_LOST = ("CUDA error", "Triton Error [CUDA]", "CUDA driver error", "NCCL error")
_UNFIT = ("no kernel image", "invalid device function")  # compiled for another card: it lives


def out_of_memory(error: BaseException) -> bool:
    """Whether the memory of a card did not suffice, whoever says so."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and str(error).startswith(_FULL)


def lost(error: BaseException) -> bool:
    """Whether the card does nothing more for this process, such as after a failed launch: nothing
    that lies on it can be read any more."""
    if not isinstance(error, RuntimeError) or out_of_memory(error):
        return False
    said = str(error)
    accelerator = isinstance(error, getattr(torch, "AcceleratorError", ()))
    return (accelerator or said.startswith(_LOST)) and not any(word in said for word in _UNFIT)
