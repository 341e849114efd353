# SPDX-License-Identifier: Apache-2.0
"""The whole program on a pretended card: what it makes, how it stops, and what it says when the
card is too small or fails. The card itself is in :mod:`tests.pretended_card`."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from representations.export import read_ply
from representations.ops import triton_launch
from sdi_gs.cli.main import main

from .tiny import FIELD, FIELD_TERMS, save_model, save_settings
from .torchrun import pair

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(
    os.path.exists("/dev/nvidiactl") or not triton_launch.available(),
    reason="pretends a card where there is none, and interprets Triton",
)

SMALL_FIELD = {**FIELD, "march": {**FIELD["march"], "samples": 24, "max_samples": 24}}
OUTPUT = {
    "preview_every": 0,
    "checkpoint_every": 1,
    "turntable": {"frames": 1, "size": 16, "format": "gif"},
}
DENSIFY = {"every": 2, "start": 0.0, "stop": 1.0}
SPLATS = {"count": 24, "max_count": 40, "densify": DENSIFY}
STEPS = 3
PROMPT = "a red mug"

PLACES = {
    # where the card fails: at which call of what, and whether a run has been begun by then
    "loading": ("sdi_gs.diffusion.stable:StableDiffusion.try_out@1", "nothing"),
    "words": ("sdi_gs.diffusion.stable:StableDiffusion.embed@2", "nothing"),
    "render": ("{renderer}.render@2", "step"),
    "encode": ("sdi_gs.diffusion.stable:StableDiffusion.encode@2", "step"),
    "predict": ("sdi_gs.diffusion.stable:StableDiffusion.predict_noise@5", "step"),
    "backward": ("torch:Tensor.backward@3", "step"),
    "optimiser": ("representations.adam:Adam.step@2", "step"),
    "structure": ("{structure}@1", "step"),
    "turntable": ("sdi_gs.run:write_pictures@1", "trained"),
}
SPLAT_PLACES = {"renderer": "representations.gaussians.renderer:GaussianRenderer",
                "structure": "representations.gaussians.densify:apply_plan"}  # fmt: skip
FIELD_PLACES = {
    "renderer": "representations.instant_ngp.renderer:InstantNGPRenderer",
    "structure": "representations.instant_ngp.occupancy:OccupancyGrid.update",
}
FIELD_STAGES = ("render", "predict", "structure")
METHODS = {
    # copies to the card in a step: the cameras, and all that guidance has planned and drawn
    "sdi": 2,
    "sds": 2,
    "ism": 2,
    "stein_depth": 2,
    # and how two prompts are blended, and which views stand against which negative
    "sdi prompts.perp_neg=threestudio": 4,
    # and the pose, twice, and the lesson's times and noise
    "vsd": 6,
}  # fmt: skip
WAYS = {"splats": SPLAT_PLACES, "field": FIELD_PLACES}


def job(*arguments: object, breaks: str = "", program: str = "sdi_gs") -> dict[str, Any]:
    return {"arguments": [str(a) for a in arguments], "breaks": breaks, "program": program}


def on_a_card(folder: Path, jobs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The jobs by name, done in one process, with what came of them."""
    path = folder / "jobs.json"
    path.write_text(json.dumps(list(jobs.values())))
    done = subprocess.run(
        [sys.executable, "-m", "tests.pretended_card", "--jobs", path], cwd=ROOT,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(zip(jobs, json.loads(path.read_text()), strict=True))


class Place:
    """Folders and settings of the module."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        model = save_model(folder / "model")
        common = {"device": "auto", "steps": STEPS, "output": OUTPUT}
        one = {"kind": "ddim_inversion", "cfg_scale": 0.0, "steps": 1}
        self.settings = {
            "splats": save_settings(
                folder / "splats.yaml", model, noise=one, representation=SPLATS, **common),
            "field": save_settings(
                folder / "field.yaml", model, noise=one, representation=SMALL_FIELD,
                terms=FIELD_TERMS, **common),
        }  # fmt: skip

    def generate(self, kind: str, name: str, *more: object, breaks: str = "") -> dict[str, Any]:
        config, out = self.settings[kind], self.folder / name
        return job("generate", PROMPT, "--config", config, "--out", out, *more, breaks=breaks)

    @cache  # noqa: B019 - lives as long as the module
    def whole(self) -> dict[str, dict[str, Any]]:
        """What works, by Triton's kernels and by plain torch."""
        lost = "lost@sdi_gs.diffusion.stable:StableDiffusion.encode@3"
        kernel = "kernel@representations.gaussians.renderer:GaussianRenderer.render@2"
        jobs = {
            "triton splats": self.generate("splats", "triton", "--steps", 2, "batch=1"),
            "triton field": self.generate("field", "triton_field", "--steps", 2, "batch=1"),
            "torch splats": self.generate("splats", "torch", "representation.backend=torch"),
            "torch field": self.generate("field", "torch_field", "representation.backend=torch"),
            "lost": self.generate("splats", "lost", "representation.backend=torch", breaks=lost),
            "resume": job("resume", self.folder / "lost"),
            "kernel": self.generate("splats", "kernel", "representation.backend=torch",
                                    breaks=kernel),
            "export": job("export", self.folder / "torch", "--format", "splat"),
            "gsplat": {**self.generate("splats", "gsplat", "representation.backend=gsplat"),
                       "gsplat": True},
        }  # fmt: skip
        return on_a_card(self.folder, jobs)

    @cache  # noqa: B019
    def steps(self) -> dict[str, dict[str, Any]]:
        """What crosses to the card in one step."""
        jobs = {f"{kind} sdi": job(self.settings[kind], "sdi", program="steps") for kind in WAYS}
        for method in METHODS:
            words = [*method.split(), "representation.backend=torch"]
            splats = self.settings["splats"]
            jobs.setdefault(f"splats {method}", job(splats, *words, program="steps"))
        return on_a_card(self.folder, jobs)

    @cache  # noqa: B019
    def small(self) -> dict[str, dict[str, Any]]:
        """A card whose memory does not suffice, at each stage."""
        return on_a_card(self.folder, {
            f"{kind} {stage}": self.generate(
                kind, f"{kind}_{stage}", "representation.backend=torch", "--steps", 2,
                breaks=f"memory@{place.format(**ways)}",
            )
            for kind, ways in WAYS.items()
            for stage, (place, _) in PLACES.items()
            if kind == "splats" or stage in FIELD_STAGES
        })  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def on_the_cpu(place: Place) -> None:
    """The same settings without a card, by the same back-end."""
    for kind in WAYS:
        out = place.folder / f"cpu_{kind}"
        code = main(["generate", PROMPT, "--config", str(place.settings[kind]), "--out", str(out),
                     "representation.backend=torch", "device=cpu"])  # fmt: skip
        assert code == 0


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]


