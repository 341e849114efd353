# SPDX-License-Identifier: Apache-2.0
"""No page takes words for HTML, wherever they stand, and nothing can turn the escaping off."""

from __future__ import annotations

import ast
import json
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError, nodes
from PIL import Image

from representations.cloud import SplatCloud
from representations.export import write_ply
from sdi_gs.artefacts.run_folder import STAGES
from sdi_gs.config import dump, load
from sdi_gs.experiments import compare, compare_page, everything, study, tables
from sdi_gs.experiments.base import Result
from sdi_gs.experiments.base import write as write_figure
from sdi_gs.experiments.chains import Variant
from sdi_gs.pages import parts, render
from sdi_gs.pages import run as run_report
from sdi_gs.pages.plots import Line, bars, plot
from sdi_gs.pages.text import text_table
from sdi_gs.studio import shown
from sdi_gs.studio.gallery import STATES, Entry
from sdi_gs.studio.jobs import Job, Order
from sdi_gs.sweep import report as sweep_report
from sdi_gs.sweep.manifest import Line as ManifestLine
from sdi_gs.sweep.manifest import Manifest, Sweep
from sdi_gs.sweep.status import Standing

from ..markup import Page

ROOT = Path(__file__).parents[2]
EVIL = """<script>alert(1)</script>"&' onload=x"""  # the end tells where quotation marks lack
ESCAPED = ("&lt;script&gt;alert(1)&lt;/script&gt;&#34;&amp;&#39;",
           "&lt;script&gt;alert(1)&lt;/script&gt;&quot;&amp;&#x27;")  # fmt: skip
PLAIN = "harmless/word"  # with a slash: as a folder it is two, like EVIL


