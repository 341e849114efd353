# SPDX-License-Identifier: Apache-2.0
"""A run from the first step to the finished folder: train, save, stop, resume, draw."""

from __future__ import annotations

import errno
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NamedTuple, Protocol

import torch

from . import assets, build
from .artefacts import checkpoint, run_folder, scalars
from .artefacts.checkpoint import Checkpoint, CheckpointError
from .artefacts.run_folder import RunFolder
from .config import Config, to_plain
from .errors import INTERRUPTED, RunFailure, UserError, command, first_line, leading
from .look import Stage, newest, stage, write_pictures, write_preview
from .pages.run import write_one
from .team import joined
from .trainer import NonFinite, StepReport, Training, train

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


class Scene(NamedTuple):
    """What a watcher may look at, and ask for, between two steps and in the thread of the run."""

    config: Config
    run: RunFolder
    stage: Stage
    first_step: int  # the first one that this process does
    save: Callable[[int], None]  # write a checkpoint; takes how many steps are done
    stopping: Callable[[], bool]  # whether Ctrl-C was pressed: a watcher that waits stops waiting
    rested: Callable[[float], None]  # seconds of waiting, which are no seconds of the run


class Watcher(Protocol):
    """Whoever shows the run to a person."""

    def say(self, text: str) -> None: ...

    def begin(self, scene: Scene) -> None: ...

    def step(self, report: StepReport) -> None: ...


class Interrupted(RunFailure):
    """Ctrl-C; the state is saved."""

    exit_code = INTERRUPTED


@dataclass
class StopFlag:
    """Set by Ctrl-C; looked at between steps, where the state is whole."""

    requested: bool = False

    def asked(self) -> bool:
        return self.requested


def require_ready(config: Config, out: Path | None, say: Callable[[str], None]) -> None:
    """Refuse a prompt or a folder that cannot work before a model is loaded, which is announced."""
    note = build.check_prompt(config)
    if leading():
        run_folder.require_free(out)
    scalars.require(config)
    if note:
        say(note)
    say(f"loading {config.model.source}")


def generate(config: Config, out: Path | None, watcher: Watcher) -> RunFolder | None:
    """A new run in a new folder; none in a process that only follows."""
    require_ready(config, out, watcher.say)
    with joined() as team:
        training = build.training(config, team=team)
        if not team.leads:
            _follow(training, 0)
            return None
        run = run_folder.create(config, out)
        return _run(config, training, run, 0, 0.0, watcher)


def resume(path: Path, watcher: Watcher) -> RunFolder | None:
    """Continue a run from its newest checkpoint, to the same bytes as without the break."""
    run = run_folder.open_existing(path)
    saved, config = newest(run)
    if config != run.config():
        raise UserError(
            f"{run.config_file} was edited after the run began, and a resumed run cannot change "
            "its settings; start a new one: " + command("generate", "--config", run.config_file)
        )
    scalars.require(config)
    watcher.say(f"loading {config.model.source}")
    with joined() as team:
        training = build.training(config, restored=True, team=team)
        restore(training, saved)
        if not team.leads:
            _follow(training, saved.step)
            return None
        for told in run.truncate_stats(saved.step):
            watcher.say(told)
        return _run(config, training, run, saved.step, saved.seconds, watcher)


def _follow(training: Training, first_step: int) -> None:
    """The steps of a process that another one leads: that one writes and draws."""
    with _stop_on_signal() as stop:
        for report in train(training, first_step):
            last = report.step + 1 == training.steps
            if not last and training.team.any(stop.requested, training.device):
                raise Interrupted("stopped")


def restore(training: Training, saved: Checkpoint) -> None:
    """Put every part back to where the checkpoint was written."""
    with checkpoint.fitting(saved):
        training.renderer.load_state_dict(saved.renderer)
        training.guidance.load_state_dict(saved.guidance)
    training.rng.set_state(saved.rng)


