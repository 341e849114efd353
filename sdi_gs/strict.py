# SPDX-License-Identifier: Apache-2.0
"""Typed settings from plain data: unknown keys, kinds and wrong types, each with its own message.

A *section* is a pydantic model or a frozen dataclass. A field marked with :class:`Kinds` is one of
several sections, and the key ``kind`` says which. Pydantic checks the leaves; the walk over the
types is ours, because pydantic neither guesses the key that was meant nor forbids extra keys in
every plain dataclass.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from .errors import UserError, nearest

M = typing.TypeVar("M")


class ConfigError(UserError):
    """A setting that does not exist or does not fit."""


@dataclass(frozen=True)
class Kinds:
    """Marks a field whose key ``kind`` chooses its class; the first entry is the default."""

    table: Mapping[str, type]

    @property
    def default(self) -> str:
        return next(iter(self.table))

    def name_of(self, value: object) -> str:
        return next(name for name, cls in self.table.items() if type(value) is cls)


@dataclass(frozen=True)
class FromNumber:
    """Marks a section that a bare number may stand for: ``opaque: 0.1`` for a constant ramp."""

    fields: tuple[str, ...]

    def constant(self, value: Any) -> float | None:
        """The number that stands for this section; None if none does."""
        first = getattr(value, self.fields[0])
        plain_section = type(value)(**dict.fromkeys(self.fields, first))
        return first if value == plain_section else None


def build(cls: type, data: Any, path: str = "") -> Any:
    """An instance of the section ``cls`` from plain data."""
    checked = _check(cls, data, path)
    if checked is None:
        checked = {}
    try:
        return _adapter(cls).validate_python(checked)
    except ValidationError as error:
        raise ConfigError(_describe(error, path)) from None


@functools.cache
def _adapter(cls: type) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def plain(value: Any, annotation: Any = None) -> Any:
    """The inverse of :func:`build`: dicts, lists and scalars, every field written out."""
    number = _mark(annotation, FromNumber)
    if number is not None and (constant := number.constant(value)) is not None:
        return constant
    if _is_section(type(value)):
        types_of = fields_of(type(value))
        body = {name: plain(getattr(value, name), types_of[name]) for name in types_of}
        kinds = _mark(annotation, Kinds)
        return body if kinds is None else {"kind": kinds.name_of(value), **body}
    if isinstance(value, Mapping):
        arguments = typing.get_args(_bare(annotation))
        inner = arguments[1] if len(arguments) == 2 else None
        return {str(key): plain(item, inner) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, pathlib.Path):
        return str(value)
    return value


def set_by_path(cls: type, tree: dict[str, Any], assignment: str) -> None:
    """Apply one ``a.b.c=value`` to plain data that :func:`build` will read."""
    path, equals, raw = assignment.partition("=")
    path = path.strip()
    if not equals or not path:
        raise ConfigError(
            f"'{assignment}' is not a setting: write key=value, for example seed=3 "
            "or guidance.cfg_scale=5"
        )
    annotation: Any = cls
    node = tree
    keys = path.split(".")
    for depth, key in enumerate(keys):
        here, last = ".".join(keys[: depth + 1]), depth == len(keys) - 1
        kinds = _mark(annotation, Kinds)
        if kinds is not None and key == "kind" and last:
            # A new kind has other fields: those of the old one must not survive.
            node.clear()
            node["kind"] = raw
            return
        annotation = _field_type(annotation, node, key, here)
        if last:
            # noise=random is short for noise={kind: random}.
            short = _mark(annotation, Kinds) is not None and not raw.lstrip().startswith("{")
            node[key] = {"kind": raw} if short else _parse(annotation, raw, here)
            return
        below = node.get(key)
        if not isinstance(below, dict):
            number = _mark(annotation, FromNumber)
            if number is not None and isinstance(below, int | float):
                below = dict.fromkeys(number.fields, below)
            else:
                below = {"kind": below} if _mark(annotation, Kinds) and below is not None else {}
        node[key] = below
        node = below


def fields_of(cls: type) -> dict[str, Any]:
    """Field names of a section with their annotations, marks included."""
    hints = typing.get_type_hints(cls, include_extras=True)
    if issubclass(cls, BaseModel):
        return {name: hints[name] for name in cls.model_fields}
    assert dataclasses.is_dataclass(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def _check(annotation: Any, data: Any, path: str) -> Any:
    """Plain data with its keys checked and its kinds built, ready for pydantic."""
    kinds = _mark(annotation, Kinds)
    if kinds is not None:
        return _build_kind(kinds, data, path)
    number = _mark(annotation, FromNumber)
    if number is not None and (given := _as_number(data)) is not None:
        return dict.fromkeys(number.fields, given)
    base = _bare(annotation)
    if _is_section(base):
        if data is None:
            return {} if not path else None
        if not isinstance(data, Mapping):
            return data if isinstance(data, base) else _not_a_section(base, data, path)
        return {
            key: _check(_field_type(base, data, str(key), _join(path, key)), item, _join(path, key))
            for key, item in data.items()
        }
    if typing.get_origin(base) is dict and isinstance(data, Mapping):
        inner = typing.get_args(base)[1]
        return {str(key): _check(inner, item, _join(path, key)) for key, item in data.items()}
    if isinstance(data, bool) and base in (int, float):
        raise ConfigError(f"{path}: got {str(data).lower()}, but a number is needed")
    return data


def _as_number(data: Any) -> float | None:
    """A number, also one such as 1e-2, which YAML takes for a word."""
    if isinstance(data, bool) or not isinstance(data, int | float | str):
        return None
    try:
        return float(data)
    except ValueError:
        return None


def _build_kind(kinds: Kinds, data: Any, path: str) -> Any:
    if type(data) in kinds.table.values():
        return data
    if isinstance(data, str) or data is None:
        data = {"kind": data or kinds.default}
    if not isinstance(data, Mapping):
        raise ConfigError(
            f"{path}: got {data!r}, but a section with a key 'kind' is needed; "
            f"kinds: {', '.join(kinds.table)}"
        )
    body = dict(data)
    kind = body.pop("kind", kinds.default)
    if kind not in kinds.table:
        raise ConfigError(f"{path}.kind={kind!r} is not known; {nearest(str(kind), kinds.table)}")
    return build(kinds.table[kind], body, path)


def _field_type(annotation: Any, node: Any, key: str, path: str) -> Any:
    """The annotation of ``key`` below ``annotation``; a teaching error when there is none."""
    kinds = _mark(annotation, Kinds)
    if kinds is not None:
        kind = node.get("kind", kinds.default) if isinstance(node, Mapping) else kinds.default
        if kind not in kinds.table:
            above = path.rpartition(".")[0]
            raise ConfigError(
                f"{above}.kind={kind!r} is not known; {nearest(str(kind), kinds.table)}"
            )
        annotation = kinds.table[kind]
    base = _bare(annotation)
    if _is_section(base):
        known = fields_of(base)
        if key not in known:
            names = [*known, "kind"] if kinds is not None else list(known)
            raise ConfigError(f"unknown setting '{path}': {nearest(key, names)}")
        return known[key]
    if typing.get_origin(base) is dict:
        return typing.get_args(base)[1]
    above = path.rpartition(".")[0]
    raise ConfigError(f"unknown setting '{path}': '{above}' is a single value, not a section")


def _parse(annotation: Any, raw: str, path: str) -> Any:
    """A command-line word as the field's type wants it. Text is never read as YAML."""
    base = _bare(annotation)
    optional = type(None) in typing.get_args(_unmarked(annotation))
    if optional and raw in ("null", "none", "None"):
        return None
    if base is str or base is pathlib.Path or _is_text_literal(base):
        return raw
    try:
        return yaml.safe_load(raw)
    except yaml.YAMLError:
        raise ConfigError(f"{path}={raw}: '{raw}' is not a number, list or word") from None


