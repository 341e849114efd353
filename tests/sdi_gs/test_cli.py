# SPDX-License-Identifier: Apache-2.0
"""The command line: help at once, and one clear message for every bad input."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sdi_gs.artefacts import checkpoint
from sdi_gs.cli.arguments import split_words
from sdi_gs.errors import UserError, first_line
from sdi_gs.mini import MINI_DIR

Run = Callable[..., Any]


def refused(said: Any, *expected: str) -> None:
    """Exit code 2, nothing but one message on stderr, no traceback."""
    assert said.code == 2, said
    assert said.err.startswith("sdi-gs: ")
    assert said.err.count("sdi-gs: ") == 1
    assert "Traceback" not in said.err
    for text in expected:
        assert text in said.err


def test_help_is_instant_because_nothing_heavy_is_imported() -> None:
    code = (
        "import sys\nfrom sdi_gs.cli.main import main\n"
        "for words in (['--help'], ['generate', '--help'], ['--version']):\n"
        "    assert main(words) == 0\n"
        "heavy = {'torch', 'numpy', 'yaml', 'diffusers', 'numba', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    before = os.times()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    after = os.times()
    assert done.returncode == 0, done.stderr
    # Seconds of processor time for three commands: a busy machine is not our fault.
    spent = after.children_user + after.children_system
    assert spent - before.children_user - before.children_system < 0.6
    for verb in ("generate", "resume", "render", "export", "config", "doctor"):
        assert verb in done.stdout


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sdi_gs", "config", "list"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert "mini" in done.stdout


def test_first_word_is_the_prompt() -> None:
    assert split_words(["a mug", "seed=1", "x.y=2"]) == ("a mug", ["seed=1", "x.y=2"])
    assert split_words(["seed=1"]) == (None, ["seed=1"])
    assert split_words(["prompt=e=mc2"]) == (None, ["prompt=e=mc2"])
    assert split_words(["a = b"]) == ("a = b", [])
    with pytest.raises(UserError, match="generate 'a red mug'"):
        split_words(["a", "red", "mug"])


def test_config_show_prints_what_config_reads(sdi_gs: Run, tmp_path: Path) -> None:
    said = sdi_gs("config", "show", "mini", "seed=9")
    assert said.code == 0
    path = tmp_path / "a.yaml"
    path.write_text(said.out)
    assert sdi_gs("config", "show", path).out == said.out
    assert "seed: 9" in said.out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["representation.max_cout=9"], ("representation.max_cout", "did you mean 'max_count'")),
        (["--steps", "0"], ("steps",)),
        (["steps=many"], ("steps", "'many'")),
        (["--seed", "-1"], ("seed",)),
        (["terms.opaqe=1"], ("terms.opaqe", "did you mean 'opaque'")),
        (["noise.kind=sdi"], ("noise.kind", "ddim_inversion")),
        (["representation.max_count=3"], ("max_count",)),
        (["model.source=no/such/folder"], ("no/such/folder", "does not exist")),
        (["model.source=/no/such"], ("/no/such", "does not exist", "mini")),
        (["--init", "missing.ply"], ("--init missing.ply",)),
        (["model.dtype=int8"], ("model.dtype",)),
        (["device=tpu"], ("device",)),
        (
            ["noise=released_inversion", "guidance.t.low={start: 0.1, end: 0.1}"],
            ("same_for_batch=true",),
        ),
    ],
)
def test_bad_settings(
    sdi_gs: Run, fast: Path, tmp_path: Path, words: list[str], expected: tuple[str, ...]
) -> None:
    out = tmp_path / "r"
    said = sdi_gs("generate", "a red mug", "--config", fast, "--out", out, *words)
    refused(said, *expected)
    assert not out.exists()


@pytest.mark.parametrize("prompt", ["", "   ", "prompt="])
def test_an_empty_prompt(sdi_gs: Run, fast: Path, prompt: str) -> None:
    refused(sdi_gs("generate", prompt, "--config", fast), "prompt is empty", "a red mug")


def test_no_prompt_at_all(sdi_gs: Run, fast: Path) -> None:
    refused(sdi_gs("generate", "--config", fast), "prompt is empty")


def test_a_prompt_of_which_mini_knows_no_word(sdi_gs: Run, tmp_path: Path) -> None:
    out = tmp_path / "r"
    said = sdi_gs("generate", "ein Zeppelin", "--config", "mini", "--out", out)
    refused(said, "ein Zeppelin", "mug", "snowman", "red", "sdi_gaussians")
    assert not out.exists()


def test_without_a_config_the_model_is_the_one_that_needs_no_download(sdi_gs: Run) -> None:
    refused(sdi_gs("generate", "ein Zeppelin"), "'mini' knows no word")


@pytest.mark.skipif(
    not (MINI_DIR / "model_index.json").is_file(), reason="the weights of mini are not there"
)
def test_mini_makes_an_asset_and_says_which_words_it_lacks(sdi_gs: Run, tmp_path: Path) -> None:
    out = tmp_path / "r"
    said = sdi_gs(
        "generate", "a red zeppelin mug", "--config", "mini", "--out", out, "steps=2",
        "representation.count=50", "output.turntable.frames=2", "output.turntable.size=32",
    )  # fmt: skip
    assert said.code == 0, said.err
    assert "never taught: zeppelin" in said.out
    assert (out / "final.ply").stat().st_size > 0


def test_words_without_quotes(sdi_gs: Run) -> None:
    refused(sdi_gs("generate", "a", "red", "mug"), "generate 'a red mug'", "key=value")


@pytest.mark.parametrize("words", [["--sed", "3"], ["--steps", "three"], ["--out"]])
def test_mistyped_options(sdi_gs: Run, words: list[str]) -> None:
    refused(sdi_gs("generate", "a red mug", *words), words[0], "--help")


def test_an_unknown_verb_and_preset(sdi_gs: Run) -> None:
    refused(sdi_gs("generte", "a red mug"), "generte")
    refused(sdi_gs("generate", "a red mug", "--config", "mimi"), "did you mean 'mini'")


def test_an_output_folder_with_something_in_it(sdi_gs: Run, fast: Path, tmp_path: Path) -> None:
    out = tmp_path / "r"
    out.mkdir()
    (out / "thesis.txt").write_text("all of it")
    said = sdi_gs("generate", "a red mug", "--config", fast, "--out", out)
    refused(said, str(out), "not empty")
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]
    (out / "config.yaml").write_text("")
    said = sdi_gs("generate", "a red mug", "--config", fast, "--out", out)
    refused(said, f"sdi-gs resume {out}")


def test_an_output_folder_that_cannot_be(sdi_gs: Run, fast: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    said = sdi_gs("generate", "a red mug", "--config", fast, "--out", file)
    refused(said, "is a file")
    said = sdi_gs("generate", "a red mug", "--config", fast, "--out", file / "r")
    refused(said, "cannot be written", "--out")


def test_an_output_folder_without_permission(
    sdi_gs: Run, fast: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told before the model is loaded where the system tells, and otherwise when it is made."""
    monkeypatch.setattr(os, "access", lambda *_args, **_kwargs: False)
    said = sdi_gs("generate", "a red mug", "--config", fast, "--out", tmp_path / "r")
    refused(said, "may not be written")
    monkeypatch.undo()

    def refuse(self: Path, *_args: Any, **_kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    said = sdi_gs("generate", "a red mug", "--config", fast, "--out", tmp_path / "r")
    refused(said, "Permission denied", "--out")


PLY_HEADER = (
    b"ply\nformat binary_little_endian 1.0\nelement vertex 2\n"
    b"property float x\nproperty float y\nproperty float z\nend_header\n"
)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (PLY_HEADER.replace(b"float z", b"float scale_0") + bytes(24), "f_dc_0"),
        (PLY_HEADER.replace(b"float z", b"float scale_0") + bytes(7), "f_dc_0"),
        (PLY_HEADER + bytes(7), "mesh or point cloud"),
        (b"solid cube\n", "no PLY"),
        (b"", "no PLY"),
    ],
)
def test_a_ply_that_holds_no_splats(
    sdi_gs: Run, fast: Path, tmp_path: Path, data: bytes, expected: str
) -> None:
    file = tmp_path / "a.ply"
    file.write_bytes(data)
    out = tmp_path / "r"
    said = sdi_gs("generate", "a red mug", "--config", fast, "--init", file, "--out", out)
    refused(said, str(file), expected)
    assert file.read_bytes() == data
    assert not out.exists()