def _run(
    config: Config,
    training: Training,
    run: RunFolder,
    first_step: int,
    seconds_before: float,
    watcher: Watcher,
) -> RunFolder:
    """The loop with everything that is written around it."""
    began = time.perf_counter()
    shown = stage(config, training.renderer)
    elevation_deg = config.output.turntable.elevation_deg

    def spent() -> float:
        return seconds_before + time.perf_counter() - began

    def rested(seconds: float) -> None:
        nonlocal began
        began += seconds

    def save(step: int) -> None:
        checkpoint.save(run.checkpoints, snapshot(config, training, step, spent()))

    with _disk_errors(run), _named_failure(run):
        with _stop_on_signal() as stop, scalars.logging(config, run, first_step) as log:
            watcher.begin(Scene(config, run, shown, first_step, save, stop.asked, rested))
            for report in train(training, first_step):
                done = report.step + 1
                run.append(report)
                log(report)
                watcher.step(report)
                if _due(done, config.output.preview_every):
                    write_preview(shown, config.resolution, elevation_deg, run.preview(done))
                if done == config.steps:
                    break
                stopping = training.team.any(stop.requested, training.device)
                if stopping or _due(done, config.output.checkpoint_every):
                    save(done)
                if stopping:
                    raise Interrupted(
                        f"stopped after step {done} of {config.steps}; the state is saved. "
                        f"Continue with:\n  {_resume_command(run)}"
                    )
            if first_step < config.steps:
                save(config.steps)
        watcher.say("drawing the turntable")
        _finish(config, shown, run, spent(), watcher)
    return run


def _resume_command(run: RunFolder) -> str:
    return command("resume", run.path)


def _report_command(run: RunFolder) -> str:
    return command("report", run.path)


def snapshot(config: Config, training: Training, step: int, seconds: float) -> Checkpoint:
    """The whole state between two steps."""
    return Checkpoint(
        step=step,
        config=to_plain(config),
        renderer=training.renderer.state_dict(),
        guidance=training.guidance.state_dict(),
        rng=training.rng.get_state(),
        seconds=seconds,
    )


def _finish(config: Config, shown: Stage, run: RunFolder, seconds: float, watcher: Watcher) -> None:
    kind = assets.final_format(shown.renderer)
    path = run.final(assets.ending(kind))
    try:
        holds = str(assets.export(shown.renderer, path, kind, config.views))
    except UserError as error:
        # The run itself is whole: its pictures, and another try with other options, remain.
        holds = f"not written: {error}"
        watcher.say(f"{path.name} {holds}")
    write_pictures(shown, config.output.turntable, run)
    run.write_summary(
        prompt=config.prompt,
        asset={path.name: holds},
        steps=config.steps,
        seconds=round(seconds, 2),
        seconds_per_stage=run.seconds_per_stage(),
        size=run.last_size(),
    )
    try:
        write_one(run.path)
    except Exception as error:
        # Whatever it is, the run is finished and whole, and another try costs nothing.
        watcher.say(f"report.html not written: {error}; again with {_report_command(run)}")


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


@contextmanager
def _stop_on_signal() -> Iterator[StopFlag]:
    """The first Ctrl-C asks for a stop after the current step; a second one does not wait."""
    stop = StopFlag()

    def ask(_signal: int, _frame: FrameType | None) -> None:
        stop.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        before = signal.signal(signal.SIGINT, ask)
    except ValueError:  # not in the main thread: whoever started us handles signals
        yield stop
        return
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _named_failure(run: RunFolder) -> Iterator[None]:
    """A run that breaks says where its last good state is."""
    try:
        yield
    except NonFinite as error:
        raise NonFinite(
            f"{error}\n{_kept(run)}; lower the learning rates or the weight of that term"
        ) from error
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"out of memory on the device: {first_line(error)}\n{_kept(run)}; start again with "
            "micro_batch=1 model.rows=1 model.vae_memory=bounded, which change nothing but the "
            "memory, or with a lower batch or resolution"
        ) from error
    except KeyboardInterrupt:
        # A second Ctrl-C, or one while the pictures are drawn: nothing more is saved.
        command = f"; continue with:\n  {_resume_command(run)}"
        saved = checkpoint.latest(run.checkpoints) is not None
        raise Interrupted(f"stopped at once; {_kept(run)}{command if saved else ''}") from None


def _kept(run: RunFolder) -> str:
    kept = checkpoint.latest(run.checkpoints)
    return f"the last good checkpoint is {kept}" if kept else "no checkpoint was written yet"


@contextmanager
def _disk_errors(run: RunFolder) -> Iterator[None]:
    """A full or read-only disk is told once, with the way to continue."""
    again = f"after making room, continue with: {_resume_command(run)}"
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {again}") from error
    except OSError as error:
        if error.errno not in _DISK:
            raise
        kept = checkpoint.latest(run.checkpoints)
        raise UserError(
            f"{error.filename or run.path} could not be written: {error.strerror}; "
            + (f"{kept} is intact; {again}" if kept else "no checkpoint was written yet")
        ) from error