def test_runs_on_a_card(place: Place) -> None:
    """Each process has to import everything: what one does is looked at in one test."""
    on_the_cpu(place)
    our_triton_kernels_make_an_asset(place, "splats", "triton")
    our_triton_kernels_make_an_asset(place, "field", "triton_field")
    numbers_are_those_of_the_cpu(place)
    a_lost_card_leaves_the_last_checkpoint_and_one_message(place)
    a_kernel_that_fails_is_a_lost_card(place)
    a_run_of_a_card_is_exported(place)
    gsplat_makes_what_plain_torch_makes(place)
    two_processes_on_a_card_share_a_run(place)


def our_triton_kernels_make_an_asset(place: Place, kind: str, name: str) -> None:
    done = place.whole()[f"triton {kind}"]
    assert done["code"] == 0, done["err"]
    run = place.folder / name
    for file in ("turntable.gif", "preview.png", "report.html", "summary.json"):
        assert (run / file).stat().st_size > 0
    assert len(lines(run)) == 2
    if kind == "splats":
        assert 0 < len(read_ply(run / "final.ply")) <= SPLATS["max_count"]
        assert sum(line["added"] for line in lines(run)) > 0  # densification was due
        waits = {at.split()[0].split(":")[0] for what, at, _ in done["crossed"] if what == "read"}
        assert "representations/ops/splats/triton_splats.py" in waits  # it was Triton that drew


