# SPDX-License-Identifier: Apache-2.0
"""The page, drawn by Gradio: a form, what runs now, the list of runs, and one run.

Every function here may be called by anybody who passes the gate, with anything: what they are given
is asked of the queue, the outputs folder and the orders, which refuse.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artefacts.run_folder import RunFolder
from ..assets import FORMATS, SPLAT_FORMATS
from ..config import guidances
from ..errors import UserError
from . import gallery, orders, shown
from .jobs import RUNNING, Order
from .shown import made

if TYPE_CHECKING:
    from fastapi import FastAPI

    from .desk import Studio

TICK = 1.0  # seconds between two looks at what runs
OWN = "as the preset"
ANY = "any"
MAKE, RUNS, ONE = "make", "runs", "one"  # the tabs
FOLDER = Path(__file__).parent


def mount(app: FastAPI, studio: Studio) -> FastAPI:
    """``app`` with the page at its root."""
    # Both are asked when Gradio is imported: nothing is told to anybody, no font is fetched.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ["GRADIO_TEMP_DIR"] = str(studio.outputs.own / "gradio")
    import gradio as gr

    # Files of the runs are neither copied nor served by Gradio: it says their paths to the browser,
    # and Files.path of the server answers.
    gr.set_static_paths([studio.outputs.path])
    blocks = Page(gr, studio).blocks()
    blocks.queue(default_concurrency_limit=8, api_open=False)
    script = (FOLDER / "studio.js").read_text(encoding="utf-8")
    mounted: FastAPI = gr.mount_gradio_app(
        app, blocks, path="/", footer_links=[], run_history=False, ssr_mode=False,
        allowed_paths=[], enable_monitoring=False, pwa=False,
        mcp_server=False, show_error=False, theme=_theme(gr),
        css=(FOLDER / "studio.css").read_text(encoding="utf-8"),
        head=f"<script>{script}</script>",
    )  # fmt: skip
    return mounted


def _theme(gr: Any) -> Any:
    """Gradio's plainest one, with the fonts of the system: others would be fetched."""
    system = ["system-ui", "sans-serif"]
    mono = ["ui-monospace", "monospace"]
    return gr.themes.Default(primary_hue="sky", neutral_hue="gray", font=system, font_mono=mono)


@dataclass
class Form:
    """The fields of the form, in the order in which functions take them."""

    prompt: Any
    preset: Any
    method: Any
    representation: Any
    steps: Any
    seed: Any
    model: Any

    def all(self) -> list[Any]:
        return list(vars(self).values())


