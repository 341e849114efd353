# SPDX-License-Identifier: Apache-2.0
"""``import sdi_gs``: light, complete, documented, and enough for a loop of one's own."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import sdi_gs as face
from representations.cameras import orbit
from sdi_gs.errors import RunFailure, UserError

from ..stopping import interrupt, stop_at

ROOT = Path(__file__).parents[2]
PUBLIC = sorted(set(face.__all__) - {"__version__"})
HEAVY = ("torch", "numpy", "pydantic", "diffusers", "transformers", "numba", "representations")


def test_importing_it_imports_nothing_heavy(tmp_path: Path) -> None:
    code = f"import sdi_gs, sys; print([m for m in {HEAVY} if m in sys.modules], dir(sdi_gs)[0])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.split("] ")[0] == "["


def test_type_checkers_are_told_the_same_names() -> None:
    tree = ast.parse((ROOT / "sdi_gs" / "__init__.pyi").read_text(encoding="utf-8"))
    told = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            home = "." * node.level + (node.module or "")
            told |= {alias.asname: home for alias in node.names}
    assert told == face._HOME_OF


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_exists_and_says_what_it_is(name: str) -> None:
    value = getattr(face, name)
    said = inspect.getdoc(value) or ""
    assert len(said) > 20, name
    assert not said.startswith(f"{name}("), "dataclasses write a docstring that says nothing"


@pytest.mark.parametrize("name", [n for n in PUBLIC if inspect.isfunction(getattr(face, n))])
def test_a_public_function_types_its_arguments(name: str) -> None:
    function = getattr(face, name)
    untyped = [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.annotation is inspect.Parameter.empty
    ]
    assert not untyped


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'generat'"):
        face.generat  # noqa: B018


class Quiet:
    """Sees a run and says nothing."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def say(self, text: str) -> None: ...

    def begin(self, scene: object) -> None: ...

    def step(self, report: object) -> None:
        self.steps.append(report.step)  # type: ignore[attr-defined]


def test_an_asset_is_made_saved_filmed_and_shown(fast: Path, tmp_path: Path) -> None:
    watcher = Quiet()
    asset = face.generate(
        "a mug", str(fast), seed=3, steps=4, settings={"batch": 1, "noise.entropy": 0.0},
        out=tmp_path / "run", watcher=watcher,
    )  # fmt: skip
    assert watcher.steps == [0, 1, 2, 3]
    assert (asset.config.seed, asset.config.batch, asset.config.steps) == (3, 1, 4)
    assert asset.config.noise.entropy.start == 0.0  # type: ignore[attr-defined]
    assert "splats" in str(asset.save(tmp_path / "a.ply"))
    assert (tmp_path / "a.ply").read_bytes() == (tmp_path / "run" / "final.ply").read_bytes()
    assert "splats" in str(asset.save(tmp_path / "a.compressed.ply"))
    assert len(asset.cloud) == len(face.open_asset(tmp_path / "a.ply").cloud)
    assert asset.turntable(tmp_path / "a.gif", frames=3, size=16).read_bytes()[:3] == b"GIF"
    assert asset._repr_png_()[1:4] == b"PNG"
    assert repr(asset) == f"Asset('a mug', gaussians, {str(tmp_path / 'run')!r})"


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda a, p: a.save(p / "a.stl"), r"no format ends in '.stl'; known here: .ply"),
        (lambda a, p: a.turntable(p / "a.avi"), r"write .*a\.mp4"),
        (lambda a, p: a.turntable(p / "a.gif", frames=0), "at least 1 frame"),
        (lambda a, p: face.generate("a mug", settings="batch=2"), r"such as \['batch=2'\]"),
        (lambda a, p: face.register("noises", Quiet), "did you mean 'noise'"),
        (lambda a, p: face.register("representation", Quiet), "give make"),
        (lambda a, p: face.register("noise", Quiet), "is no dataclass"),
        (lambda a, p: face.open_asset(p / "nothing"), "nothing does not exist"),
        (lambda a, p: face.load_prior(p / "nothing"), "does not exist"),
    ],
)
def test_a_mistake_is_one_message(call: object, expected: str, fast: Path, tmp_path: Path) -> None:
    # The mistakes are found before the shape is looked at.
    asset = face.Asset(tmp_path, face.load(str(fast)), SimpleNamespace(renderer=None))  # type: ignore
    with pytest.raises(UserError, match=expected):
        call(asset, tmp_path)  # type: ignore[operator]


def test_ctrl_c_saves_and_resume_goes_on_to_the_same_bytes(
    fast: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = face.generate("a mug", str(fast), out=tmp_path / "whole", watcher=Quiet())
    with monkeypatch.context() as patch:
        stop_at(patch, 2, interrupt)
        with pytest.raises(RunFailure, match="the state is saved"):
            face.generate("a mug", str(fast), out=tmp_path / "cut")
    again = face.resume(tmp_path / "cut", watcher=Quiet())
    files = [(asset.path / "final.ply").read_bytes() for asset in (whole, again)]
    assert files[0] == files[1]


def test_guidance_in_a_loop_of_ones_own(tiny_model: Path) -> None:
    """The six lines of the README: the gradient that reaches the pictures is that of eq. 10."""
    prior = face.load_prior(tiny_model)
    guide = face.ScoreDistillation(prior, "a mug", noise=face.DDIMInversion(steps=2), steps=10)
    rgb = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    cameras = orbit(*(torch.full((2,), value) for value in (10.0, 15.0, 2.0, 40.0)), (16, 16))
    guided = guide(rgb, face.Viewpoints.of(cameras), 5)
    guided.loss.backward()
    z = prior.encode(rgb)
    level = face.alpha_bar_at(prior.alpha_bar, guided.t)
    eps = (guided.x_t - face.per_sample(level).sqrt() * guided.target) / face.per_sample(
        1.0 - level
    ).sqrt()
    gradient = face.per_sample(face.sigma(level)) * (eps - guided.kappa) / z.numel()
    expected: Tensor = torch.autograd.grad(z, rgb, gradient)[0]
    torch.testing.assert_close(rgb.grad, expected, rtol=1e-3, atol=1e-9)


def test_viewpoints_of_cameras_are_those_they_were_made_of() -> None:
    azimuth, elevation = torch.tensor([-170.0, 30.0]), torch.tensor([-5.0, 60.0])
    distance = torch.tensor([2.0, 3.0])
    cameras = orbit(azimuth, elevation, distance, torch.tensor([40.0, 40.0]), (8, 8))
    seen, made = face.Viewpoints.of(cameras), face.Viewpoints.orbit(azimuth, elevation, distance)
    for name in ("azimuth_deg", "elevation_deg", "distance", "camera_to_world"):
        torch.testing.assert_close(getattr(seen, name), getattr(made, name), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("pictures", [1, 3])
def test_each_picture_has_a_viewpoint(tiny_model: Path, pictures: int) -> None:
    guide = face.ScoreDistillation(face.load_prior(tiny_model), "a mug", steps=10)
    front = face.Viewpoints.orbit(torch.zeros(2), torch.zeros(2))
    with pytest.raises(ValueError, match=f"{pictures} pictures, but 2 viewpoints"):
        guide(torch.rand(pictures, 3, 16, 16), front, 0)
