# SPDX-License-Identifier: Apache-2.0
"""The page, drawn by Gradio: a form, what runs now, the list of runs, and one run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..assets import FORMATS
from ..config import guidances
from . import gallery, orders, shown
from .answers import MAKE, ONE, RUNS, Answers
from .shown import made

if TYPE_CHECKING:
    from fastapi import FastAPI

    from .desk import Studio

TICK = 1.0  # seconds between two looks at what runs
OWN = "as the preset"
ANY = "any"
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
    """Builds the page: what stands where, and what is asked when something is pressed."""

    def __init__(self, gr: Any, studio: Studio) -> None:
        self.gr, self.studio = gr, studio
        self.answers = Answers(gr, studio)

    def blocks(self) -> Any:
        gr = self.gr
        with gr.Blocks(title="sdi-gs studio", analytics_enabled=False) as blocks:
            gr.HTML(made("head", str(self.studio.outputs.path), self._machine()))
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
                self.about = gr.HTML(self.answers.describe("mini", ""))
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
        gr, does = self.gr, self.answers
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
            does.tick, [self.last, self.chosen],
            [*live, self.run_head, self.shape, self.seen, self.files,
             self.run_notes, self.last],
            **quiet,
        )  # fmt: skip
        made_of = [*self.form.all(), self.confirmed]
        for event in (self.run_button.click, self.form.prompt.submit):
            event(does.make, made_of, [self.notes, self.confirmed, self.last], **quiet)
        self.stop_button.click(does.stop_all, None, [self.notes], **quiet)
        for field in (self.form.preset, self.form.method):
            field.change(does.describe, [self.form.preset, self.form.method], self.about, **quiet)
        for field in listing:
            field.change(does.list_runs, listing, [self.grid, self.more, self.most], **quiet)
        self.more.click(
            does.list_more,
            [*listing, self.most],
            [self.grid, self.more, self.most],
            **quiet,
        )
        runs.select(does.list_again, [*listing, self.most], [self.grid, self.more], **quiet)
        ask.click(
            does.asked, [verb, what], [self.tabs, self.notes, *one],
            js="() => window.studioAsked", **quiet,
        )  # fmt: skip
        self.again.click(does.fill, self.chosen, [self.tabs, self.notes, *self.form.all()], **quiet)
        self.go_on.click(does.resume, [self.chosen, self.longer], self.run_notes, **quiet)
        self.export.click(does.make_file, [self.chosen, self.kind], self.run_notes, **quiet)
        self.other.change(does.compare, [self.chosen, self.other], self.comparison, **quiet)
        blocks.load(
            does.arrive, what, [self.tabs, self.notes, *one],
            js="() => new URLSearchParams(location.search).get('run') || ''",
            **quiet,
        )  # fmt: skip

    def _machine(self) -> str:
        slots = self.studio.queue.slots
        return "this machine's CPU" if slots == ("",) else f"{len(slots)} CUDA card(s)"

    def _words(self) -> str:
        from ..mini import colors, kinds

        return (
            f"**Objects**: {', '.join(kinds())}\n\n**Colours**: {', '.join(colors())}\n\n"
            "A sentence names one of each, as in *a red mug*."
        )
