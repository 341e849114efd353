# SPDX-License-Identifier: Apache-2.0
"""What was typed after 'sweep plan', or stands in a YAML file, as a plan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..config import read_tree
from ..errors import UserError, command, nearest
from .manifest import TRIES
from .plan import Plan

PAPER = "paper"  # the word for the paper's sentences
KEYS = ("prompts", "methods", "representations", "seeds", "family", "settings", "tries")
"""Of a YAML file."""

_GIB = 2**30
_PAIRS = {"(": ")", "[": "]", "{": "}"}


class Given(NamedTuple):
    """Options as they were typed; None where nothing was."""

    methods: str | None = None
    representations: str | None = None
    seeds: str | None = None
    family: str | None = None
    tries: int | None = None
    card_gib: float | None = None


def read(words: Sequence[str], given: Given) -> Plan:
    """The plan that ``words``, the prompts and then settings, and the options mean; options and
    settings come after those of a file. UserError for what means nothing."""
    if not words or "=" in words[0].split(" ", 1)[0]:
        raise UserError(
            "no prompts: name a file with a sentence a line first, 'paper' for the paper's 43, or "
            "one sentence in quotes"
        )
    tree = _file(Path(words[0])) if words[0].endswith((".yaml", ".yml")) else {"prompts": words[0]}
    unknown = [key for key in tree if key not in KEYS]
    if unknown:
        raise UserError(f"{words[0]}: unknown key {unknown[0]!r}; {nearest(str(unknown[0]), KEYS)}")
    assignments = [*_assignments(tree.get("settings") or {}), *map(_typed, words[1:])]
    chosen = {key: value for key, value in given._asdict().items() if value is not None}
    tree = {**tree, **chosen}
    single = tuple(f"{key}={values[0]}" for key, values in assignments if len(values) == 1)
    grid = tuple((key, values) for key, values in assignments if len(values) > 1)
    if given.card_gib is not None and not given.card_gib > 0:
        raise UserError(f"card_gib={given.card_gib:g}: allowed is more than 0")
    return Plan(
        prompts=_prompts(tree.get("prompts")),
        methods=_names(tree.get("methods", "sdi"), "methods"),
        representations=_names(tree.get("representations", "gaussians"), "representations"),
        seeds=_seeds(tree.get("seeds", 1)),
        family=_word(tree.get("family", "mini"), "family"),
        settings=single,
        grid=grid,
        tries=_number(tree.get("tries", TRIES), "tries"),
        card_bytes=None if given.card_gib is None else int(given.card_gib * _GIB),
    )


def _file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path} is not a file: a plan in YAML is needed")
    return read_tree(path)


def _prompts(given: Any) -> tuple[str, ...]:
    """A list, the word 'paper', a file with a sentence a line, or one sentence."""
    if isinstance(given, list):
        found = [str(one).strip() for one in given]
    elif given == PAPER:
        from ..evaluation.protocol import published_prompts

        return published_prompts()
    elif isinstance(given, str) and _is_name(given):
        try:
            text = Path(given).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"the prompts {given} cannot be read as text ({error}): a file with a sentence a "
                f"line is needed, such as one with the line 'a red mug'"
            ) from None
        found = [line.strip() for line in text.splitlines()]
        found = [line for line in found if line and not line.startswith("#")]
    elif isinstance(given, str):
        found = [given.strip()]
    else:
        raise UserError(f"prompts={given!r}: a list, a file or 'paper' is needed")
    return tuple(dict.fromkeys(found))


def _is_name(given: str) -> bool:
    """Whether it is a file's name rather than a sentence."""
    return given.endswith(".txt") or Path(given).is_file() or (" " not in given and "/" in given)


def _names(given: Any, what: str) -> tuple[str, ...]:
    if isinstance(given, str):
        given = given.split(",")
    if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
        raise UserError(f"{what}={given!r}: a list of words is needed, as in {what}=sdi,sds")
    return tuple(dict.fromkeys(one.strip() for one in given if one.strip()))


def _word(given: Any, what: str) -> str:
    if not isinstance(given, str):
        raise UserError(f"{what}={given!r}: one word is needed")
    return given


def _number(given: Any, what: str) -> int:
    if not isinstance(given, int) or isinstance(given, bool):
        raise UserError(f"{what}={given!r}: a whole number is needed")
    return given


def _seeds(given: Any) -> tuple[int, ...]:
    """How many, from 0; a list; or, as text, either of them or a range."""
    if isinstance(given, list):
        return tuple(dict.fromkeys(_number(one, "seeds") for one in given))
    text = str(given)
    first, dash, last = text.partition("-")
    try:
        if dash:
            found = tuple(range(int(first), int(last) + 1))
        elif "," in text:
            found = tuple(dict.fromkeys(int(one) for one in text.split(",") if one.strip()))
        else:
            found = tuple(range(int(text)))
    except ValueError:
        found = ()
    if not found or len(found) > 10**6:
        raise UserError(
            f"seeds={text}: allowed are how many (3: 0, 1 and 2), a list (4,8) and a range (10-19)"
        )
    return found


Assignment = tuple[str, tuple[str, ...]]
"""A setting and its values as they are typed; several are all tried."""


def _typed(word: str) -> Assignment:
    key, equals, value = word.partition("=")
    if not equals or not key:
        raise UserError(
            f"{word!r} is no setting: write key=value, or key=a,b to try both; several sentences "
            "go into a file, one a line, as in "
            + command("sweep", "plan", "prompts.txt", "--out", "DIR")
        )
    return key, tuple(split(value))


def split(value: str) -> list[str]:
    """The values between commas; one inside brackets or quotes separates nothing."""
    parts, closing, quote = [""], [], ""
    for letter in value:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in _PAIRS:
            closing.append(_PAIRS[letter])
        elif closing and letter == closing[-1]:
            closing.pop()
        elif letter == "," and not closing:
            parts.append("")
            continue
        parts[-1] += letter
    return [part.strip() for part in parts] if len(parts) > 1 else parts


def _assignments(given: Any) -> list[Assignment]:
    """Of the mapping ``settings`` in a file: a list means all its values."""
    import json

    if not isinstance(given, dict):
        raise UserError("settings: 'key: value' lines are needed, such as noise.steps: [5, 10]")

    def text(value: Any) -> str:
        return value if isinstance(value, str) else json.dumps(value)

    return [
        (str(key), tuple(map(text, value)) if isinstance(value, list) and value else (text(value),))
        for key, value in given.items()
    ]
