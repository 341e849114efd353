# SPDX-License-Identifier: Apache-2.0
"""What a form may say, and what it means as settings of a run.

Only names are taken: of presets, methods, representations, and of runs in the outputs folder. A
run whose settings name plug-ins would bring Python code of its own, so that its settings are not
used here.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from .. import build
from ..api import configure
from ..config import guidances, load, presets, read_tree
from ..errors import UserError, command, nearest
from ..families import PRESETS
from .jobs import Order
from .outputs import Outputs

OF_A_RUN = "run:"
"""Before the name of a run whose settings stand in for a preset."""

REPRESENTATIONS = {"gaussians": "splats", "instant_ngp": "a radiance field"}
"""What a sentence can become, and what people call it."""

MOST_STEPS = 1_000_000


class Words(NamedTuple):
    """An order as the public face takes it."""

    prompt: str
    preset: str
    guidance: str | None
    seed: int | None
    steps: int | None
    settings: tuple[str, ...]


@cache
def shape_presets() -> dict[str, str]:
    """Presets that make shapes, with their reasons; the first is the one for a plain CPU."""
    found = {name: why for name, why in presets().items() if not name.endswith("_2d")}
    return {"mini": found.pop("mini"), **found}


@cache
def kind_of(preset: str) -> str:
    """The representation of a preset."""
    return load(preset).representation.kind


def usual_steps(outputs: Outputs, preset: str, method: str) -> int | None:
    """Steps of a preset with a method where nothing else is said; None where they are not known."""
    try:
        asked = words(outputs, Order("", preset, method or None))
        return configure("", asked.preset, guidance=asked.guidance).steps
    except UserError:
        return None


def words(outputs: Outputs, order: Order) -> Words:
    """``order`` as settings. UserError for a name that is not known."""
    preset = _preset(outputs, order)
    method = order.method or None
    if method is not None and method not in guidances():
        raise UserError(f"method {method!r}: {nearest(method, guidances())}")
    for name, value, least in (("steps", order.steps, 1), ("seed", order.seed, 0)):
        if value is not None and not least <= value < 2**63:
            raise UserError(f"{name}: {value} was given; write a whole number from {least} on")
    if order.steps is not None and order.steps > MOST_STEPS:
        raise UserError(f"steps: {order.steps:,} were given; allowed are at most {MOST_STEPS:,}")
    settings = []
    if order.model:
        settings.append(f"model.source={_model(order.model)}")
    return Words(order.prompt, preset, method, order.seed, order.steps, tuple(settings))


def check(outputs: Outputs, order: Order) -> list[str]:
    """What is worth knowing before the run of ``order`` begins; UserError where it cannot work."""
    asked = words(outputs, order)
    config = configure(
        asked.prompt.strip(), asked.preset, guidance=asked.guidance, seed=asked.seed,
        steps=asked.steps, settings=asked.settings,
    )  # fmt: skip
    try:
        notes = [build.check_prompt(config), build.check_model(config.model)]
    except UserError as error:
        raise UserError(_on_the_page(str(error))) from None
    return [_on_the_page(note) for note in notes if note]


def _on_the_page(text: str) -> str:
    """What the command line says of a prompt or a model, for somebody who types no commands."""
    text = text.removeprefix("note: ").replace("--config ", "the preset ")
    return text.replace(f"; see {command('words')}", "; all of its words stand below")


def _preset(outputs: Outputs, order: Order) -> str:
    """The preset or file that the order means, with the representation that it asks for."""
    name = order.preset
    if order.representation and order.representation not in REPRESENTATIONS:
        known = nearest(order.representation, REPRESENTATIONS)
        raise UserError(f"representation {order.representation!r}: {known}")
    if name.startswith(OF_A_RUN):
        run = outputs.run(name.removeprefix(OF_A_RUN))
        tree = settings_of(run)
        kind = (tree.get("representation") or {}).get("kind")
        if order.representation not in (None, "", kind):
            raise UserError(
                f"the settings of {run.name} are those of {REPRESENTATIONS.get(str(kind), kind)}: "
                "choose a preset to change the representation"
            )
        return str(run / "config.yaml")
    if name not in shape_presets():
        raise UserError(f"preset {name!r}: {nearest(name, shape_presets())}")
    if order.representation in (None, "", kind_of(name)):
        return name
    return twin(name, str(order.representation))


def twin(preset: str, kind: str) -> str:
    """The preset of the same model with the representation ``kind``. UserError where none is."""
    pairs: list[Mapping[str, str]] = [*PRESETS.values()]
    pairs += [
        {"gaussians": name, "instant_ngp": name.replace("_gaussians", "_nerf")}
        for name in shape_presets()
        if "_gaussians" in name
    ]
    for pair in pairs:
        if preset in pair.values() and pair.get(kind) in shape_presets():
            return pair[kind]
    raise UserError(
        f"{preset} has {REPRESENTATIONS[kind_of(preset)]}, and no preset like it has "
        f"{REPRESENTATIONS[kind]}: leave the representation as it is, or choose another preset"
    )


def settings_of(run: Path) -> dict[str, Any]:
    """The settings of a run as plain data. UserError where they cannot be read, and where they name
    plug-ins."""
    if (run / "config.yaml").is_symlink():
        raise UserError(
            f"config.yaml of {run.name} is a symbolic link, and the studio follows none"
        )
    tree = read_tree(run / "config.yaml")
    if tree.get("plugins"):
        raise UserError(
            f"{run.name} names plug-ins, which are Python code, and the studio runs none that came "
            f"with a run; where you trust it, type: {command('report', run)}"
        )
    if not isinstance(tree.get("representation", {}), dict):
        raise UserError(f"{run.name}: its config.yaml holds no settings of a run")
    return tree


def _model(text: str) -> Path:
    """A folder with a diffusion model. UserError for anything else."""
    folder = Path(text.strip()).expanduser()
    if not (folder / "model_index.json").is_file():
        raise UserError(
            f"the model folder {text.strip()} has no model_index.json: name the folder of a model "
            "in the layout of diffusers, or leave it empty for the preset's own"
        )
    return folder.resolve()
