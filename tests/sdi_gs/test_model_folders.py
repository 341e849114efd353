# SPDX-License-Identifier: Apache-2.0
"""Folders of models and of CLIPs: damage is named, and no weight is made up."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdi_gs.diffusion.folder import ModelError, read_header
from sdi_gs.diffusion.stable import StableDiffusion
from sdi_gs.errors import UserError
from sdi_gs.evaluation.clip import Clip
from sdi_gs.evaluation.judge import JUDGE_DIR
from sdi_gs.mini import MINI_DIR

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MINI_DIR, tmp_path / "model"))


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return Path(shutil.copytree(JUDGE_DIR, tmp_path / "clip"))


def split(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(path: Path, header: dict[str, Any], body: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def rename(path: Path, name: str) -> None:
    header, body = split(path)
    header["other"] = header.pop(name)
    join(path, header, body)


def spoil(path: Path, name: str) -> None:
    """Not a number, in the middle."""
    header, body = split(path)
    at = header[name]["data_offsets"][0]
    assert header[name]["dtype"] == "F16"
    join(path, header, body[:at] + np.float16(np.nan).tobytes() + body[at + 2 :])


def setting(name: str, **changed: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))

    return edit


def claim(name: str, length: int) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / name
        path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])

    return edit


MODEL: dict[str, tuple[Callable[[Path], None], str]] = {
    "a weight is missing": (
        lambda folder: rename(folder / UNET, "conv_in.weight"), r"lacks 1 weights .*conv_in\.weight"
    ),
    "a weight is NaN": (
        lambda folder: spoil(folder / UNET, "conv_in.weight"), r"no numbers, in conv_in\.weight"
    ),
    "a header of 2 GB": (claim(UNET, 2**31), r"claims a header of 2,147,483,648"),
    "a cut file": (
        lambda folder: (folder / UNET).write_bytes((folder / UNET).read_bytes()[:-100]) and None,
        "diffusion_pytorch_model.safetensors has a damaged header",
    ),
    "too wide": (
        setting("unet/config.json", block_out_channels=[8192, 8192, 8192]),
        r"asks for [\d,]+ numbers, and the weights beside it have",
    ),
    "too deep": (setting("unet/config.json", layers_per_block=10**6), "layers_per_block=1e"),
    "other words": (setting("text_encoder/config.json", vocab_size=300), "vocab|shape|damaged"),
    "heads": (setting("unet/config.json", attention_head_dim=7), "unet|mini|model"),
    "no scale": (setting("vae/config.json", scaling_factor=0.0), r"scaling_factor=0\.0"),
    "a word for a scale": (setting("vae/config.json", scaling_factor="x"), "scaling_factor='x'"),
    "times": (
        setting("scheduler/scheduler_config.json", num_train_timesteps=10**6),
        "num_train_timesteps=1000000",
    ),
    "no JSON": (
        lambda folder: (folder / "tokenizer/tokenizer.json").write_text("{") and None,
        r"tokenizer\.json is damaged",
    ),
    "another tokenizer": (
        lambda folder: shutil.copy(JUDGE_DIR / "tokenizer.json", folder / "tokenizer") and None,
        "counts words up to 416, and the text encoder knows 398",
    ),
    "a part is gone": (lambda folder: shutil.rmtree(folder / "vae"), "does not load: .* vae"),
}  # fmt: skip


@pytest.mark.parametrize("name", MODEL)
def test_a_damaged_model_folder(model: Path, name: str) -> None:
    edit, told = MODEL[name]
    edit(model)
    with pytest.raises(ModelError, match=told) as refused:
        StableDiffusion.load(model)
    assert str(model) in str(refused.value)


def blank(path: Path, name: str) -> None:
    header, body = split(path)
    begin, end = header[name]["data_offsets"]
    join(path, header, body[:begin] + bytes(end - begin) + body[end:])


CLIP: dict[str, tuple[Callable[[Path], None], str]] = {
    "a weight is missing": (
        lambda folder: rename(folder / "model.safetensors", "logit_scale"), "lacks 1 weights"
    ),
    "a weight is NaN": (
        lambda folder: spoil(folder / "model.safetensors", "visual_projection.weight"),
        r"no numbers, in visual_projection\.weight",
    ),
    "weights of zeros": (
        lambda folder: blank(folder / "model.safetensors", "visual_projection.weight"),
        "or no unit vectors",
    ),
    "a header of 2 GB": (claim("model.safetensors", 2**31), r"claims a header of 2,147,483,648"),
    "pictures": (
        setting("processor_config.json", image_processor={"size": {"shortest_edge": 10**6}}),
        r"size=1000000",
    ),
    "no JSON": (
        lambda folder: (folder / "tokenizer.json").write_text("{") and None,
        r"tokenizer\.json is damaged",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CLIP)
def test_a_damaged_clip_folder(clip: Path, name: str) -> None:
    edit, told = CLIP[name]
    edit(clip)
    with pytest.raises(UserError, match=told) as refused:
        Clip.load(str(clip))
    assert str(clip) in str(refused.value)


def test_a_header_is_read_as_its_library_reads_it() -> None:
    from safetensors import safe_open

    path = MINI_DIR / UNET
    with safe_open(path, "pt") as file:
        theirs = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert read_header(path) == theirs


def test_whole_folders_are_read(model: Path, clip: Path) -> None:
    StableDiffusion.load(model)
    Clip.load(str(clip))
