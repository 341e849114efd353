# SPDX-License-Identifier: Apache-2.0
"""What the doctor says of gsplat is what a run would meet. Cards and toolkits are pretended."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from representations.ops.splats import gsplat_build, gsplat_state
from sdi_gs import build, doctor
from sdi_gs.config import load
from sdi_gs.errors import UserError


@pytest.mark.parametrize(
    ("library", "why", "state", "words"),
    [
        (Path("/cache/gsplat_cuda.so"), "no nvcc", "ok", "kernels compiled: /cache/gsplat_cuda.so"),
        (None, "no nvcc is found: install it", "no", "cannot be compiled: no nvcc is found"),
        (None, None, "no", "doctor --build does it, once, in minutes, with /toolkit/bin/nvcc"),
    ],
)
def test_gsplat_is_told_as_it_would_be_found(
    monkeypatch: pytest.MonkeyPatch, library: Path | None, why: str | None, state: str, words: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gsplat_state, "compiled", lambda: library)
    monkeypatch.setattr(gsplat_state, "obstacle", lambda: why)
    monkeypatch.setattr(gsplat_state, "toolkit", lambda: Path("/toolkit/bin/nvcc"))
    (finding,) = doctor.gsplat()
    assert finding.state == state
    assert words in finding.detail


def test_no_card_is_told_with_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: 12020, raising=False)
    (finding,) = doctor.cuda()
    assert finding.state == "no"
    assert "the NVIDIA driver is too old: it is for CUDA 12.2" in finding.detail


def test_build_compiles_or_says_why_not(
    sdi_gs: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gsplat_state, "compiled", lambda: None)
    monkeypatch.setattr(gsplat_state, "obstacle", lambda: "no nvcc is found: install it")
    said = sdi_gs("doctor", "--build")
    assert said.code == 2
    assert "no nvcc is found: install it" in said.err
    assert "representation.backend=triton" in said.err

    def built(say: Callable[[str], None]) -> Path:
        say("gsplat: 29 of 29 compiled")
        return Path("/cache/gsplat_cuda.so")

    monkeypatch.setattr(gsplat_build, "ensure", built)
    said = sdi_gs("doctor", "--build")
    assert said.code == 0
    assert said.out.splitlines() == [
        "gsplat: 29 of 29 compiled", "gsplat's kernels are compiled: /cache/gsplat_cuda.so",
    ]  # fmt: skip


def test_a_run_that_asks_for_what_is_missing_ends_with_its_message(
    monkeypatch: pytest.MonkeyPatch, fast: Path
) -> None:
    """Before anything is loaded, and as the user's mistake: no traceback."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gsplat_state, "compiled", lambda: None)
    monkeypatch.setattr(gsplat_state, "obstacle", lambda: "no nvcc is found: install it")
    config = load(str(fast), ["representation.backend=gsplat"])
    words = (
        r"representation: .*no nvcc is found: install it\. Or write representation.backend=triton"
    )
    with pytest.raises(UserError, match=words):
        build.renderer(config, torch.device("cuda"))


def test_a_card_that_cannot_be_used_is_told_also_when_the_device_is_auto(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Else a run takes the CPU, slowly and without a word. Where no card can be meant, no word."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    version = 12020
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: version, raising=False)
    assert build.device("auto").type == "cpu"
    assert "device=auto takes the CPU: the NVIDIA driver is too old" in caplog.text
    with pytest.raises(UserError, match=r"sees no CUDA device here: the NVIDIA driver is too old"):
        build.device("cuda")
    caplog.clear()
    version = 0
    assert build.device("auto").type == "cpu"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert build.device("auto").type == "cpu"
    assert not caplog.text
