# SPDX-License-Identifier: Apache-2.0
"""A run from the first step to the finished folder: train, save, stop, resume, draw."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from representations.ops import card
from representations.particles import all_shapes

from . import assets, budget, build, cores, going_on
from .artefacts import checkpoint, run_folder, scalars
from .artefacts.checkpoint import Checkpoint, CheckpointError
from .artefacts.claim import claimed
from .artefacts.holder import Hold, held
from .artefacts.run_folder import RunFolder
from .config import Config, to_plain
from .errors import DISK, RunFailure, UserError, command, first_line, leading, refused
from .going_on import Change
from .look import Stage, stage, write_particles, write_pictures, write_preview
from .origin import Origin
from .pages.run import write_one
from .stopping import Interrupted, Stop, Stopping, stopping
from .team import joined
from .trainer import NonFinite, StepReport, Training, train


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


def require_ready(config: Config, say: Callable[[str], None]) -> None:
    """Refuse a prompt that cannot work before a model is loaded."""
    note = build.check_prompt(config)
    scalars.require(config)
    if note:
        say(note)


def generate(
    config: Config, out: Path | None, watcher: Watcher, origin: Origin | None = None
) -> RunFolder | None:
    """A new run in a new folder; none in a process that only follows. ``origin``: what the settings
    were made of, which the run writes down."""
    fixed = config.threads is not None
    config = build.with_threads(config, watcher.say)
    pace = cores.pace(fixed, config.threads)
    require_ready(config, watcher.say)
    with stopping() as stop, ExitStack() as stack:
        stack.enter_context(_nothing_yet())
        claim = stack.enter_context(claimed(out, config.prompt, "generate")) if leading() else None
        watcher.say(f"loading {config.model.source}")
        with joined() as team:
            with _named_beforehand(config):
                training = build.training(config, team=team, say=watcher.say)
            if claim is None or not team.leads:
                _follow(training, 0, stop)
                return None
            with _disk_errors(claim.run):
                run = run_folder.begin(claim.run, config, origin)
            if team.count > 1 or training.device.type != "cpu":
                pace = None
            return _run(Begun(config, training, run, claim.hold, stop, pace=pace), watcher)


def resume(path: Path, watcher: Watcher, change: Change | None = None) -> RunFolder | None:
    """Continue a run from its newest whole checkpoint, or from its settings where it has none, to
    the same bytes as without the break. ``change``: what is otherwise from here on."""
    run = run_folder.open_existing(path)
    with stopping() as stop, _disk_errors(run), _named_failure(run, stop), ExitStack() as stack:
        hold = stack.enter_context(held(run.path, "resume")) if leading() else None
        saved, config = going_on.state(run, watcher.say, change)
        scalars.require(config)
        watcher.say(f"loading {config.model.source}")
        with joined() as team:
            training = build.training(config, restored=saved is not None, team=team)
            if saved is not None:
                restore(training, saved)
            first_step = saved.step if saved else 0
            if hold is None or not team.leads:
                _follow(training, first_step, stop)
                return None
            going_on.note(run, config, first_step)
            checkpoint.drop_old(run.checkpoints)
            for told in run.truncate_stats(first_step):
                watcher.say(told)
            seconds = saved.seconds if saved else 0.0
            return _run(Begun(config, training, run, hold, stop, first_step, seconds), watcher)


def _follow(training: Training, first_step: int, stop: Stopping) -> None:
    """The steps of a process that another one leads: that one writes and draws."""
    with stop.after_the_step():
        for report in train(training, first_step):
            last = report.step + 1 == training.steps
            if not last and training.team.any(stop.asked(), training.device):
                raise Interrupted("stopped", stop.why)


def restore(training: Training, saved: Checkpoint) -> None:
    """Put every part back to where the checkpoint was written."""
    with checkpoint.fitting(saved):
        training.renderer.load_state_dict(saved.renderer)
        training.guidance.load_state_dict(saved.guidance)
    training.rng.set_state(saved.rng)


class Begun(NamedTuple):
    """A run that is ready for its next step."""

    config: Config
    training: Training
    run: RunFolder
    hold: Hold
    stop: Stopping
    first_step: int = 0
    seconds_before: float = 0.0  # of the processes before this one
    pace: cores.Pace | None = None  # None: the number of threads stays as it is


class Clock:
    """Seconds of a run, without those of waiting."""

    def __init__(self, before: float) -> None:
        self._began = time.perf_counter() - before

    def spent(self) -> float:
        return time.perf_counter() - self._began

    def rested(self, seconds: float) -> None:
        self._began += seconds


def _run(begun: Begun, watcher: Watcher) -> RunFolder:
    """The loop with everything that is written around it."""
    config, run = begun.config, begun.run
    clock = Clock(begun.seconds_before)
    shown = stage(config, begun.training.renderer)
    if build.must_compile(shown.renderer):
        watcher.say("compiling the kernels for this processor: once, about half a minute")
    with _disk_errors(run), _named_failure(run, begun.stop):
        _train(begun, shown, clock, watcher)
        watcher.say("drawing the turntable")
        begun.hold.require()
        others = [stage(config, one) for one in all_shapes(begun.training.renderer)[1:]]
        _finish(begun, [shown, *others], clock.spent(), watcher)
    return run


def _train(begun: Begun, shown: Stage, clock: Clock, watcher: Watcher) -> None:
    """All steps that are left, each with its line, its preview and its checkpoint where due."""
    config, training, run, hold, stop, first_step, _, pace = begun
    output, done = config.output, first_step

    def save(step: int) -> None:
        hold.require()
        checkpoint.save(run.checkpoints, snapshot(config, training, step, clock.spent()))

    with scalars.logging(config, run, first_step) as log, stop.after_the_step():
        watcher.begin(Scene(config, run, shown, first_step, save, stop.asked, clock.rested))
        try:
            for report in train(training, first_step):
                hold.require()
                run.append(report)
                done = report.step + 1
                log(report)
                watcher.step(report)
                _keep(pace, done, watcher)
                if _due(done, output.preview_every):
                    elevation_deg = output.turntable.elevation_deg
                    write_preview(shown, config.resolution, elevation_deg, run.preview(done))
                if done == config.steps:
                    break
                stopping_ = training.team.any(stop.asked(), training.device)
                if stopping_ or _due(done, output.checkpoint_every):
                    save(done)
                if stopping_:
                    raise _stopped(begun, done)
        except (Stop, SystemError) as error:
            # A compiled kernel that was entered when the signal came makes a SystemError of it.
            if isinstance(error, SystemError) and not stop.asked():
                raise
            if not training.undo_step():
                raise Stop(stop.why) from None
            save(done)  # the step was given up before it changed anything
            raise _stopped(begun, done) from None
        if first_step < config.steps:
            save(config.steps)


def _keep(pace: cores.Pace | None, done: int, watcher: Watcher) -> None:
    """Go on with as many threads as find a core, and say so where that is another number."""
    threads = pace.look(done) if pace is not None else None
    if pace is None or threads is None:
        return
    build.use_threads(threads)
    why = "other work keeps cores busy" if threads < pace.most else "the cores are free again"
    watcher.say(
        f"note: {why}, so that {threads} of {pace.most} threads are used after step {done} "
        f"(threads={pace.most} keeps them all)"
    )


def _stopped(begun: Begun, done: int) -> Interrupted:
    return Interrupted(
        f"stopped after step {done} of {begun.config.steps}; the state is saved. "
        f"Continue with:\n  {_resume_command(begun.run)}",
        begun.stop.why,
    )


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


def _finish(begun: Begun, shown: Sequence[Stage], seconds: float, watcher: Watcher) -> None:
    """The files of each shape, the pictures of the first, and what is said of the run."""
    config, run, pace = begun.config, begun.run, begun.pace
    kind = assets.final_format(shown[0].renderer)
    ending = assets.ending(kind)
    names = [run.final(ending), *(run.particle(n, ending) for n in range(2, len(shown) + 1))]
    # By its sentence, not its folder: the same run has the same bytes.
    named = assets.MeshOptions(name=config.prompt)
    held = {}
    for one, path in zip(shown, names, strict=True):
        try:
            held[path.name] = str(assets.export(one.renderer, path, kind, config.views, named))
        except UserError as error:
            # The run itself is whole: its pictures, and another try with other options, remain.
            held[path.name] = f"not written: {error}"
            watcher.say(f"{path.name} {held[path.name]}")
    write_pictures(shown[0], config.output.turntable, run)
    if len(shown) > 1:
        write_particles(shown, config.output.turntable, run.particles_png)
    run.write_summary(
        prompt=config.prompt,
        asset=held,
        steps=config.steps,
        seconds=round(seconds, 2),
        seconds_per_stage=run.seconds_per_stage(),
        size=run.last_size(),
        **({"threads_after_step": pace.changes} if pace is not None and pace.changes else {}),
    )
    try:
        write_one(run.path)
    except Exception as error:
        # Whatever it is, the run is finished and whole, and another try costs nothing.
        watcher.say(f"report.html not written: {error}; again with {_report_command(run)}")


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


@contextmanager
def _nothing_yet() -> Iterator[None]:
    """A stop before the first step leaves nothing."""
    try:
        yield
    except Stop as stop:
        raise Interrupted(
            "stopped before the first step; nothing was made, and the same command starts again",
            stop.number,
        ) from None


@contextmanager
def _named_failure(run: RunFolder, stop: Stopping) -> Iterator[None]:
    """A run that breaks says where its last good state is."""
    try:
        yield
    except NonFinite as error:
        raise NonFinite(
            f"{error}\n{_kept(run)}; lower the learning rates or the weight of that term"
        ) from error
    except RuntimeError as error:
        if card.out_of_memory(error):
            raise UserError(_too_little_memory(run, error)) from error
        if card.lost(error):
            raise RunFailure(_lost_card(run, error)) from error
        raise
    except KeyboardInterrupt:
        # A second Ctrl-C, a step beyond the grace time, or a stop while the pictures are drawn:
        # nothing more is saved.
        raise Interrupted(
            f"stopped at once; {_kept(run)}; continue with:\n  {_resume_command(run)}", stop.why
        ) from None


def _too_little_memory(run: RunFolder, error: RuntimeError) -> str:
    """What to type for the run whose memory did not suffice."""
    told = f"out of memory on the device: {first_line(error)}\n{_kept(run)}"
    if not run.config_file.is_file():
        return f"{told}; nothing was begun"
    config = run.config()
    last = checkpoint.latest(run.checkpoints)
    if last is not None and last.name == checkpoint.name_of(config.steps):
        return (
            f"{told}, which is the trained shape; close what else uses the device, and have it "
            f"drawn and exported with:\n  {_resume_command(run)}"
        )
    return f"{told}; {budget.advice(config, ('generate', '--config', run.config_file))}"


def _lost_card(run: RunFolder, error: RuntimeError) -> str:
    again = _resume_command(run)
    return (
        f"the card failed, and what lay on it is lost: {first_line(error)}\n{_kept(run)}; see that "
        f"nvidia-smi still lists the card, and continue with:\n  {again}"
    )


@contextmanager
def _named_beforehand(config: Config) -> Iterator[None]:
    """A card that fails while the model is loaded, before there is a run."""
    try:
        yield
    except RuntimeError as error:
        if card.out_of_memory(error):
            raise UserError(
                f"out of memory on the device while the model was loaded: {first_line(error)}\n"
                f"nothing was begun; {budget.advice(config)}"
            ) from error
        if card.lost(error):
            raise RunFailure(
                f"the card failed while the model was loaded: {first_line(error)}\nnothing was "
                "begun; see that nvidia-smi still lists the card, and try again"
            ) from error
        raise


def _kept(run: RunFolder) -> str:
    kept = checkpoint.latest(run.checkpoints)
    return f"the last good checkpoint is {kept}" if kept else "no checkpoint was written yet"


@contextmanager
def _disk_errors(run: RunFolder) -> Iterator[None]:
    """A full, read-only or forbidden disk is told once, with the way to continue."""
    try:
        yield
    except CheckpointError as error:
        if isinstance(error.__cause__, OSError):
            raise CheckpointError(f"{error}; {_after_room(run)}") from error
        raise
    except OSError as error:
        if error.errno not in DISK:
            raise
        kept = ""
        with contextlib.suppress(OSError):
            found = checkpoint.latest(run.checkpoints)
            kept = f"{found} is intact; " if found else ""
        raise UserError(f"{refused(error, run.path)}; {kept}{_after_room(run)}") from error


def _after_room(run: RunFolder) -> str:
    if not run.config_file.is_file():
        return "nothing was begun: after making room, the same command works"
    return f"after making room, continue with: {_resume_command(run)}"
