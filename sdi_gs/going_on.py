# SPDX-License-Identifier: Apache-2.0
"""How a run goes on: from which checkpoint, with which settings, and for how many steps more.

A run that goes on beyond its end does what it did at its end: ramps, annealed times and learning
rates of positions stay where they are, splats are no longer added. Stretching the schedule instead
would throw the shape back to its middle. Only the cooldown begins anew, over the same share of the
steps that were added, since after its end nothing would move.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from representations.files import write_bytes

from . import build, differences
from .artefacts import checkpoint
from .artefacts.checkpoint import Checkpoint
from .artefacts.run_folder import RunFolder
from .config import Config, from_plain, to_plain
from .errors import UserError, command
from .look import newest
from .origin import noted
from .strict import set_by_path

MAY_CHANGE = ("output", "device", "threads")
"""Settings that say where and how a run is computed and what it leaves, not what it is."""

EXTENDED = ("steps", "schedule_steps")


@dataclass(frozen=True)
class Change:
    """What is otherwise from here on."""

    steps: int | None = None  # of the whole run
    settings: Sequence[str] = ()  # as they are typed; of MAY_CHANGE


def state(
    run: RunFolder, say: Callable[[str], None], change: Change | None = None
) -> tuple[Checkpoint | None, Config]:
    """The newest checkpoint, None before the first one, and the settings to go on with."""
    written = run.config()
    asked = _changed(run, written, change or Change())
    if checkpoint.latest(run.checkpoints) is None:
        if run.summary_file.is_file():
            raise UserError(
                f"{run.path} is finished and has no checkpoint any more, so there is nothing to "
                "continue; make it anew with " + command("generate", "--config", run.config_file)
            )
        say("no checkpoint was written yet: the run starts over, with its own settings")
        return None, build.with_threads(asked, say)
    saved, config, passed = newest(run)
    for damage in passed:
        say(f"{damage}; going on from the one before")
    _require_same(run, config, written)
    now = build.with_threads(asked, say)
    if config.threads != now.threads:
        before = "an unknown number of" if config.threads is None else config.threads
        say(
            f"the run had {before} threads and goes on with {now.threads}: sums are added in "
            "another order, and the last digits will differ from those of a run without a break"
        )
    if config.device != now.device and build.device(config.device) != build.device(now.device):
        say(
            f"the run had device={config.device} and goes on with device={now.device}: the last "
            "digits will differ from those of a run without a break"
        )
    if now.steps > config.steps:
        say(_told(config, now))
    return saved, now


def _told(before: Config, now: Config) -> str:
    cooled = (
        f"; the cooldown begins anew, over the last {now.cooldown:g} of the added steps"
        if now.cooldown else ""
    )  # fmt: skip
    return (
        f"{now.steps - before.steps:,} steps are added: what moves with the run (annealed times, "
        f"ramps, the learning rate of positions) stays as at step {now.schedule:,}, and no splats "
        f"are added{cooled}"
    )  # fmt: skip


def _changed(run: RunFolder, written: Config, change: Change) -> Config:
    """The settings with what is otherwise. UserError for what may not be."""
    tree: dict[str, Any] = to_plain(written)
    for assignment in change.settings:
        name = assignment.partition("=")[0].strip()
        if name == "steps":
            raise UserError(f"{assignment}: write {_longer(run, assignment.partition('=')[2])}")
        if name.split(".")[0] not in MAY_CHANGE:
            raise UserError(f"{assignment}: {_refusal(run, name)}")
        set_by_path(Config, tree, assignment)
    if change.steps is not None:
        if change.steps <= written.steps:
            raise UserError(
                f"steps={change.steps}: the run has {written.steps:,} steps, and is made longer "
                f"only: write {_longer(run, 2 * written.steps)}, or leave steps out to have it "
                "finished; what an unfinished run holds is exported all the same"
            )
        tree |= {"steps": change.steps, "schedule_steps": written.schedule}
    return from_plain(tree)


def _longer(run: RunFolder, steps: object) -> str:
    return command("resume", run.path, "--steps", steps)


def _refusal(run: RunFolder, name: str) -> str:
    return (
        f"a resumed run cannot change {name}, only steps (--steps N) and settings of "
        f"{', '.join(MAY_CHANGE)}; start a new one with it: "
        + command("generate", "--config", run.config_file, f"{name}=...")
    )


def _require_same(run: RunFolder, held: Config, written: Config) -> None:
    """UserError where the file of settings was edited since the checkpoint was written, but for
    what may change and for steps that an earlier 'resume --steps' added."""
    free = {name: getattr(written, name) for name in MAY_CHANGE}
    if written.steps >= held.steps and written.schedule == held.schedule:
        free |= {name: getattr(written, name) for name in EXTENDED}
    if held.model_copy(update=free) == written:
        return
    rows = [row for row in differences.between([held, written])
            if row[0].split(".")[0] not in MAY_CHANGE]  # fmt: skip
    if rows and all(row[0] in EXTENDED for row in rows):
        raise UserError(
            f"{run.config_file} was edited after the run began: steps is {held.steps} in the run; "
            f"put that back and write {_longer(run, written.steps)}"
        )
    told = ", ".join(f"{name} is {before} in the run" for name, before, _ in rows[:3])
    raise UserError(
        f"{run.config_file} was edited after the run began ({told or 'its prompt'}), and a resumed "
        f"run changes nothing but steps (--steps N) and {', '.join(MAY_CHANGE)}; put it back, or "
        "start a new one: " + command("generate", "--config", run.config_file)
    )


def note(run: RunFolder, config: Config, first_step: int) -> None:
    """Write down what was changed. A finished run that goes on is not finished any more."""
    if config != run.config():
        write_bytes(run.config_file, noted(config, run.origin()).encode())
    if first_step < config.steps:
        run.summary_file.unlink(missing_ok=True)