class Page:
    """Builds the page, and answers it."""

    def __init__(self, gr: Any, studio: Studio) -> None:
        self.gr, self.studio = gr, studio
        self.outputs, self.queue = studio.outputs, studio.queue

    def blocks(self) -> Any:
        gr = self.gr
        with gr.Blocks(title="sdi-gs studio", analytics_enabled=False) as blocks:
            gr.HTML(made("head", str(self.outputs.path), self._machine()))
            self.chosen = gr.State("")  # the run that the third tab shows
            self.confirmed = gr.State("")  # the order whose notes have been shown
            self.last = gr.State({})  # what the parts that change by themselves show now
            with gr.Tabs(selected=MAKE) as self.tabs:
                with gr.Tab("Make", id=MAKE):
                    self._make()
                with gr.Tab("Runs", id=RUNS) as runs:
                    self._runs()
                with gr.Tab("One run", id=ONE):
                    self._one()
            self._wire(blocks, runs)
        return blocks

    # -- what stands where ------------------------------------------------------------------

    def _make(self) -> None:
        gr = self.gr
        with gr.Row():
            with gr.Column(min_width=300):
                prompt = gr.Textbox(
                    label="What shall it be?", placeholder="a red mug", lines=1, max_lines=4,
                    max_length=2000, submit_btn=False, elem_id="prompt",
                )  # fmt: skip
                self.notes = gr.HTML("")
                with gr.Row():
                    self.run_button = gr.Button("Make it", variant="primary", elem_id="make-it")
                    self.stop_button = gr.Button("Stop", interactive=False, elem_id="stop-it")
                with gr.Accordion("Words that mini knows", open=False):
                    gr.Markdown(self._words())
                presets = list(orders.shape_presets())
                with gr.Row():
                    preset = gr.Dropdown(
                        presets,
                        value="mini",
                        label="Preset",
                        allow_custom_value=True,
                        min_width=140,
                    )
                    method = gr.Dropdown(
                        [(OWN, ""), *((name, name) for name in guidances())], value="",
                        label="Method", min_width=170,
                    )  # fmt: skip
                self.about = gr.HTML(self.describe("mini", ""))
                with gr.Row():
                    kinds = [(name, kind) for kind, name in orders.REPRESENTATIONS.items()]
                    representation = gr.Dropdown(
                        [(OWN, ""), *kinds], value="", label="Representation", min_width=170
                    )
                    steps = gr.Textbox(
                        label="Steps", placeholder=OWN, max_lines=1, min_width=110, elem_id="steps"
                    )
                    seed = gr.Textbox("0", label="Seed", max_lines=1, min_width=110)
                with gr.Accordion("A model of your own", open=False):
                    model = gr.Textbox(
                        label="Model folder", placeholder="empty: the preset's own",
                        info="in the layout of diffusers, with a model_index.json", max_lines=1,
                    )  # fmt: skip
            with gr.Column(min_width=300):
                self.picture = gr.HTML(shown.made("nothing_runs"))
                self.progress = gr.HTML("")
                self.waiting = gr.HTML("")
        self.form = Form(prompt, preset, method, representation, steps, seed, model)

    def _runs(self) -> None:
        gr = self.gr
        with gr.Row():
            self.words = gr.Textbox(label="Words", placeholder="mug", max_lines=1, min_width=140)
            self.state = gr.Dropdown(
                [(ANY, ""), *((s, s) for s in gallery.STATES)], value="", label="State",
                min_width=120,
            )  # fmt: skip
            self.preset = gr.Dropdown(
                [(ANY, ""), *((p, p) for p in orders.shape_presets())], value="", label="Preset",
                min_width=120,
            )  # fmt: skip
        self.grid = gr.HTML("")
        self.more = gr.Button("Show more", visible=False)
        self.most = gr.State(shown.LISTED)

    def _one(self) -> None:
        gr = self.gr
        self.run_head = gr.HTML('<p class="st-small">Choose a run in the tab Runs.</p>')
        # Gradio's viewer never draws a mesh that comes while it is out of sight. So it stands by
        # itself, its style hides it while it is empty, and the mesh comes with the next tick.
        self.shape = gr.Model3D(
            label="Shape: drag to turn it", height=420, interactive=False, elem_id="mesh",
            clear_color=(1.0, 1.0, 1.0, 1.0),
        )  # fmt: skip

        with gr.Column(visible=False) as self.run_body:
            with gr.Row(elem_classes="st-low"):
                self.again = gr.Button("Again with changes", min_width=150)
                self.go_on = gr.Button("Go on", min_width=120)
                self.longer = gr.Textbox(label="to so many steps", max_lines=1, min_width=120)
            self.run_notes = gr.HTML("")
            self.seen = gr.HTML("")
            gr.Markdown("### Files")
            self.files = gr.HTML("")
            with gr.Row(elem_classes="st-low"):
                self.kind = gr.Dropdown(list(FORMATS), label="Another format", min_width=140)
                self.export = gr.Button("Make the file", min_width=140)
            gr.Markdown("### Compare")
            self.other = gr.Dropdown(
                [], value=None, label="Compare with", allow_custom_value=True, min_width=240
            )
            self.comparison = gr.HTML("")

    def _wire(self, blocks: Any, runs: Any) -> None:
        gr = self.gr
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        ask = gr.Button("ask", visible="hidden", elem_id="studio-ask")
        verb, what = (gr.Textbox(visible="hidden") for _ in range(2))
        live = [self.picture, self.progress, self.waiting, self.stop_button]
        one = [
            self.chosen, self.run_head, self.run_body, self.shape, self.seen,
            self.files, self.kind, self.other, self.comparison, self.run_notes, self.go_on,
            self.longer, self.last,
        ]  # fmt: skip
        listing = [self.words, self.state, self.preset]
        tick = gr.Timer(TICK)
        tick.tick(
            self.tick, [self.last, self.chosen],
            [*live, self.run_head, self.shape, self.seen, self.files,
             self.run_notes, self.last],
            **quiet,
        )  # fmt: skip
        made_of = [*self.form.all(), self.confirmed]
        for event in (self.run_button.click, self.form.prompt.submit):
            event(self.make, made_of, [self.notes, self.confirmed, self.last], **quiet)
        self.stop_button.click(self.stop_all, None, [self.notes], **quiet)
        for field in (self.form.preset, self.form.method):
            field.change(self.describe, [self.form.preset, self.form.method], self.about, **quiet)
        for field in listing:
            field.change(self.list_runs, listing, [self.grid, self.more, self.most], **quiet)
        self.more.click(
            self.list_more, [*listing, self.most], [self.grid, self.more, self.most], **quiet
        )
        runs.select(self.list_again, [*listing, self.most], [self.grid, self.more], **quiet)
        ask.click(
            self.asked, [verb, what], [self.tabs, self.notes, *one],
            js="() => window.studioAsked", **quiet,
        )  # fmt: skip
        self.again.click(self.fill, self.chosen, [self.tabs, self.notes, *self.form.all()], **quiet)
        self.go_on.click(self.resume, [self.chosen, self.longer], self.run_notes, **quiet)
        self.export.click(self.make_file, [self.chosen, self.kind], self.run_notes, **quiet)
        self.other.change(self.compare, [self.chosen, self.other], self.comparison, **quiet)
        blocks.load(
            self.arrive, what, [self.tabs, self.notes, *one],
            js="() => new URLSearchParams(location.search).get('run') || ''",
            **quiet,
        )  # fmt: skip

    # -- words ------------------------------------------------------------------------------

    def _machine(self) -> str:
        slots = self.queue.slots
        return "this machine's CPU" if slots == ("",) else f"{len(slots)} CUDA card(s)"

    def _words(self) -> str:
        from ..mini import colors, kinds

        return (
            f"**Objects**: {', '.join(kinds())}\n\n**Colours**: {', '.join(colors())}\n\n"
            "A sentence names one of each, as in *a red mug*."
        )

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
