# SPDX-License-Identifier: Apache-2.0
"""The last stage of DreamGaussian, Magic3D and ProlificDreamer: the shape of a run as a mesh whose
texture is trained on, and its corners where that is asked for, with the run's own model, prompt and
method. It is a run like any other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from representations.interface import HasTexture
from representations.textured.config import MeshInit, ShapeMoves, TexturedConfig

from . import assets, run
from .artefacts.run_folder import RunFolder
from .config import Config
from .errors import UserError, command
from .guidance.distillation import GuidanceConfig
from .look import Reopened, reopen
from .meshes import MeshOptions
from .ramp import Ramp

TEXTURE = 1024  # texels along a side, where no other number is given
LATEST = 0.5
"""Times of the stage begin no higher than this: at more noise a model asks for another shape, which
a texture can only paint, and forgets the one that is there."""

SHAPE_RATE = 2e-3
"""World units that a corner may go in a step at first, where shapes are trained."""
FLATNESS = 0.1
"""Weight of terms.normal_consistency there."""


def refine(
    path: Path, steps: int, options: MeshOptions, watcher: run.Watcher, shape: bool = False
) -> RunFolder | None:
    """Make a textured mesh of the run at ``path``, and train its texture for ``steps``, with
    ``shape`` its corners as well; the new run, in the folder "textured" of the old one. None in a
    process that only follows."""
    if steps < 1:
        raise UserError(f"refine={steps}: allowed is 1 step or more; write refine=100")
    if path.is_file():
        raise UserError(
            f"refine={steps}: {path} is a file, which has no model and no prompt: make a mesh of "
            "it, and train its texture with "
            + command("generate", "a sentence", "--init", "MESH.glb", "representation=textured")
        )
    opened = reopen(path)
    if isinstance(opened.renderer, HasTexture):
        raise UserError(
            f"refine={steps}: {path} is a textured mesh already, and was trained as one: leave "
            "refine out to export it"
        )
    out = _free(opened.run.path / "textured")
    mesh = out.with_name(f"{out.name}.glb")
    bare = dataclasses.replace(
        options, texture=options.texture or TEXTURE, height=None, pivot=None,
        name=options.name or opened.config.prompt,
    )  # fmt: skip
    watcher.say(f"laying out and painting the mesh of {path}")
    _bake(opened, mesh, bare, watcher.say)
    return run.generate(
        configuration(opened.config, steps, mesh, shape), out, watcher, opened.run.origin()
    )


def _bake(opened: Reopened, mesh: Path, options: MeshOptions, say: Callable[[str], None]) -> None:
    holds = assets.export(opened.renderer, mesh, "glb", opened.config.views, options)
    say(f"{mesh}  ({holds})")


def _free(path: Path) -> Path:
    """``path``, or the first of its numbered neighbours, where nothing is."""
    number, free = 1, path
    while free.exists() or free.with_name(f"{free.name}.glb").exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def configuration(config: Config, steps: int, mesh: Path, shape: bool = False) -> Config:
    """The settings of a run on the texture of ``mesh``, and on its corners where ``shape`` says so,
    in place of those of the run that it was made of."""
    moves = ShapeMoves(rate=SHAPE_RATE) if shape else ShapeMoves()
    chosen = TexturedConfig(init=MeshInit(path=str(mesh.resolve())), shape=moves)
    return config.model_copy(
        update={
            "representation": chosen,
            "steps": steps,
            "schedule_steps": None,  # the stage has a schedule of its own
            # Those of another representation mean nothing here.
            "terms": {"normal_consistency": Ramp(FLATNESS, FLATNESS)} if shape else {},
            "guidance": late(config.guidance),
        }
    )


def late(guidance: GuidanceConfig) -> GuidanceConfig:
    """The same guidance at times of at most :data:`LATEST`."""
    time = guidance.t
    low = None if time.low is None else _at_most(time.low)
    return dataclasses.replace(
        guidance, t=dataclasses.replace(time, high=_at_most(time.high), low=low)
    )


def _at_most(ramp: Ramp) -> Ramp:
    return dataclasses.replace(ramp, start=min(ramp.start, LATEST), end=min(ramp.end, LATEST))
