# SPDX-License-Identifier: Apache-2.0
"""The network compiled for the processor answers as the network does."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sdi_gs import build
from sdi_gs.config import ModelConfig, load
from sdi_gs.diffusion import compiled
from sdi_gs.diffusion.base import Condition
from sdi_gs.diffusion.folder import ModelError
from sdi_gs.diffusion.stable import StableDiffusion
from sdi_gs.diffusion.tuning import Tuning, tune
from sdi_gs.guidance import PromptSet, Viewpoints
from sdi_gs.mini import MINI_DIR

from ..tiny import save_model

pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        where = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(where))
        yield where / "sdi-gs" / "openvino"


def question(rows: int, width: int, size: int = 8) -> tuple[Tensor, Tensor, Condition]:
    rng = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 4, size, size, generator=rng)
    t = torch.randint(1, 999, (rows,), generator=rng)
    return x, t, Condition({"hidden": torch.randn(rows, 12, width, generator=rng)})


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def compiled_one(folder: Path, kind: str = "openvino") -> StableDiffusion:
    return tune(StableDiffusion.load(folder), Tuning(compile=kind))  # type: ignore[arg-type]


@torch.no_grad()
def test_it_answers_as_the_network_for_any_number_of_rows(folder: Path) -> None:
    plain, fast = StableDiffusion.load(folder), compiled_one(folder)
    for rows in (1, 2, 5):
        asked = question(rows, 16)
        assert relative(fast.predict_noise(*asked), plain.predict_noise(*asked)) < 1e-5


@torch.no_grad()
def test_views_that_are_seen_together_are_compiled_with_their_poses() -> None:
    plain, fast = (build.denoiser(ModelConfig(source="mini_mv", compile=kind), torch.device("cpu"))
                   for kind in ("no", "openvino"))  # fmt: skip
    for groups in (1, 3):
        rows = 4 * groups
        x, t = torch.randn(rows, 4, 8, 8), torch.arange(1, rows + 1) // 4 * 300 + 20
        around = Viewpoints.front(rows, 4)
        said = PromptSet(plain, "a red mug").conditions(around).positive
        expected = plain.predict_noise(x, t, said)
        found = fast.predict_noise(x, t, said)
        assert not torch.equal(found, expected)  # it was asked
        assert relative(found, expected) < 1e-5


@torch.no_grad()
def test_mini_in_both_precisions() -> None:
    asked = question(2, 96, 16)
    plain = StableDiffusion.load(MINI_DIR).predict_noise(*asked)
    assert relative(compiled_one(MINI_DIR).predict_noise(*asked), plain) < 1e-5
    half = relative(compiled_one(MINI_DIR, "openvino-bfloat16").predict_noise(*asked), plain)
    assert half < 2e-2  # 8 bits; a processor without them computes in float32


def test_it_is_asked_where_nobody_wants_a_gradient_and_nowhere_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = compiled_one(folder)
    calls: list[int] = []
    real = type(fast.unet).forward

    def spy(self, x, *rest):  # type: ignore[no-untyped-def]
        calls.append(len(x))
        return real(self, x, *rest)

    monkeypatch.setattr(type(fast.unet), "forward", spy)
    x, t, condition = question(2, 16)
    fast.predict_noise(x, t, condition)  # frozen weights alone want no gradient
    assert not calls
    fast.predict_noise(x.requires_grad_(), t, condition).sum().backward()
    assert calls == [2]
    assert x.grad is not None
    assert bool((x.grad != 0).any())
    with torch.no_grad():
        fast.predict_noise(x, t, condition)
    assert calls == [2]


def test_a_copy_that_learns_is_not_the_compiled_one(folder: Path) -> None:
    """What VSD trains is a copy of the network with weights of its own."""
    fast = compiled_one(folder)
    twin = copy.deepcopy(fast.unet)
    x, t, condition = question(2, 16)
    with torch.no_grad():
        before = twin(x, t, condition["hidden"]).sample
        twin.conv_out.bias += 1.0
        after = twin(x, t, condition["hidden"]).sample
    torch.testing.assert_close(after, before + 1.0)
    learner = fast.learner("a mug", 2, 1e-2)
    poses = torch.zeros(2, 16)
    first = learner.predict(x, t, poses)
    torch.testing.assert_close(first, fast.predict_noise(x, t, fast.embed(["a mug"] * 2)),
                               rtol=1e-3, atol=1e-3)  # fmt: skip
    for _ in range(3):
        learner.learn(x, poses, torch.Generator().manual_seed(0))
    assert relative(learner.predict(x, t, poses), first) > 1e-4


@torch.no_grad()
def test_a_recording_is_made_once_and_made_again_where_it_is_damaged(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = question(1, 16)
    expected = compiled_one(folder).predict_noise(*asked)
    made: list[int] = []
    real = compiled._record

    def spy(network):  # type: ignore[no-untyped-def]
        made.append(1)
        return real(network)

    monkeypatch.setattr(compiled, "_record", spy)
    assert torch.equal(compiled_one(folder).predict_noise(*asked), expected)
    assert not made
    kept = cache / compiled._digest(StableDiffusion.load(folder).unet)
    assert sorted(path.name for path in kept.iterdir()) == ["unet.bin", "unet.xml"]
    (kept / "unet.xml").write_text("<net")
    assert torch.equal(compiled_one(folder).predict_noise(*asked), expected)
    assert len(made) == 1
    assert torch.equal(compiled_one(folder).predict_noise(*asked), expected)
    assert len(made) == 1
    assert not list(cache.glob(".new-*"))


@torch.no_grad()
def test_other_weights_are_another_recording(folder: Path) -> None:
    model = StableDiffusion.load(folder)
    before = compiled._digest(model.unet)
    model.unet.conv_out.bias[0] += 0.5
    assert compiled._digest(model.unet) != before


@torch.no_grad()
def test_without_a_cache_it_works_all_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    asked = question(1, 16)
    plain = StableDiffusion.load(folder).predict_noise(*asked)
    assert relative(compiled_one(folder).predict_noise(*asked), plain) < 1e-5


def test_a_step_of_the_whole_command_gives_what_it_gives_without(folder: Path) -> None:
    losses = []
    for kind in ("no", "openvino"):
        settings = [
            f"model.source={folder}", "prompt=a mug", "steps=2", "batch=1", "resolution=16",
            "representation.count=50", f"model.compile={kind}", "threads=1",
        ]  # fmt: skip
        from sdi_gs.trainer import train

        training = build.training(load("mini", settings))
        losses.append([report.loss for report in train(training)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_what_cannot_be_compiled_is_told_what_to_write(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = StableDiffusion.load(folder, engine="diffusers")
    with pytest.raises(ModelError, match=r"class UNet2DConditionModel: write model.compile=no"):
        tune(published, Tuning(compile="openvino"))
    half = StableDiffusion.load(folder, dtype="bfloat16")
    with pytest.raises(ModelError, match=r"write model\.dtype=float32"):
        tune(half, Tuning(compile="openvino"))
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ModelError, match=r"pip install 'sdi-gs\[openvino\]'"):
        compiled_one(folder)


CTRL_C = """
import gc, os, signal, sys
from sdi_gs.diffusion.stable import StableDiffusion
from sdi_gs.diffusion.tuning import Tuning, tune
models = [tune(StableDiffusion.load(sys.argv[1]), Tuning(compile="openvino")) for _ in range(2)]
del models
gc.collect()
signal.signal(signal.SIGINT, lambda *_: print("heard"))
os.kill(os.getpid(), signal.SIGINT)
"""


def test_ctrl_c_is_heard_when_a_compiled_network_is_gone(folder: Path) -> None:
    """With the handlers' stack that Jupyter and faulthandler make."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", CTRL_C, str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.split()[-1:]) == (0, ["heard"]), done.stderr[-500:]