def numbers_are_those_of_the_cpu(place: Place) -> None:
    """The card computes with the CPU's kernels, so that whatever differs is our doing: other random
    numbers, another order, something that was left on the wrong device."""
    for kind, name in (("splats", "torch"), ("field", "torch_field")):
        done = place.whole()[f"torch {kind}"]
        assert done["code"] == 0, done["err"]
        here, there = lines(place.folder / f"cpu_{kind}"), lines(place.folder / name)
        for a, b in zip(here, there, strict=True):
            assert (a["loss"], a["size"], a["t"]) == (b["loss"], b["size"], b["t"])
    one, other = (place.folder / run / "final.ply" for run in ("torch", "cpu_splats"))
    assert one.read_bytes() == other.read_bytes()


def a_lost_card_leaves_the_last_checkpoint_and_one_message(place: Place) -> None:
    done = place.whole()["lost"]
    assert done["code"] == 1
    assert "Traceback" not in done["err"]
    assert done["err"].startswith("sdi-gs: the card failed, and what lay on it is lost: CUDA error")
    taught = done["err"].strip().splitlines()[-1]
    assert shlex.split(taught)[-2:] == ["resume", str(place.folder / "lost")]
    # resumed, it ends as if nothing had happened
    assert place.whole()["resume"]["code"] == 0, place.whole()["resume"]["err"]
    one, other = (place.folder / run / "final.ply" for run in ("lost", "torch"))
    assert one.read_bytes() == other.read_bytes()


def a_kernel_that_fails_is_a_lost_card(place: Place) -> None:
    done = place.whole()["kernel"]
    assert done["code"] == 1
    assert "Triton Error [CUDA]: an illegal memory access" in done["err"]
    assert "step_0000001.pt" in done["err"]


def a_run_of_a_card_is_exported(place: Place) -> None:
    assert place.whole()["export"]["code"] == 0, place.whole()["export"]["err"]
    assert (place.folder / "torch" / "final.splat").stat().st_size > 0


def gsplat_makes_what_plain_torch_makes(place: Place) -> None:
    """gsplat by its twin, and all of ours around it."""
    done = place.whole()["gsplat"]
    assert done["code"] == 0, done["err"]
    one, other = lines(place.folder / "gsplat"), lines(place.folder / "torch")
    for ours, true in zip(one, other, strict=True):
        assert ours["loss"] == pytest.approx(true["loss"], rel=1e-3)
        assert (ours["size"], ours["t"]) == (true["size"], true["t"])
    assert len(read_ply(place.folder / "gsplat" / "final.ply")) == one[-1]["size"]


def test_too_little_memory_is_said_with_settings_that_there_are(place: Place) -> None:
    for kind, stages in (("splats", PLACES), ("field", FIELD_STAGES)):
        for stage in stages:
            too_little_memory(place, kind, stage)


def too_little_memory(place: Place, kind: str, stage: str) -> None:
    done, state = place.small()[f"{kind} {stage}"], PLACES[stage][1]
    run = place.folder / f"{kind}_{stage}"
    assert done["code"] == 2, done["err"]
    assert "Traceback" not in done["err"]
    assert "out of memory on the device" in done["err"]
    if state == "trained":
        assert f"resume {run}" in done["err"]
        return
    settings = {"splats": "representation.max_count", "field": "representation.grid.log2_size"}
    own = settings.pop(kind)
    (others,) = settings.values()
    assert own in done["err"]
    assert others not in done["err"]
    assert "micro_batch=1 model.rows=1 model.vae_memory=bounded" in done["err"]
    if state == "nothing":
        assert "nothing was begun" in done["err"]
        assert not run.exists()
        return
    assert str(run / "checkpoints" / "step_0000001.pt") in done["err"]
    (taught,) = (x for x in done["err"].splitlines() if x.startswith("  "))
    verb = shlex.split(taught)
    again = place.folder / f"{kind}_{stage}_again"
    if stage == "render":  # what is taught works when it is typed
        words = verb[verb.index("generate") :]
        assert main([*words, "--out", str(again), "device=cpu", "steps=1"]) == 0


