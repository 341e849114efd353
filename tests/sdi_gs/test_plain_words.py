# SPDX-License-Identifier: Apache-2.0
"""CLIP's tokenizer without transformers: the same numbers, and only where the file is CLIP's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdi_gs.diffusion import parts, plain_words
from sdi_gs.diffusion.source import How, opened
from sdi_gs.diffusion.words import clip_pieces
from sdi_gs.mini.train import WEIGHTS

ROOT = Path(__file__).parents[2]
TOKENIZER = WEIGHTS / "tokenizer"
SENTENCES = (
    "", " ", "a red mug", "A  Photo of a RED mug,front view", "it's 27 ducks' don't we'll",
    "caf\u00e9 cafe\u0301 \u00c5ngstr\u00f6m \u6771\u4eac \U0001f986", "a\tred\nmug\u00a0",
    "<|startoftext|>a mug<|endoftext|>", "\u2028x" * 30, "zebra " * 40, "x\u0000y", "'s'S",
)  # fmt: skip


def published(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder)


def test_the_same_numbers_as_transformers() -> None:
    assert plain_words.why_not(TOKENIZER) is None
    mine, theirs = plain_words.PlainTokenizer(TOKENIZER), published(TOKENIZER)
    for marks in (True, False):
        found = mine(SENTENCES, add_special_tokens=marks).input_ids
        assert found == theirs(list(SENTENCES), add_special_tokens=marks).input_ids
    assert clip_pieces(mine, SENTENCES).tolist() == clip_pieces(theirs, SENTENCES).tolist()
    assert mine.get_vocab() == theirs.get_vocab()
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "model_max_length"):
        assert getattr(mine, name) == getattr(theirs, name), name


def edit(file: str, *path: str, to: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tree = at = json.loads((folder / file).read_text())
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = to
        (folder / file).write_text(json.dumps(tree))

    return change


WORDS, CONFIG = "tokenizer.json", "tokenizer_config.json"
OTHERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "its case counts": (edit(WORDS, "normalizer", "normalizers", to=[{"type": "NFC"}]),
                        "normalizer"),
    "other words": (edit(WORDS, "pre_tokenizer", to={"type": "Whitespace"}), "pre_tokenizer"),
    "no marks": (edit(WORDS, "post_processor", to=None), "post_processor"),
    "another model": (edit(WORDS, "model", "end_of_word_suffix", to=""), "model"),
    "chance": (edit(WORDS, "model", "dropout", to=0.1), "model"),
    "an unknown mark": (edit(CONFIG, "pad_token", to="!"), "marks"),
    "a mark with settings": (edit(CONFIG, "bos_token", to={"content": "<|startoftext|>"}), "marks"),
    "another class": (edit(CONFIG, "tokenizer_class", to="BertTokenizer"), "tokenizer_class"),
    "a setting more": (edit(CONFIG, "add_prefix_space", to=True), "add_prefix_space"),
    "no length": (edit(CONFIG, "model_max_length", to=None), "model_max_length"),
    "a file more": (lambda folder: (folder / "added_tokens.json").write_text("{}"), "added_tokens"),
    "the old files": (lambda folder: (folder / WORDS).rename(folder / "vocab.json"), "vocab"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_another_tokenizer_is_left_to_transformers(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(TOKENIZER, folder)
    assert plain_words.why_not(folder) is None
    change, told = OTHERS[name]
    change(folder)
    assert told in str(plain_words.why_not(folder))


@pytest.mark.parametrize(("engine", "plain"), [("auto", True), ("plain", True),
                                               ("diffusers", False)])  # fmt: skip
def test_which_one_reads_a_folder(engine: Any, plain: bool) -> None:
    model = opened(WEIGHTS, How(engine=engine))
    encoder = parts.network(parts.TEXT, model)
    found = parts.clip_tokenizer("tokenizer", model, encoder)
    assert isinstance(found, plain_words.PlainTokenizer) is plain
    assert clip_pieces(found, ["a red mug"]).shape == (1, 1, 16)


def test_a_run_of_mini_loads_none_of_the_large_libraries() -> None:
    """Nor torch's compiler: together they take longer than to load the model."""
    code = """
import sys
import sdi_gs.run
from sdi_gs import build
from sdi_gs.config import load
from sdi_gs.trainer import train_step
train_step(build.training(load("mini", ["prompt=a red mug", "batch=1", "device=cpu"])), 0)
large = ("diffusers", "transformers", "torch._dynamo", "torch._inductor", "triton")
print([name for name in large if name in sys.modules])
"""
    clean = {**os.environ, "PYTHONPATH": str(ROOT)}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean,
                         check=False, timeout=300)  # fmt: skip
    assert out.returncode == 0, out.stderr
    assert out.stdout.splitlines()[-1] == "[]"
