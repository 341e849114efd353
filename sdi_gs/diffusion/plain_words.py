# SPDX-License-Identifier: Apache-2.0
"""CLIP's tokenizer from its own file, without transformers, whose import takes longer than to load
a small model. The file names every step from a sentence to its numbers, and the library of the
class that published it (tokenizers) takes them as they are written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .folder import read_json

FILES = {"tokenizer.json", "tokenizer_config.json"}
MARKS = ("bos_token", "eos_token", "pad_token", "unk_token")
SETTINGS = {"backend", "model_max_length", "tokenizer_class", *MARKS}
CLASSES = ("CLIPTokenizer", "CLIPTokenizerFast")

# The steps of transformers' CLIPTokenizer, which it takes whatever the file says.
_NORMALIZER = [
    {"type": "NFC"},
    {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
    {"type": "Lowercase"},
]
_WORD = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_MODEL = {
    "type": "BPE", "dropout": None, "continuing_subword_prefix": "", "end_of_word_suffix": "</w>",
    "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
}  # fmt: skip


class Numbers(NamedTuple):
    input_ids: list[list[int]]


class PlainTokenizer:
    """What is asked of a ``CLIPTokenizer`` here: numbers of words, marks, the vocabulary.

    Args:
        folder: of the two files; see :func:`why_not`.
    """

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        config = read_json(folder / "tokenizer_config.json")
        self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.model_max_length: int = config["model_max_length"]
        self.bos_token_id, self.eos_token_id, self.pad_token_id, _ = (
            self._tokenizer.token_to_id(config[mark]) for mark in MARKS
        )

    def __call__(self, texts: Sequence[str], add_special_tokens: bool = True) -> Numbers:
        """The numbers of the words of each of ``texts``; ``add_special_tokens``: between marks."""
        found = self._tokenizer.encode_batch(list(texts), add_special_tokens=add_special_tokens)
        return Numbers([one.ids for one in found])

    def get_vocab(self) -> dict[str, int]:
        """Number of each word."""
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        return vocabulary


def why_not(folder: Path) -> str | None:
    """What in the folder of a tokenizer makes it another one than :class:`PlainTokenizer`; None:
    nothing. ModelError where a file is damaged."""
    found = {path.name for path in folder.glob("*")}
    if found != FILES:
        return f"files {sorted(found ^ FILES)}"
    config = read_json(folder / "tokenizer_config.json")
    if config.keys() != SETTINGS and config.keys() != SETTINGS - {"backend"}:
        return f"settings {sorted(config.keys() ^ SETTINGS)}"
    if config["tokenizer_class"] not in CLASSES:
        return f"tokenizer_class={config['tokenizer_class']!r}"
    if not isinstance(config["model_max_length"], int):
        return f"model_max_length={config['model_max_length']!r}"
    if not all(isinstance(config[mark], str) for mark in MARKS):
        return "marks that are no words"
    return _other_steps(read_json(folder / "tokenizer.json"), config)


def _other_steps(file: dict[str, Any], config: dict[str, Any]) -> str | None:
    """The first step of a tokenizer.json that is not that of a ``CLIPTokenizer``."""
    numbers = {one.get("content"): one.get("id") for one in file.get("added_tokens") or []}
    begin, end = config["bos_token"], config["eos_token"]
    word = rf"{_literal(begin)}|{_literal(end)}|{_WORD}"
    split = {"type": "Split", "pattern": {"Regex": word}, "behavior": "Removed", "invert": True}
    model = file.get("model") or {}
    wanted: dict[str, tuple[Any, Any]] = {
        "normalizer": (file.get("normalizer"), {"type": "Sequence", "normalizers": _NORMALIZER}),
        "pre_tokenizer": (
            file.get("pre_tokenizer"), {"type": "Sequence", "pretokenizers": [split, _BYTES]}
        ),
        "post_processor": (
            file.get("post_processor"),
            {
                "type": "RobertaProcessing", "sep": [end, numbers.get(end)],
                "cls": [begin, numbers.get(begin)], "trim_offsets": False,
                "add_prefix_space": False,
            },
        ),
        "model": ({key: model.get(key) for key in _MODEL}, _MODEL),
        "unk_token": (model.get("unk_token"), config["unk_token"]),
        "marks": (numbers.keys() >= {config[mark] for mark in MARKS}, True),
    }  # fmt: skip
    return next((name for name, (found, known) in wanted.items() if found != known), None)


def _literal(text: str) -> str:
    return text.replace("|", r"\|")
