# SPDX-License-Identifier: Apache-2.0
"""What the page answers to what is pressed and typed.

Every function here may be called by anybody who passes the gate, with anything: what they are given
is asked of the queue, the outputs folder and the orders, which refuse.
"""

from __future__ import annotations

from typing import Any

from ..artefacts.run_folder import RunFolder
from ..assets import FORMATS, SPLAT_FORMATS
from ..config import guidances
from ..errors import UserError
from . import gallery, orders, shown
from .desk import Studio
from .jobs import RUNNING, Order
from .shown import made

MAKE, RUNS, ONE = "make", "runs", "one"  # the tabs


class Answers:
    """The functions behind the page; each gives the new values of the parts that it is for."""

    def __init__(self, gr: Any, studio: Studio) -> None:
        self.gr, self.studio = gr, studio
        self.outputs, self.queue = studio.outputs, studio.queue

    def describe(self, preset: Any, method: Any) -> str:
        """Why the preset exists, what the method is, and how many steps they take."""
        preset, method = str(preset or ""), str(method or "")
        found = [orders.shape_presets().get(preset, ""), guidances().get(method, "")]
        if preset.startswith(orders.OF_A_RUN):
            found[0] = f"The settings of {preset.removeprefix(orders.OF_A_RUN)}."
        steps = orders.usual_steps(self.outputs, preset, method)
        found.append(f"{steps:,} steps where you write none." if steps else "")
        return made("about", [line for line in found if line])

    # -- making -----------------------------------------------------------------------------

    def make(self, *given: Any) -> tuple[Any, ...]:
        """Ask for a run. What is worth knowing is said first, and then the same press makes it."""
        *fields, confirmed = given
        try:
            order = _order(*fields)
            notes = orders.check(self.outputs, order)
            told = repr(order)
            if notes and confirmed != told:
                again = "Press Make it once more to have it made all the same."
                return made("told", [*notes, again]), told, {}
            self.queue.make(order)
        except UserError as error:
            return _wrong(error), "", {}
        waits = len([other for other in self.queue.all() if not other.ended]) - 1
        said = f"It waits in the queue, behind {waits}." if waits else "It begins."
        return made("told", [said]), "", {}

    def stop_all(self) -> str:
        """Stop what runs; what waits stays."""
        running = [job for job in self.queue.all() if job.state == RUNNING]
        try:
            for job in running:
                if job.verb != "export":
                    self.queue.stop(job.number)
        except UserError as error:
            return _wrong(error)
        if not running:
            return made("told", ["Nothing runs."])
        return made("told", ["It stops after this step and saves its state."])

    def tick(self, last: Any, chosen: str) -> tuple[Any, ...]:
        """What changes by itself; what has not changed is not sent."""
        gr, before = self.gr, last if isinstance(last, dict) else {}
        running = any(
            job.state == RUNNING and job.verb != "export" and not job.asked_to_stop
            for job in self.queue.all()
        )
        now = {
            "picture": shown.pictures(self.outputs, self.queue),
            "progress": shown.progress(self.outputs, self.queue),
            "waiting": shown.waiting(self.queue),
            "stop": running,
            **self._now(str(chosen)),
        }
        changed = {name for name, value in now.items() if before.get(name) != value}

        def sent(name: str, update: Any = None) -> Any:
            known = name in changed and now[name] is not None
            return gr.skip() if not known else now[name] if update is None else update

        return (
            sent("picture"), sent("progress"), sent("waiting"),
            sent("stop", gr.update(interactive=running)), sent("head"),
            sent("shape", gr.update(value=now["shape"] or None)),
            sent("seen"), sent("files"), sent("export"), now if changed else gr.skip(),
        )  # fmt: skip

    def _now(self, chosen: str) -> dict[str, str | None]:
        """The parts of the chosen run that change while it or an export goes on; None is left as it
        is."""
        empty: dict[str, str | None] = dict.fromkeys(("head", "shape", "seen", "files", "export"))
        if not chosen:
            return empty
        try:
            entry = self.studio.gallery.entry(chosen)
            if entry.state == gallery.DAMAGED:
                return empty
            return {
                "head": self._head(entry),
                "shape": self._model(chosen) or "",
                "seen": shown.seen(self.outputs, chosen),
                "files": self._files(chosen),
                "export": self._export_of(chosen),
            }
        except UserError:
            return empty

    def _head(self, entry: gallery.Entry) -> str:
        return made("run", entry, shown.rows(entry, self._seconds(entry)))

    def _export_of(self, chosen: str) -> str | None:
        """How the newest export of the chosen run is doing; None where there is none."""
        found = [j for j in self.queue.all() if j.verb == "export" and j.run == chosen and chosen]
        if not found:
            return None
        job = found[-1]
        if not job.ended:
            return made("told", [f"{job.kind}: the file is being made."])
        return made("told", [job.message], "note" if job.state == "done" else "error")

    # -- runs -------------------------------------------------------------------------------

    def list_runs(self, words: str, state: str, preset: str, most: int = shown.LISTED) -> Any:
        entries = self.studio.gallery.entries()
        found = gallery.chosen(entries, str(words or ""), str(state or ""), str(preset or ""))
        most = min(max(1, int(most)), 100_000)
        more = self.gr.update(visible=len(found) > most)
        return shown.listed(found, len(entries), most), more, most

    def list_more(self, words: str, state: str, preset: str, most: int) -> Any:
        return self.list_runs(words, state, preset, int(most) + 4 * shown.LISTED)

    def list_again(self, words: str, state: str, preset: str, most: int) -> Any:
        return self.list_runs(words, state, preset, most)[:2]

    # -- one run ----------------------------------------------------------------------------

    def arrive(self, name: str) -> tuple[Any, ...]:
        """A browser opens the page; its address may name a run."""
        if not name:
            return (self.gr.skip(),) * 15
        return self._open(str(name))

    def asked(self, verb: str, what: str) -> tuple[Any, ...]:
        """A button of our own was pressed."""
        skip = (self.gr.skip(),) * 13
        verb, what = str(verb), str(what)
        try:
            if verb == "open":
                return self._open(what)
            if verb == "stop" and what.isascii() and what.isdecimal():
                self.queue.stop(int(what))
                return (self.gr.skip(), self.gr.skip(), *skip)
            if verb == "resume":
                self.queue.resume(what)
                return (self.gr.skip(), made("told", [f"{what} goes on."]), *skip)
        except UserError as error:
            return (self.gr.skip(), _wrong(error), *skip)
        return (self.gr.skip(), self.gr.skip(), *skip)

    def _open(self, name: str) -> tuple[Any, ...]:
        """The third tab with the run ``name``."""
        gr = self.gr
        try:
            entry = self.studio.gallery.entry(name)
        except UserError as error:
            empty = (gr.skip(),) * 10
            nothing = gr.update(visible=False)
            return (gr.Tabs(selected=ONE), gr.skip(), "", _wrong(error), nothing, *empty)
        damaged = entry.state == gallery.DAMAGED
        kinds = FORMATS if entry.representation == "gaussians" else FORMATS[len(SPLAT_FORMATS) :]
        others = [
            (f"{other.title[:60]} ({other.name})", other.name)
            for other in self.studio.gallery.entries()
            if other.name != name and other.state != gallery.DAMAGED
        ]
        return (
            gr.Tabs(selected=ONE), gr.skip(), name,
            self._head(entry),
            gr.update(visible=not damaged),
            gr.update(value=None),
            shown.seen(self.outputs, name),
            self._files(name),
            gr.update(choices=list(kinds), value=kinds[0]),
            gr.update(choices=others, value=None),
            made("compare", name, ""),
            self._export_of(name) or "",
            gr.update(interactive=entry.state in (gallery.UNFINISHED, gallery.FINISHED)),
            gr.update(value="", placeholder=str(2 * entry.steps)), {},
        )  # fmt: skip

    def _model(self, name: str) -> str | None:
        """The file that Gradio's viewer shows: a mesh, where there are no splats, which the report
        shows itself."""
        if shown.is_there(self.outputs, name, "final.ply"):
            return None
        if not shown.is_there(self.outputs, name, "final.glb"):
            return None
        return str(self.outputs.file(name, "final.glb"))

    def _files(self, name: str) -> str:
        try:
            has_report = RunFolder(self.outputs.run(name)).stats_file.is_file()
            return made("files", name, shown.files_of(self.outputs, name), has_report)
        except UserError as error:
            return _wrong(error)

    def _seconds(self, entry: gallery.Entry) -> str:
        if entry.state != gallery.FINISHED:
            return ""
        try:
            seconds = RunFolder(self.outputs.run(entry.name)).summary().seconds
        except UserError:
            return ""
        return shown.spoken(seconds)

    def fill(self, name: str) -> tuple[Any, ...]:
        """The form with what a run was made of."""
        gr = self.gr
        try:
            tree = orders.settings_of(self.outputs.run(name))
            entry = self.studio.gallery.entry(name)
        except UserError as error:
            return (gr.Tabs(selected=MAKE), _wrong(error), *(gr.skip(),) * 7)
        exact = entry.changes == 0
        said = f"These are the settings of {name}: change what you like."
        preset = entry.preset if exact else f"{orders.OF_A_RUN}{name}"
        return (
            gr.Tabs(selected=MAKE), made("told", [said]), str(tree.get("prompt") or ""), preset,
            entry.method if exact else "", "", str(entry.steps), str(entry.seed), "",
        )  # fmt: skip

    def resume(self, name: str, steps: Any) -> str:
        """Let the chosen run go on."""
        try:
            wanted = _whole("to so many steps", steps)
            entry = self.studio.gallery.entry(name)
            if entry.state == gallery.FINISHED and wanted is None:
                raise UserError(
                    f"{name} is finished after {entry.steps:,} steps: write to how many steps it "
                    f"is to go on, such as {2 * entry.steps}"
                )
            if wanted is not None and wanted <= entry.steps:
                raise UserError(
                    f"{name} has {entry.steps:,} steps, and a run is made longer only: write more, "
                    f"such as {2 * entry.steps}, or nothing"
                )
            self.queue.resume(name, wanted)
        except UserError as error:
            return _wrong(error)
        return made("told", [f"{name} goes on when its turn comes: see Make."])

    def make_file(self, name: str, kind: str) -> str:
        """Have a file made of the chosen run."""
        try:
            if kind not in FORMATS:
                raise UserError(f"format {kind!r} is not known")
            orders.settings_of(self.outputs.run(name))
            self.queue.export(name, kind)
        except UserError as error:
            return _wrong(error)
        return made("told", [f"{kind}: the file is being made."])

    def compare(self, name: str, other: Any) -> str:
        if not other:
            return made("compare", name, "")
        try:
            second = self.outputs.run(str(other)).name
        except UserError as error:
            return _wrong(error)
        return made("compare", name, second)


def _order(
    prompt: Any, preset: Any, method: Any, representation: Any, steps: Any, seed: Any, model: Any
) -> Order:
    """What the form says. UserError for what is no number."""
    return Order(
        prompt=" ".join(str(prompt or "").split()),
        preset=str(preset or "mini"),
        method=str(method) if method else None,
        representation=str(representation) if representation else None,
        steps=_whole("steps", steps),
        seed=_whole("seed", seed),
        model=str(model).strip() if model and str(model).strip() else None,
    )


def _whole(name: str, value: Any) -> int | None:
    """A number as it was typed, None for none. UserError for what is no whole number."""
    text = str(value if value is not None else "").strip().replace(",", "").replace("_", "")
    if not text:
        return None
    if not (text.isascii() and text.removeprefix("-").isdigit()):
        raise UserError(f"{name}: {str(value)[:40]!r} is no whole number; write one, such as 400")
    return int(text)


def _wrong(error: UserError) -> str:
    return made("told", str(error).splitlines(), "error")