def test_a_step_waits_for_its_losses_and_for_the_length_of_a_list(place: Place) -> None:
    for kind in WAYS:
        waits_of_a_step(place, kind)
    for method in METHODS:
        no_method_waits_for_a_copy(place, method)


def waits_of_a_step(place: Place, kind: str) -> None:
    """Two copies go to the card, and nobody waits for them; a radiance field sends where its rays
    begin as well."""
    crossed = counted(place.steps()[f"{kind} sdi"])
    assert crossed.pop("sent") == ["guidance", *["renderer"] * (kind == "field"), "trainer"]
    lists = {"splats": "triton_splats", "field": "ray_triton"}
    assert crossed == {"read": sorted([lists[kind], "trainer"])}


def no_method_waits_for_a_copy(place: Place, method: str) -> None:
    crossed = counted(place.steps()[f"splats {method}"])
    if method != "sdi":  # drawn by plain torch, which is slow on a card in any case
        crossed = {
            what: [at for at in found if at != "reference"] for what, found in crossed.items()
        }
        assert crossed.pop("sent and waited") == []
    assert "sent and waited" not in crossed
    assert len(crossed["sent"]) == METHODS[method]
    assert crossed["read"].count("trainer") == 1


def counted(done: dict[str, Any]) -> dict[str, list[str]]:
    """Modules in which a step sent and read, those of guidance under its name."""
    assert done["code"] == 0, done["err"]
    found: dict[str, list[str]] = {}
    for what, at, number in json.loads(done["out"].splitlines()[-1]):
        path = Path(at.split(":")[0])
        name = "guidance" if "guidance" in path.parts else path.stem
        found.setdefault(what, []).extend([name] * number)
    return {what: sorted(names) for what, names in found.items()}


def two_processes_on_a_card_share_a_run(place: Place) -> None:
    """As torchrun starts them; gloo in the place of nccl."""
    out = place.folder / "two"
    verb = place.generate("splats", "two", "representation.backend=torch")["arguments"]
    pair(["-m", "tests.pretended_card", "sdi_gs", *verb], ROOT)
    assert (out / "final.ply").stat().st_size > 0
    assert place.whole()["torch splats"]["code"] == 0
    for one, two in zip(lines(place.folder / "torch"), lines(out), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)  # sums in another order
        assert two["size"] == one["size"]


def test_gpu_check_goes_on_after_what_fails(place: Place) -> None:
    program, out = str(ROOT / "benchmarks" / "gpu_check.py"), place.folder / "check"
    parts = ["--quick", "--parts", "kernels,precision,waits", "--out", out]
    broken = "memory@representations.ops.self_test:slopes@1"
    done = on_a_card(place.folder, {"check": job(*parts, program=program, breaks=broken)})["check"]
    assert done["code"] == 1, done["err"]
    report = json.loads((out / "gpu_check.json").read_text())
    facts, parts = report["facts"], report["parts"]
    assert facts["capability"] == "9.0"
    assert {"driver", "toolkit", "triton", "gsplat", "gsplat's kernels"} <= set(facts)
    assert not parts["kernels"]["passed"]
    assert parts["kernels"]["why"].count("out of memory") == 1
    figures = parts["kernels"]["figures"]
    assert {"triton 12", "hash encoding", "ray marching"} <= set(figures)
    assert figures["gsplat"].startswith("left out")
    assert parts["precision"]["passed"], parts["precision"]
    assert parts["waits"]["passed"], parts["waits"]
    for preset in ("mini", "mini_nerf"):  # its losses, and the length of a list
        assert parts["waits"]["figures"][preset]["waits of a step"] == 2