def run_folder(path: Path, word: str, finished: bool = True) -> Path:
    """A run whose every text is ``word``, its folder's name included."""
    path = path / word
    (path / "previews").mkdir(parents=True)
    config = load("mini").model_copy(update={"prompt": word, "negative_prompt": word})
    (path / "config.yaml").write_text(dump(config))
    lines = [
        {"step": k, "loss": 0.1, "losses": {word: 0.1}, "t": 5.0, "size": 3, "unit": word,
         "added": 0, "removed": 0, "events": [word], "evaluations": 8,
         "seconds": dict.fromkeys(STAGES, 0.1), "peak_memory_mb": 5.0}
        for k in range(4)
    ]  # fmt: skip
    (path / "stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("preview.png", "turntable.gif", "previews/step_0000002.png"):
        Image.new("RGB", (8, 8)).save(path / name)
    summary = {"asset": {word: word}, "hardware": {word: word}, "versions": {"torch": word},
               "converted_from": word, "seconds": 2.0}  # fmt: skip
    if finished:
        (path / "summary.json").write_text(json.dumps(summary))
    return path


def balls(count: int) -> SplatCloud:
    """Splats in a heap, seeded."""
    rng = torch.Generator().manual_seed(count)
    return SplatCloud(
        means=0.3 * torch.randn(count, 3, generator=rng),
        log_scale=torch.log(0.02 + 0.1 * torch.rand(count, 3, generator=rng)),
        quat_wxyz=torch.randn(count, 4, generator=rng),
        opacity_logit=torch.randn(count, generator=rng),
        sh_dc=torch.rand(count, 3, generator=rng) * 3.0 - 1.5,
        sh_rest=torch.zeros(count, 0, 3),
    )


def row(word: str, psnr_db: float | None = 20.0) -> compare.Row:
    return compare.Row(
        representation=word, guidance=word, seed=0, prompt=word, run=word, steps=3,
        seconds_per_step=dict.fromkeys(STAGES, 0.1), seconds_total=2.0, evaluations_per_step=8.0,
        peak_memory_mb=500.0, peak_cuda_memory_mb=None, parameters=1, size=1, unit=word,
        files={word: 5}, psnr_db=psnr_db, blank_db=9.0,
        curve=[{"step": 1, "seconds": 0.1, "psnr_db": 11.0}],
    )  # fmt: skip


def one(word: str, folder: Path) -> str:
    """With splats that can be turned."""
    path = run_folder(folder, word)
    write_ply(path / "final.ply", balls(3))
    return run_report.one(run_report.read(path), path)


def unfinished(word: str, folder: Path) -> str:
    path = run_folder(folder, word, finished=False)
    return run_report.one(run_report.read(path), path)


def several(word: str, folder: Path) -> str:
    """Of one name, so that the page shows whole paths."""
    made = [run_folder(folder / "a", word), run_folder(folder / "b", word, finished=False)]
    return run_report.many([run_report.read(path) for path in made], folder)


def compared(word: str, folder: Path) -> str:
    missing = [compare.Missing(compare.Cell(word, word, 1), study.Without(word, False))]
    made = compare.Comparison([row(word), row(word, None)], missing)
    return compare_page.page(compare.Plan(word), made, word, folder)


def table(word: str, folder: Path) -> str:
    config = load("mini").model_copy(update={"prompt": word})
    wanted = tables.Wanted(compare.Cell(word, word, 1), Variant(word, word), config)
    entries = [tables.summarise(word, word, [row(word)])]
    shown = [tables.Shown(wanted, row(word)), tables.Shown(wanted, study.Without(word, False))]
    return tables.page(word, entries, shown, word, folder)


def facts(word: str, folder: Path) -> str:
    """The page of gpu-check."""
    sections = [{"heading": word, "warning": word, "lines": [(word, word)]}]
    return render.page("facts", {"title": word, "facts": [(word, word)], "sections": sections})


def viewer_panel(word: str, folder: Path) -> str:
    made = parts.html_table([(word, word)], head=(word, word))
    return str(parts.inset(word) + parts.inset(word, strong=True) + made)


def drawings(word: str, folder: Path) -> str:
    lines = [Line(word, [(1.0, 2.0), (2.0, 3.0)])]
    stacked = bars([(word, {word: 1.0, "b": 2.0})], word, word)
    return str(plot(lines, word, word) + plot([], word, word) + stacked)


def figure(word: str, folder: Path) -> str:
    """The .svg file of an experiment."""
    rows = [{word: word, "x": x, "y": x + 1} for x in (1.0, 2.0)]
    folder.mkdir(exist_ok=True)
    write_figure(Result(rows, word, "x", "y"), "fig", word, folder, {})
    return (folder / "fig.svg").read_text()


def all_experiments(word: str, folder: Path) -> str:
    """The page that leads to every experiment: one with a table, one that failed."""
    whole = everything.Made("fig9", word, [f"a/{word}"], [f"a/{word}"], "a/table.html", "")
    folder.mkdir(exist_ok=True)
    made = [whole, everything.Made("fig1", word, [], [], "", word)]
    return everything.write(made, word, folder).read_text()


def sweep(word: str, folder: Path) -> str:
    """The page of a sweep, with a run of each kind."""
    settings = ManifestLine(
        word, "mini", word, word, 0, (word,), 4, "runs/000/x-00000000", "0" * 16
    )
    lines = [settings._replace(digest=f"{k:016}") for k in range(3)]
    folder.mkdir(exist_ok=True)
    made = Sweep(folder, word)
    seen = [
        sweep_report.Seen(lines[0], "done", "", row(word)),
        sweep_report.Seen(lines[1], "diverged", word, None),
        sweep_report.Seen(lines[2], "failed", word, None),
    ]
    found = Standing(Manifest(lines, [word]), {}, Counter({"done": 1, "diverged": 1, "failed": 1}))
    pictures = {lines[0].digest: (word, word)}
    return sweep_report.html(made, found, seen, pictures, [folder / "runs.csv"])


def studio(word: str, folder: Path) -> str:
    """Every part of the studio's page."""
    job = Job(1, "generate", "stopped", Order(word), run=word, message=word)
    resumed = replace(job, verb="resume", state="running")
    at = shown.Now(word, 1, 2, word, word, (word,))
    entries = [
        Entry(word, state, word, word, word, 1, word, 4, 2, 0, word if state == "damaged" else "")
        for state in STATES
    ]
    return "".join(
        (
            shown.made("head", word, word), shown.made("told", [word]), shown.made("told", ()),
            shown.made("about", [word]),
            shown.made("pictures", [("", word), ("/live/1", word)]), shown.made("nothing_runs"),
            shown.made("progress", job, at), shown.made("progress", job, replace(at, steps=0)),
            shown.made("ended", job, "/live/1", word), shown.made("ended", job, "", ""),
            shown.made("queue", [job, resumed]), shown.made("queue", []),
            shown.made("gallery", entries, 4, 9), shown.made("gallery", [], 0, 0),
            shown.made("run", entries[0], [(word, word)]), shown.made("run", entries[3], []),
            shown.made("seen", word, 7), shown.made("seen", word, None),
            shown.made("files", word, [(word, word)], True), shown.made("files", word, [], False),
            shown.made("compare", word, word), shown.made("compare", word, ""),
        )
    )  # fmt: skip


PAGES = (
    one, unfinished, several, compared, table, facts, viewer_panel, drawings, figure, sweep, studio,
    all_experiments,
)  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_words_stay_words(page: Callable[[str, Path], str], tmp_path: Path) -> None:
    """A page of evil words has the elements and attributes of one with harmless words, and the
    same number of places where the words stand."""
    harmless, evil = page(PLAIN, tmp_path / "p"), page(EVIL, tmp_path / "e")
    assert EVIL not in evil
    assert evil.lower().count("<script") == harmless.count("<script")  # those of the template
    assert any(escaped in evil for escaped in ESCAPED)
    shown, expected = Page(evil), Page(harmless)
    assert shown.structure == expected.structure
    assert len(shown.words) == len(expected.words)
    for found, other in zip(shown.words, expected.words, strict=True):
        # JSON, YAML and the shell put quotes of their own around an evil word.
        assert ("script>" in found) == ("word" in other), (found, other)
    assert sum(EVIL in found for found in shown.words) > 0
    assert [EVIL in unquote(url) for url in shown.urls] == [PLAIN in url for url in expected.urls]


WHOLE = (one, unfinished, several, compared, table, facts, sweep)
"""Those that are pages by themselves."""


@pytest.mark.parametrize("page", WHOLE)
def test_what_is_shown_is_said_too(page: Callable[[str, Path], str], tmp_path: Path) -> None:
    """Pictures, films and charts have words, and nothing moves unasked. A real browser and axe-core
    look closer in tests/viewers/test_reports.py."""
    shown = Page(page(PLAIN, tmp_path))
    must = {"img": {"alt"}, "svg": {"role"}, "th": {"scope"}, "html": {"lang"},
            "video": {"controls", "aria-label"}, "canvas": {"tabindex", "role", "aria-label"},
            "pre": {"tabindex"}}  # fmt: skip
    for tag, *attributes in shown.structure:
        assert must.get(tag, set()) <= set(attributes), (tag, attributes)
        assert not {"autoplay", "onclick", "style"} & set(attributes), (tag, attributes)
    count = Counter(shown.tags)
    assert (count["main"], count["h1"]) == (1, 1)
    assert count["title"] == 1 + count["svg"]
    assert count["desc"] == count["svg"]
    assert not {"link", "iframe", "object"} & set(count)
    assert not [part for part in shown.structure if part[0] == "script" and "src" in part]


def test_a_chart_is_told_in_words() -> None:
    drawn = plot([Line("a", [(1.0, 2.5), (4.0, 0.5)]), Line("b", [])], "steps", "loss")
    assert "<title>loss by steps</title><desc>a: 2.5 at 1, 0.5 at 4</desc>" in drawn
    many = [Line(str(k), [(0.0, 1.0)]) for k in range(15)]
    assert "; and 3 more</desc>" in plot(many, "x", "y")
    told = bars([("one", {"a": 1.0, "b": 2.0}), ("", {"a": 1.0})], "cost", "ms")
    assert "<title>cost</title><desc>one: 3 ms; 1 ms</desc>" in told


def test_every_template_is_on_one_of_these_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A template that is added needs a page in PAGES."""
    used: set[str] = set()
    read = PackageLoader.get_source

    def spy(self: PackageLoader, environment: Environment, name: str) -> Any:
        used.add(name)
        return read(self, environment, name)

    monkeypatch.setattr(PackageLoader, "get_source", spy)
    render.environment.cache_clear()  # else the templates are compiled already
    for page in PAGES:
        page(PLAIN, tmp_path / page.__name__)
    assert used == set(render.environment().list_templates())


def test_escaping_cannot_be_turned_off() -> None:
    """By a template; nor by Markup around anything but text that stands in the code."""
    environment = render.environment()
    assert environment.autoescape is True
    assert environment.undefined is StrictUndefined
    names = environment.list_templates()
    assert {"base.html.j2", "run.html.j2", "compare.html.j2", "table.html.j2"} <= set(names)
    for name in names:
        assert environment.loader is not None
        tree = environment.parse(environment.loader.get_source(environment, name)[0])
        assert not [f for f in tree.find_all(nodes.Filter) if f.name == "safe"], name
        kinds = (nodes.MarkSafe, nodes.MarkSafeIfAutoescape, nodes.EvalContextModifier,
                 nodes.ScopedEvalContextModifier)  # fmt: skip
        assert not list(tree.find_all(kinds)), name
    made = 0
    for path in [*(ROOT / "sdi_gs").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Markup"):
                (given,) = node.args
                assert isinstance(given, ast.Constant), f"{path}:{node.lineno}"
                made += 1
    assert made > 5  # those of plots.py are seen


def test_a_name_that_nobody_passed_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="'facts' is undefined"):
        render.page("facts", {"title": "t", "sections": []})


def test_a_film_is_a_picture_where_its_file_is_one() -> None:
    assert Page(render.part("film", "a.mp4", ["c"], "p.png")).urls == ["a.mp4", "p.png"]
    assert Page(render.part("film", "a.mp4", ["c"])).tags[1] == "video"
    assert Page(render.part("film", "a.gif", ["c"])).tags[1:3] == ["picture", "img"]
    caption = Page(render.part("film", "data:image/gif;base64,", ["one", "two"]))
    assert caption.tags == ["figure", "picture", "img", "figcaption", "br"]
    assert "one\ntwo" in caption.text


def test_a_line_of_one_value_has_an_axis_with_two_ends() -> None:
    drawn = ElementTree.fromstring(plot([Line("", [(1.0, 3000.0), (2.0, 3000.0)])], "x", "y"))
    texts = [element.text for element in drawn.iter("text")]
    assert "3150" in texts
    assert "2850" in texts


def test_a_text_table_is_aligned() -> None:
    assert text_table([["a", "long", "1"], ["abc", "b", "22"]], left=1).splitlines() == [
        "a    long   1",
        "abc     b  22",
    ]
    assert text_table([["a", "b"], ["cc", "d"]]).splitlines() == [" a  b", "cc  d"]
