# SPDX-License-Identifier: Apache-2.0
"""The process that makes one run for the studio: ``python -m sdi_gs.studio.worker OUTPUTS NUMBER``.

It outlives the studio that has started it, and everything it has to say it leaves in the folder of
its job.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from representations.files import write_bytes

from .. import api
from ..assets import default_path
from ..errors import RunFailure, UserError, first_line
from ..run import Scene
from ..splat_export import SplatOptions
from ..stopping import Interrupted, stopping
from ..trainer import StepReport
from ..watch.live import Budget
from ..watch.progress import Pace
from . import jobs, orders
from .jobs import Job, Outcome, Progress
from .outputs import Outputs

TELL_EVERY = 0.5  # seconds between two times that progress is written, at least
DRAW_EVERY = 2.0  # seconds between two pictures of the growing shape, at least
SIDE = 320  # pixels of such a picture, square
TURN = 48  # pictures of one turn around the shape
ELEVATION_DEG = 15.0
NOTES = 6  # of what a run says, the last so many are shown


class Teller:
    """A watcher that leaves progress and pictures in the folder of its job."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.perf_counter) -> None:
        self.folder, self.clock = folder, clock
        self.budget = Budget()
        self.stage, self.notes = "starting", list[str]()
        self.first = self.done = self.steps = self.size = self.drawn = 0
        self.unit = ""
        self.pace: Pace | None = None
        self.scene: Scene | None = None
        self._told = self._pictured = -1e9
        self._left = 0.0

    def say(self, text: str) -> None:
        print(text, flush=True)
        if text.startswith(("loading ", "compiling ", "drawing ")):
            self.stage = text
        else:
            self.notes = [*self.notes, text.removeprefix("note: ")][-NOTES:]
        self.tell()

    def begin(self, scene: Scene) -> None:
        self.scene, self.stage = scene, "training"
        self.first = self.done = scene.first_step
        self.steps = scene.config.steps
        self.pace = Pace(self.steps)
        self.tell()
        self.picture()
        self._left = self.clock()

    def step(self, report: StepReport) -> None:
        assert self.pace is not None
        self.pace.lap()
        now = self.clock()
        self.budget.earn(now - self._left)
        self.done, self.size = report.step + 1, report.refined.size
        self.unit = report.refined.unit
        last = self.done == self.steps
        if last or now - self._told >= TELL_EVERY:
            self.tell()
        if last or (now - self._pictured >= DRAW_EVERY and self.budget.affords(0.0)):
            self.picture()
        self._left = self.clock()

    def tell(self) -> None:
        self._told = self.clock()
        per_step = None if self.pace is None else self.pace.per_step
        jobs.write_progress(
            self.folder,
            Progress(
                self.stage, self.first, self.done, self.steps, per_step, self.size, self.unit,
                tuple(self.notes), time.time(),
            ),
        )  # fmt: skip

    def picture(self) -> None:
        """The shape as it is, from a little further around each time."""
        import io

        from PIL import Image

        from ..artefacts.media import to_uint8

        assert self.scene is not None
        began = self.clock()
        stage = self.scene.stage
        cameras = stage.views.showcase(TURN, SIDE, ELEVATION_DEG)
        at = self.drawn % TURN
        buffer = io.BytesIO()
        drawn = to_uint8(stage.draw(cameras[at : at + 1]))[0]
        Image.fromarray(drawn).save(buffer, format="JPEG", quality=88)
        write_bytes(self.folder / "live.jpg", buffer.getvalue())
        self.drawn += 1
        self._pictured = self.clock()
        self.budget.spend(self._pictured - began)


def work(outputs: Outputs, job: Job, teller: Teller) -> str:
    """Do what ``job`` says; what is said of its success."""
    if job.verb == "generate" and job.order is not None and job.run is not None:
        asked = orders.words(outputs, job.order)
        api.generate(
            asked.prompt.strip(), asked.preset, guidance=asked.guidance, seed=asked.seed,
            steps=asked.steps, settings=asked.settings, out=outputs.run(job.run), watcher=teller,
        )  # fmt: skip
        return "finished"
    run = outputs.run(job.run or "")
    orders.settings_of(run)  # which refuses code that came with a run
    if job.verb == "resume":
        api.resume(run, teller, steps=job.steps)
        return "finished"
    teller.say(f"loading {run.name}")
    asset = api.open_asset(run)
    kind = str(job.kind)
    path = default_path(run, kind, SplatOptions())
    teller.say(f"drawing {path.name}" if kind in ("glb", "obj") else f"loading {path.name}")
    return f"{path.name}: {asset.save(path, kind)}"


def main(arguments: list[str]) -> int:
    """The exit code, which says the same as outcome.json."""
    outputs, number = Outputs(Path(arguments[0])), int(arguments[1])
    folder = jobs.folder(outputs.jobs, number)
    job = jobs.read(folder)
    if job is None:
        print(f"{folder} holds no job", file=sys.stderr)
        return 2
    outcome, code = Outcome(jobs.FAILED, "stopped"), 1
    try:
        with stopping():
            outcome, code = Outcome(jobs.DONE, work(outputs, job, Teller(folder))), 0
    except Interrupted as error:
        said = first_line(error).partition(" Continue with")[0]
        outcome, code = Outcome(jobs.STOPPED, said), error.exit_code
    except KeyboardInterrupt:
        outcome, code = Outcome(jobs.STOPPED, "stopped; whatever was finished is kept"), 130
    except (UserError, RunFailure) as error:
        outcome, code = Outcome(jobs.FAILED, str(error)), error.exit_code
    except Exception as error:
        traceback.print_exc()
        what = f"{type(error).__name__}: {first_line(error, 'no message')}"
        outcome = Outcome(jobs.FAILED, f"a mistake of this program: {what} (all of it: log.txt)")
    jobs.write_outcome(folder, outcome)
    print(outcome.message, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