def _describe(error: ValidationError, path: str) -> str:
    lines = []
    for item in error.errors()[:5]:
        where = ".".join([path] * bool(path) + [str(part) for part in item["loc"]])
        message = str(item["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
        given = item["input"]
        shown = f"got {given!r}: " if isinstance(given, str | int | float | list | tuple) else ""
        lines.append(f"{where}: {shown}{message[:1].lower() + message[1:]}")
    return "\n".join(lines)


def _not_a_section(base: type, data: Any, path: str) -> typing.NoReturn:
    keys = ", ".join(fields_of(base))
    where = path or "the configuration"
    raise ConfigError(f"{where}: got {data!r}, but a section is needed, with keys: {keys}")


def _unmarked(annotation: Any) -> Any:
    while typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    return annotation


def _bare(annotation: Any) -> Any:
    """Without marks and without ``| None``."""
    base = _unmarked(annotation)
    if typing.get_origin(base) in (typing.Union, types.UnionType):
        members = [item for item in typing.get_args(base) if item is not type(None)]
        if len(members) == 1:
            return _bare(members[0])
    return base


def _mark(annotation: Any, cls: type[M]) -> M | None:
    if typing.get_origin(annotation) is typing.Annotated:
        for mark in typing.get_args(annotation)[1:]:
            if isinstance(mark, cls):
                return mark
    return None


def _is_section(cls: Any) -> bool:
    return isinstance(cls, type) and (issubclass(cls, BaseModel) or dataclasses.is_dataclass(cls))


def _is_text_literal(base: Any) -> bool:
    return typing.get_origin(base) is typing.Literal and all(
        isinstance(choice, str) for choice in typing.get_args(base)
    )


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)
