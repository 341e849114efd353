# SPDX-License-Identifier: Apache-2.0
"""What the doctor says of gsplat is what a run would meet. Cards and toolkits are pretended."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import cpp_extension

from representations.ops import MissingBackend, toolkit
from representations.ops.extension import EXTENSION_SUFFIXES, Extension
from representations.ops.fields.nerfacc_state import NERFACC
from representations.ops.splats.gsplat_state import GSPLAT
from sdi_gs import build, doctor
from sdi_gs.config import load
from sdi_gs.errors import UserError

from ..machine import Program, with_toolkit


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
    monkeypatch.setattr(Extension, "compiled", lambda self: library)
    monkeypatch.setattr(Extension, "obstacle", lambda self: why)
    monkeypatch.setattr(toolkit, "toolkit", lambda: Path("/toolkit/bin/nvcc"))
    (finding,) = doctor.gsplat()
    assert finding.state == state
    assert words in finding.detail
    monkeypatch.setattr(Extension, "folder", lambda self: Path("/site"))
    (finding,) = doctor.nerfacc()  # by the same way
    assert finding.state == state
    assert words in finding.detail
    monkeypatch.setattr(Extension, "folder", lambda self: None)
    (finding,) = doctor.nerfacc()
    assert finding.state == "no"
    assert finding.detail.endswith("-m pip install nerfacc")


@pytest.mark.parametrize("way", ["TORCH_EXTENSIONS_DIR", "XDG_CACHE_HOME"])
@pytest.mark.parametrize("extension", [GSPLAT, NERFACC], ids=["gsplat", "nerfacc"])
def test_the_doctor_says_what_a_run_then_meets(
    program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, extension: Extension,
    way: str,
) -> None:  # fmt: skip
    """From a bare machine to a compiled library, and back to no toolkit: at each stage the doctor's
    word is held against what an attempt to use the kernels does."""
    ask = {"gsplat": doctor.gsplat, "nerfacc": doctor.nerfacc}[extension.package]
    site, cache = tmp_path / "site" / "gsplat", tmp_path / "other"
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    monkeypatch.setenv(way, str(cache))
    built: list[Path] = []
    library = extension.build_folder() / f"{extension.library}.so"
    assert cache in library.parents
    monkeypatch.setattr(
        Extension, "_compile", lambda self, folder, say: built.append(library) or library.touch()
    )

    def agree(state: str, words: str) -> None:
        (finding,) = ask()
        assert (finding.state, words in finding.detail) == (state, True), finding
        if finding.state == "ok":
            there = extension.ensure(lambda line: pytest.fail(f"built: {line}"))
            assert str(there) in finding.detail
        elif "kernels not compiled" in finding.detail:
            before = len(built)
            assert extension.ensure(lambda line: None) == library
            assert len(built) == before + 1
            library.unlink()
        else:
            with pytest.raises(MissingBackend) as refused:
                extension.ensure(lambda line: pytest.fail(line))
            why = finding.detail.split("cannot be compiled: ")[1]
            assert f"cannot be had here: {why}. Or write" in str(refused.value)

    agree("no", "no nvcc is found: without root: ")
    with_toolkit(program, monkeypatch, "11.8")  # on PATH, of another CUDA
    agree("no", "is of CUDA 11.8, and this torch is built for CUDA 13.0")
    nvcc = with_toolkit(program, monkeypatch)
    agree("no", "there is no C++ compiler")
    program("bin/c++")
    agree("no", "ninja is missing")
    program("env/bin/ninja")
    agree("no", f"does it, once, in minutes, with {nvcc}")
    monkeypatch.delenv("CUDA_HOME")  # off PATH, where torch guesses it
    monkeypatch.setattr(cpp_extension, "_find_cuda_home", lambda: str(nvcc.parents[1]))
    agree("no", f"does it, once, in minutes, with {nvcc}")
    library.touch()
    agree("ok", f"kernels compiled: {library}")
    nvcc.unlink()  # what is compiled needs no toolkit
    agree("ok", f"kernels compiled: {library}")
    library.unlink()
    agree("no", "no nvcc is found")
    wheel = site / f"csrc{EXTENSION_SUFFIXES[0]}"
    wheel.touch()
    agree("ok", f"kernels compiled: {wheel}")


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
    monkeypatch.setattr(Extension, "compiled", lambda self: None)
    monkeypatch.setattr(Extension, "obstacle", lambda self: "no nvcc is found: install it")
    said = sdi_gs("doctor", "--build")
    assert said.code == 2
    assert "no nvcc is found: install it" in said.err
    assert "representation.backend=triton" in said.err

    def built(self: Extension, say: Callable[[str], None]) -> Path:
        say(f"{self.package}: 29 of 29 compiled")
        return Path(f"/cache/{self.library}.so")

    monkeypatch.setattr(Extension, "ensure", built)
    for here in (True, False):  # nerfacc, which nothing needs
        folder = "/site" if here else None
        monkeypatch.setattr(Extension, "folder", lambda self, folder=folder: folder)
        said = sdi_gs("doctor", "--build")
        assert said.code == 0
        assert said.out.splitlines() == [
            "gsplat: 29 of 29 compiled", "gsplat's kernels are compiled: /cache/gsplat_cuda.so",
            "nerfacc: 29 of 29 compiled", "nerfacc's kernels are compiled: /cache/nerfacc_cuda.so",
        ][: 4 if here else 2]  # fmt: skip


@pytest.mark.parametrize(("name", "other"), [("gsplat", "triton"), ("nerfacc", "cuda")])
def test_a_run_that_asks_for_what_is_missing_ends_with_its_message(
    sdi_gs: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, fast: Path, field_config: Path,
    tmp_path: Path, name: str, other: str,
) -> None:  # fmt: skip
    """Before anything is loaded, and as the user's mistake: no traceback."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings, wish = fast if name == "gsplat" else field_config, f"representation.backend={name}"
    said = sdi_gs("generate", "a mug", "--config", str(settings), "--out", str(tmp_path / "run"),
                  wish, "device=cpu")  # fmt: skip
    assert said.code == 2
    assert f'representation: back-end "{name}" was asked for, but torch.cuda' in said.err
    assert "Traceback" not in said.err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(Extension, "compiled", lambda self: None)
    monkeypatch.setattr(Extension, "obstacle", lambda self: "no nvcc is found: install it")
    words = (
        rf"representation: .*no nvcc is found: install it\. Or write representation.backend={other}"
    )
    with pytest.raises(UserError, match=words):
        build.renderer(load(str(settings), [wish]), torch.device("cuda"))


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
