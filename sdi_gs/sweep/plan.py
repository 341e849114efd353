# SPDX-License-Identifier: Apache-2.0
"""From sentences, methods, representations, seeds and settings to the lines of a manifest.

Whatever no run could do is refused before anything starts, all of it at once. Planning again adds
what is new and touches nothing else.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from representations.files import write_bytes

from .. import budget, build
from ..artefacts.claim import require_free, unwritable
from ..artefacts.holder import held
from ..artefacts.records import write_json
from ..artefacts.run_folder import slug
from ..config import Config, guidances, set_plugins, to_plain
from ..errors import UserError, nearest
from ..families import configure, require_family
from .manifest import BLOCK, FORMAT, TRIES, Line, Sweep, open_sweep, version

LONG = 40
"""Letters of a sentence that fit into the name of a folder."""

_MEMORY = ("batch", "micro_batch", "resolution", "model", "prompts", "update", "representation",
           "particles")  # fmt: skip
"""The settings that the memory of a run depends on."""

TOLD = 20
"""Mistakes that a refusal names; of the others it gives the number."""


@dataclass(frozen=True)
class Plan:
    """What a sweep is made of."""

    prompts: tuple[str, ...]
    methods: tuple[str, ...] = ("sdi",)
    representations: tuple[str, ...] = ("gaussians",)
    seeds: tuple[int, ...] = (0,)
    family: str = "mini"
    settings: tuple[str, ...] = ()  # key=value, for every run
    grid: tuple[tuple[str, tuple[str, ...]], ...] = ()  # key, values: every one of them
    tries: int = TRIES  # runs of a line that may crash before it has failed
    card_bytes: int | None = None  # free on the cards that will do the work; None: not known


class Planned(NamedTuple):
    """What planning came to."""

    sweep: Sweep
    lines: list[Line]  # all of the sweep
    new: list[Line]  # that were not there before
    notes: list[str]


class Variant(NamedTuple):
    """The settings of every run that differs from its like by sentence and seed alone."""

    method: str
    representation: str
    overrides: tuple[str, ...]
    config: Config


def digest(tree: dict[str, Any]) -> str:
    """Sixteen letters for all settings of a run, plain data as ``to_plain`` gives it."""
    text = json.dumps(tree, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def configuration(line: Line) -> Config:
    """The settings of a line. UserError where they are not those that were planned, so that nothing
    else is made in their name."""
    upper = {"prompt": line.prompt, "seed": line.seed}
    config = configure(line.family, line.representation, line.method, line.overrides, upper)
    found = digest(to_plain(config))
    if found != line.digest:
        raise UserError(
            f"the settings of this line come to {found}, and {line.digest} was planned: the line "
            f"was edited, or the preset or file {line.representation!r} or the method "
            f"{line.method!r} has changed since. Put it back and try again (sweep retry), or plan "
            "again, which adds the changed run as a new one"
        )
    return config


def variants(plan: Plan, mistakes: list[str]) -> list[Variant]:
    """Every combination of method, representation and setting that works; the others go into
    ``mistakes``."""
    found = []
    keys = [key for key, _ in plan.grid]
    for values in itertools.product(*(values for _, values in plan.grid)):
        overrides = (*plan.settings, *(f"{k}={v}" for k, v in zip(keys, values, strict=True)))
        for method, representation in itertools.product(plan.methods, plan.representations):
            shape = str(Path(representation).resolve()) if _is_file(representation) else (
                representation)  # fmt: skip
            try:
                config = configure(plan.family, shape, method, overrides, {"seed": 0})
            except UserError as error:
                mistakes.append(str(error))
                continue
            found.append(Variant(method, shape, overrides, config))
    return found


def _is_file(word: str) -> bool:
    return word.endswith((".yaml", ".yml")) and Path(word).is_file()


def check(plan: Plan) -> tuple[list[Variant], list[str]]:
    """The variants of a plan, and notes about what works in part.

    Raises:
        UserError: something in it no run could do; every mistake is named.
    """
    mistakes: list[str] = []
    notes: list[str] = []
    require_family(plan.family)
    _require_lists(plan)
    set_plugins({}, [*plan.settings, *(f"{k}={v}" for k, vs in plan.grid for v in vs)])
    mistakes += [f"methods={name}: {nearest(name, guidances())}"
                 for name in plan.methods if name not in guidances()]  # fmt: skip
    known = tuple(name for name in plan.methods if name in guidances())
    found = variants(replace(plan, methods=known or ("sdi",)), mistakes)
    for like in {v.config.model.model_dump_json(): v.config for v in found}.values():
        _check_model(like, mistakes, notes)
        for prompt in plan.prompts:
            try:
                note = build.check_prompt(like.model_copy(update={"prompt": prompt}))
            except UserError as error:
                mistakes.append(str(error))
            else:
                notes += [f"{prompt!r}: {note.removeprefix('note: ')}"] if note else []
    _check_cards(plan, found, mistakes, notes)
    mistakes = list(dict.fromkeys(mistakes))
    if mistakes:
        more = len(mistakes) - TOLD
        told = mistakes[:TOLD] + ([f"and {more} more"] if more > 0 else [])
        raise UserError(
            "nothing was planned, since no run could do this:\n  " + "\n  ".join(told)
            if len(mistakes) > 1 else mistakes[0]
        )  # fmt: skip
    return found, list(dict.fromkeys(notes))


def _require_lists(plan: Plan) -> None:
    for name in ("prompts", "methods", "representations", "seeds"):
        if not getattr(plan, name):
            raise UserError(f"no {name}: name at least one")
    wrong = [seed for seed in plan.seeds if not 0 <= seed < 2**63]
    if wrong:
        raise UserError(f"seeds={wrong[0]}: allowed are 0 to 2^63 - 1")
    if plan.tries < 1:
        raise UserError(f"tries={plan.tries}: allowed is 1 or more")


def _check_model(config: Config, mistakes: list[str], notes: list[str]) -> None:
    """A model that is missing, as far as that is known without loading or fetching it."""
    try:
        note = build.check_model(config.model)
    except UserError as error:
        mistakes.append(str(error))
    else:
        notes += [note] if note else []


def _check_cards(
    plan: Plan, found: Sequence[Variant], mistakes: list[str], notes: list[str]
) -> None:
    if plan.card_bytes is None:
        if not all(v.config.model.embedded for v in found):
            notes.append(
                "memory was not checked: say what is free on the cards with --card-gib, as in "
                "--card-gib 24"
            )
        return
    told: dict[str, str | None] = {}  # by what memory depends on, since counting takes seconds
    for variant in found:
        tree = to_plain(variant.config)
        key = json.dumps({name: tree[name] for name in _MEMORY})
        if key not in told:
            try:
                budget.require_card(variant.config, plan.card_bytes)
                told[key] = None
            except UserError as error:
                told[key] = str(error)
        if told[key] is not None:
            mistakes.append(f"{variant.method}, {variant.representation}: {told[key]}")


def lines(
    plan: Plan, found: Sequence[Variant], before: Sequence[Line], there: Mapping[str, str]
) -> Iterator[Line]:
    """The runs of a plan that are not among the lines ``before``, sentence by sentence. ``there``:
    the block of each folder that exists already, where lines were lost."""
    digests = {line.digest for line in before}
    folders = {line.folder for line in before}
    blocks = Counter(int(line.block) for line in before)
    last = max(blocks, default=0)
    place = last * BLOCK + blocks[last]
    plain = [(variant, to_plain(variant.config)) for variant in found]
    for prompt, seed, (variant, tree) in itertools.product(plan.prompts, plan.seeds, plain):
        key = digest(tree | {"prompt": prompt, "seed": seed})
        if key in digests:
            continue
        digests.add(key)
        shape = slug(Path(variant.representation).stem)
        words = f"{slug(prompt)[:LONG].strip('-')}-{slug(variant.method)}-{shape}-{seed}"
        block = there.get(f"{words}-{key[:8]}") or f"{place // BLOCK:03}"
        folder = f"runs/{block}/{words}-{key[:8]}"
        if folder in folders:
            folder = f"runs/{block}/{words}-{key}"
        folders.add(folder)
        place += 1
        yield Line(prompt, plan.family, variant.method, variant.representation, seed,
                   variant.overrides, variant.config.steps, folder, key)  # fmt: skip


def write(plan: Plan, out: Path) -> Planned:
    """Plan into the folder ``out``, new or that of an earlier plan.

    Raises:
        UserError: no run could do this, or the folder is somebody else's, or cannot be written.
    """
    found, notes = check(plan)
    is_new = not (out / "sweep.json").is_file()
    if is_new:
        require_free(out)
    else:
        open_sweep(out).require_version()
    try:
        out.mkdir(parents=True, exist_ok=True)
        with held(out, "sweep plan"):
            if is_new:
                require_free(out, mine=True)
                made = {**FORMAT, "planned_by": version(), "tries": plan.tries}
                write_bytes(out / "manifest.jsonl", b"")
                write_json(out / "sweep.json", made)
            sweep = open_sweep(out)
            before = sweep.read() if sweep.manifest.exists() else None
            old = before.lines if before else []
            there = _there(sweep) if before and before.damage else {}
            new = list(lines(plan, found, old, there))
            if new:
                _append(sweep, new)
            sweep.state.mkdir(exist_ok=True)
    except OSError as error:
        raise unwritable(out, error) from error
    lost = before.lost() if before else None
    return Planned(sweep, [*old, *new], new, [*notes, *([lost] if lost else [])])


def _there(sweep: Sweep) -> dict[str, str]:
    """The block of each run's folder: a line that was lost finds its run again."""
    blocks = sorted(path for path in (sweep.path / "runs").glob("*") if path.is_dir())
    return {path.name: block.name for block in blocks for path in block.iterdir() if path.is_dir()}


def _append(sweep: Sweep, new: Sequence[Line]) -> None:
    """Whole or not at all, and every byte of the earlier lines as it was."""
    there = sweep.manifest.read_bytes() if sweep.manifest.exists() else b""
    if there and not there.endswith(b"\n"):
        there += b"\n"
    write_bytes(sweep.manifest, there + "".join(f"{line.text()}\n" for line in new).encode())
