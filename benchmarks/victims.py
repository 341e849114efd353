# SPDX-License-Identifier: Apache-2.0
"""What :mod:`damage` damages, who reads it, and how one sees that what was read makes sense."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import math
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import splat_victims
import torch
import wounds
from wounds import BYTES, TEXT, Wound

from sdi_gs import build, look
from sdi_gs.artefacts import checkpoint
from sdi_gs.artefacts.run_folder import RunFolder
from sdi_gs.config import dump, from_plain, load, to_plain
from sdi_gs.errors import UserError

CPU = torch.device("cpu")
SIZES = ["device=cpu", "steps=6", "resolution=16", "representation.count=40",
         "representation.max_count=40"]  # fmt: skip


class Nonsense(Exception):
    """What was accepted cannot be."""


@dataclass(frozen=True)
class Victim:
    """A reader, the whole files that it reads, and the kinds of damage to each."""

    name: str
    whole: Path  # a folder; only links to it are handed out
    wounds: dict[str, tuple[Wound, ...]]  # by file
    read: Callable[[Path], Any]  # Nonsense where what is accepted cannot be
    share: int  # of the mutations


def numbers(tree: Any) -> Iterator[float]:
    """Every number of plain data and tensors."""
    if isinstance(tree, torch.Tensor):
        yield float(tree.double().sum()) if tree.numel() else 0.0
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from numbers(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from numbers(value)
    elif isinstance(tree, int | float) and not isinstance(tree, bool):
        yield float(tree)


def sane(tree: Any, least: float = -math.inf) -> Any:
    for number in numbers(tree):
        if not math.isfinite(number) or number < least:
            raise Nonsense(f"it holds {number}")
    return tree


def digest(tree: Any) -> str:
    """The same for equal results."""
    if isinstance(tree, torch.Tensor):
        return hashlib.sha1(tree.contiguous().numpy().tobytes()).hexdigest()
    if isinstance(tree, dict):
        return str({key: digest(value) for key, value in tree.items()})
    if isinstance(tree, list | tuple):
        return str([digest(value) for value in tree])
    return repr(tree)


# --- a run ------------------------------------------------------------------------------------


def run_folder(folder: Path, steps: int = 6) -> None:
    """What a run leaves, without the minutes that it takes."""
    from PIL import Image

    (folder / "checkpoints").mkdir(parents=True)
    (folder / "previews").mkdir()
    config = load("mini", SIZES)
    run = RunFolder(folder)
    run.config_file.write_text(dump(config))
    shape = build.renderer(config, CPU)
    saved = checkpoint.Checkpoint(
        steps, to_plain(config), shape.state_dict(), {}, torch.Generator().get_state(), 1.5
    )
    checkpoint.save(run.checkpoints, saved)
    line = {
        "t": 500.0, "loss": 0.5, "losses": {"guidance": 0.5}, "size": 40, "unit": "splats",
        "added": 0, "removed": 0, "events": [], "evaluations": 8,
        "seconds": {"render": 0.01, "guidance": 0.02}, "peak_memory_mb": 500,
        "peak_cuda_memory_mb": None,
    }  # fmt: skip
    rows = [json.dumps({"step": step, **line}) for step in range(steps)]
    run.stats_file.write_text("\n".join(rows) + "\n")
    run.write_summary(
        prompt=config.prompt, asset={"final.ply": "40 splats"}, steps=steps, seconds=1.5,
        seconds_per_stage={"render": 0.06}, size=40,
    )  # fmt: skip
    Image.new("RGB", (64, 16), "white").save(run.preview(3))
    Image.new("RGB", (32, 16), "white").save(run.preview_png)


def read_stats(folder: Path) -> Any:
    found = RunFolder(folder).read_stats()
    steps = [line.step for line in found.lines]
    if steps != sorted(set(steps)):
        raise Nonsense(f"steps {steps}")
    plain = [line.model_dump() for line in found.lines]
    for line in plain:
        sane({key: line[key] for key in line if key not in ("loss", "losses", "t")}, 0)
    kept = sane(plain)
    if found.damage:
        raise UserError(found.damage[0])  # named: for a reader of lines that is a refusal
    return kept


def read_summary(folder: Path) -> Any:
    return sane(RunFolder(folder).summary().model_dump(), 0)


def read_config(folder: Path) -> Any:
    tree = to_plain(RunFolder(folder).config())
    sane(tree)
    if to_plain(from_plain(tree)) != tree:
        raise Nonsense("it does not survive its own writing")
    return tree


def read_page(folder: Path) -> Any:
    from sdi_gs.pages import run as pages

    facts = pages.read(folder)
    text = pages.one(facts, folder)
    # As Python writes it: the report may well name a NaN that it left out.
    if re.search(r"\b(nan|inf)\b", text.partition("<body")[2]):
        raise Nonsense("the page says nan")
    return facts.lines, facts.summary


def read_measure(folder: Path) -> Any:
    from dataclasses import asdict

    from sdi_gs.experiments.compare import Cell, measure

    row = asdict(measure(RunFolder(folder), Cell("gaussians", "sdi", 0), folder.parent, None))
    sane({key: row[key] for key in row if key != "curve"}, 0)
    sane(row)
    if row["steps"] != look.reopen(folder).config.steps:
        raise Nonsense(f"{row['steps']} steps")
    return row


def read_checkpoint(folder: Path) -> Any:
    """Reopened, and a step of its optimiser done with it."""
    opened = look.reopen(folder)
    saved, shape = opened.saved, opened.renderer
    if not 0 <= saved.step <= opened.config.steps:
        raise Nonsense(f"step {saved.step}")
    cloud = shape.cloud()  # type: ignore[attr-defined]
    before = [tensor.clone() for _, tensor in cloud.items()]
    for optimizer in shape.optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    torch.Generator().set_state(saved.rng)
    sane(before)
    sane([tensor.detach() for _, tensor in shape.cloud().items()])  # type: ignore[attr-defined]
    return before, saved.step, saved.seconds, saved.config


def resaved(data: bytes, rng: random.Random) -> bytes:
    """A checkpoint with a right sum around a wrong state."""
    body = data.partition(b"\n")[2]
    payload = wounds.in_state(torch.load(io.BytesIO(body), weights_only=True), rng)
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    raw = buffer.getvalue()
    head = f"{checkpoint.FORMAT} {checkpoint.VERSION} {len(raw)} {hashlib.sha256(raw).hexdigest()}"
    return f"{head}\n".encode() + raw


def bare(data: bytes, rng: random.Random) -> bytes:
    """A file of the first version, which has no sum of the whole, with a flipped bit."""
    payload = torch.load(io.BytesIO(data.partition(b"\n")[2]), weights_only=True)
    buffer = io.BytesIO()
    torch.save({**payload, "version": 1}, buffer)
    return rng.choice(BYTES)(buffer.getvalue(), rng)


# --- models -----------------------------------------------------------------------------------


def read_model(folder: Path) -> Any:
    from sdi_gs.config import ModelConfig

    model = build.denoiser(ModelConfig(source=str(folder), dtype="float32"), CPU)
    words = model.embed(["a red mug"])
    noise = torch.zeros(1, 4, 16, 16)
    told = model.predict_noise(noise, torch.tensor([300]), words)
    return sane([words["hidden"], told, model.encode(torch.full((1, 3, 64, 64), 0.4))])


def read_clip(folder: Path) -> Any:
    from sdi_gs.evaluation.clip import Clip

    clip = Clip.load(str(folder))
    seen = clip.pictures(torch.full((1, 3, 64, 64), 0.4))
    read = clip.captions(["a red mug", "a blue ball"])
    for row in (*seen, *read):
        if abs(float(row.norm()) - 1) > 1e-3:
            raise Nonsense(f"a vector of length {float(row.norm())}")
    return sane([seen, read, clip.scale])


# --- --init -----------------------------------------------------------------------------------


def init_files(folder: Path) -> None:
    import trimesh

    from representations.export import write_ply, write_splat

    folder.mkdir(parents=True)
    shape = build.renderer(load("mini", SIZES), CPU)
    write_ply(folder / "a.ply", shape.cloud())  # type: ignore[attr-defined]
    write_splat(folder / "a.splat", shape.cloud())  # type: ignore[attr-defined]
    box = trimesh.creation.box()
    box.visual.vertex_colors = [200, 30, 30, 255]
    for ending in ("glb", "obj", "stl"):
        box.export(folder / f"b.{ending}")
    trimesh.PointCloud(box.vertices).export(folder / "p.ply")


def read_init(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        from sdi_gs.cli.files import Asked

        path = folder / name
        if name.endswith(".splat"):
            from sdi_gs.splat_files import open_splats

            cloud = open_splats(path).renderer.cloud()  # type: ignore[attr-defined]
        else:
            words = Asked().init_settings(path)
            if name == "p.ply":  # splats by its ending; these are points
                words[0] = "representation.init.kind=points"
            config = load("mini", [*SIZES, *words])
            cloud = build.renderer(config, CPU).cloud()  # type: ignore[attr-defined]
        return sane([tensor.detach() for _, tensor in cloud.items()])

    return read


def zip_instead(data: bytes, rng: random.Random) -> bytes:
    """An archive that unpacks into a thousand times its size."""
    return _packed()


@functools.cache
def _packed() -> bytes:
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for k in range(3):
            with archive.open(f"x{k}.obj", "w", force_zip64=True) as member:
                for _ in range(100):
                    member.write(bytes(2**20))
    return buffer.getvalue()


def victims(folder: Path) -> list[Victim]:
    """All of them, with their whole files below ``folder``."""
    from sdi_gs.evaluation.judge import JUDGE_DIR
    from sdi_gs.mini import MINI_DIR

    run, init, splats = folder / "run", folder / "init", folder / "splats"
    run_folder(run)
    init_files(init)
    splat_victims.splat_files_apart(splats)
    splat_victims.prepare()
    saved = "checkpoints/step_0000006.pt"
    plain = (*BYTES, *TEXT, wounds.in_json, wounds.in_json, wounds.in_json)
    line = (*BYTES, *TEXT, *[wounds.in_line] * 8)
    yaml = (*BYTES, *TEXT, *[wounds.in_yaml] * 10, wounds.alias_bomb)
    state = (*BYTES, *[resaved] * 8, *[bare] * 6)
    everything = {
        "stats.jsonl": line, "summary.json": plain, "config.yaml": yaml,
        "previews/step_0000003.png": BYTES,
    }  # fmt: skip
    tensors = (*BYTES, *[wounds.in_safetensors] * 6)
    model = {
        str(path.relative_to(MINI_DIR)): tensors if path.suffix == ".safetensors" else plain
        for path in MINI_DIR.rglob("*") if path.is_file()
    }  # fmt: skip
    judge = {path.name: tensors if path.suffix == ".safetensors" else plain
             for path in JUDGE_DIR.iterdir()}  # fmt: skip
    text = (*BYTES, wounds.lines, wounds.word)
    found = [
        Victim("stats", run, {"stats.jsonl": line}, read_stats, 5000),
        Victim("summary", run, {"summary.json": plain}, read_summary, 4000),
        Victim("config", run, {"config.yaml": yaml}, read_config, 3600),
        Victim("checkpoint", run, {saved: state}, read_checkpoint, 2400),
        Victim("page", run, everything, read_page, 900),
        Victim("measure", run, {**everything, saved: state}, read_measure, 300),
        Victim("model", MINI_DIR, model, read_model, 500),
        Victim("clip", JUDGE_DIR, judge, read_clip, 500),
    ]
    for name, share in (("a.ply", 800), ("a.splat", 500), ("b.glb", 500), ("b.obj", 400),
                        ("b.stl", 300), ("p.ply", 300)):  # fmt: skip
        found.append(
            Victim(f"init {name}", init, {name: (*text, zip_instead)}, read_init(name), share)
        )
    for name, share in splat_victims.SHARES.items():
        hurt = {name: splat_victims.wounds_of(name)}
        found.append(Victim(f"splats {name}", splats, hurt, splat_victims.read(name), share))
    return found
