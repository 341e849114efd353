# SPDX-License-Identifier: Apache-2.0
"""Which settings of a run are somebody's decision, and which differ between runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from .config import Config, from_plain, to_plain

KINDS = ("noise.kind", "update.kind", "background.kind", "representation.kind")
"""The settings that say which fields their section has."""

Setting = tuple[str, str, str]
"""Its dotted name, its value, its value in what it is compared with."""


def differing(config: Config, base: Config | None = None) -> list[Setting]:
    """The settings that are not as in ``base``, by default as they would be without a word; a
    section of another kind is compared with the defaults of that kind. The third of each setting is
    that of ``base``."""
    tree, below = to_plain(config), to_plain(base or Config())
    sections = {key: value for key, value in tree.items() if isinstance(value, dict)}
    kinds = {key: {"kind": value["kind"]} for key, value in sections.items() if "kind" in value}
    same = [key for key, kind in kinds.items() if kind["kind"] == below[key]["kind"]]
    plain = dict(_flat(below))
    of_kind = {**to_plain(from_plain(kinds)), **{key: below[key] for key in same}}
    same_kind = dict(_flat({**below, **{key: of_kind[key] for key in kinds}}))
    rows = []
    for name, value in _flat(tree):
        default = (plain if name in KINDS else same_kind).get(name, "-")
        if name == "threads" and default == "null":
            continue  # a run writes down how many the machine gave it
        if value != default:
            rows.append((name, value, default))
    return rows


def between(configs: Sequence[Config]) -> list[tuple[str, ...]]:
    """(setting, its value in each) of what is not the same in all; "-" where it does not exist. Of
    sections of different kinds only the kinds are named: their other fields mean other things."""
    settings = [dict(_flat(to_plain(config))) for config in configs]
    names = dict.fromkeys(name for one in settings for name in one)
    rows = [(name, *(one.get(name, "-") for one in settings)) for name in names]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    sections = [row[0].removesuffix("kind") for row in rows if row[0] in KINDS]
    return [
        row for row in rows if row[0] in KINDS or not any(row[0].startswith(s) for s in sections)
    ]


def _flat(tree: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every setting by its dotted name, as text."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _flat(value, f"{path}.{key}" if path else str(key))
    elif path not in ("schema_version", "prompt"):  # the prompt is the headline
        yield path, json.dumps(tree, ensure_ascii=False)