@pytest.fixture
def run(sdi_gs: Run, fast: Path, tmp_path: Path) -> Path:
    out = tmp_path / "run"
    assert sdi_gs("generate", "a red mug", "--config", fast, "--out", out, "steps=1").code == 0
    return out


def test_a_checkpoint_of_another_version(sdi_gs: Run, run: Path) -> None:
    path = run / "checkpoints" / "step_0000001.pt"
    payload = {"format": checkpoint.FORMAT, "version": 99, **vars(checkpoint.load(path))}
    torch.save(payload, path)
    before = path.read_bytes()
    for verb in ("resume", "render", "export"):
        refused(sdi_gs(verb, run), "version 99", "--init")
    assert path.read_bytes() == before


def test_a_checkpoint_that_is_broken_or_foreign(sdi_gs: Run, run: Path) -> None:
    path = run / "checkpoints" / "step_0000001.pt"
    data = path.read_bytes()
    for broken in (data[: len(data) // 2], b"", b"hello"):
        path.write_bytes(broken)
        refused(sdi_gs("resume", run), str(path), "not a complete sdi-gs checkpoint")
    torch.save({"weights": torch.zeros(2)}, path)
    refused(sdi_gs("resume", run), "was not written by sdi-gs")
    path.unlink()
    refused(sdi_gs("resume", run), "no checkpoint")


class Boom:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("owned",))


def test_a_checkpoint_cannot_run_code(
    sdi_gs: Run, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = run / "checkpoints" / "step_0000001.pt"
    torch.save({"format": Boom()}, path)
    refused(sdi_gs("resume", run), str(path))
    path.write_bytes(pickle.dumps(Boom()))
    refused(sdi_gs("resume", run), str(path))
    assert not (tmp_path / "owned").exists()


def test_folders_that_are_no_run(sdi_gs: Run, tmp_path: Path) -> None:
    for verb in ("resume", "render", "export"):
        refused(sdi_gs(verb, tmp_path / "no"), "does not exist")
        refused(sdi_gs(verb, tmp_path), "config.yaml")


def test_bad_options_of_render_and_export(sdi_gs: Run, run: Path) -> None:
    refused(sdi_gs("export", run, "--format", "fbx"), "fbx", "ply")
    refused(sdi_gs("render", run, "--format", "avi"), "format", "gif")
    refused(sdi_gs("render", run, "--size", "3"), "size")
    refused(sdi_gs("export", run, "--out", run), "exists")


def test_debug_shows_the_traceback(sdi_gs: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        sdi_gs("resume", tmp_path / "no", "--debug")


def test_doctor_reports_and_compiles_nothing(
    sdi_gs: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    said = sdi_gs("doctor")
    states = {line.split()[0]: line.split()[1] for line in said.out.splitlines() if line}
    for name in ("torch", "cuda", "gsplat", "triton", "tinycudann", "threads", "hub", "mini"):
        assert states[name] in ("ok", "no", "BAD")
    assert states["render"] == "ok"
    assert (said.code == 0) == ("BAD" not in states.values())
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_first_line_of_an_error() -> None:
    assert first_line(ValueError("\n one \ntwo")) == "one"
    assert first_line(ValueError("one\ntwo"), "no message") == "one"
    assert first_line(ZeroDivisionError(" ")) == "ZeroDivisionError"
    assert first_line(ZeroDivisionError(), "no message") == "no message"
