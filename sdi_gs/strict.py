# SPDX-License-Identifier: Apache-2.0
"""Typed settings from plain data: pydantic checks, and every refusal teaches what to write.

A *section* is a pydantic model or a frozen dataclass. A field marked with :class:`Kinds` is one of
several sections, and its key ``kind`` says which.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import yaml
from pydantic import BaseModel, GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from .errors import UserError, nearest
from .ramp import Ramp


class ConfigError(UserError):
    """A setting that does not exist or does not fit."""


class Kinds:
    """The classes that a section may be of, by the word that each has for itself in its field
    ``kind``; the first is the default. Stands in a field's annotation. Classes may be added later:
    then the validators that were built on the field are built again (``on_change``)."""

    def __init__(self, seam: str, *classes: type) -> None:
        self.seam = seam  # what these classes are, for people: "noise"
        self.table: dict[str, type] = {}
        self.makers: dict[type, Callable[..., Any]] = {}  # of what a settings object describes
        self.on_change: list[Callable[[], object]] = []
        for cls in classes:
            self.register(cls)

    @property
    def default(self) -> str:
        return next(iter(self.table))

    def register(self, cls: type, make: Callable[..., Any] | None = None) -> None:
        """Let ``cls`` be chosen by its word; ``make`` makes what it describes, where it is not that
        itself. ConfigError where ``cls`` has no word for itself, or one that is taken."""
        if not dataclasses.is_dataclass(cls):
            raise ConfigError(
                f"{_full_name(cls)} is no dataclass: a kind of {self.seam} holds its settings as "
                "fields, so write @dataclass(frozen=True, kw_only=True) above it"
            )
        kind = getattr(cls, "kind", None)
        if not isinstance(kind, str):
            raise ConfigError(
                f"{_full_name(cls)} does not say what it is called: write a field "
                'kind: Literal["my-word"] = "my-word"'
            )
        taken = self.table.get(kind)
        if taken is not None:
            raise ConfigError(
                f"{self.seam}.kind={kind!r} is registered twice: by {_full_name(taken)} and by "
                f"{_full_name(cls)}; give the second another word"
            )
        self.table[kind] = cls
        if make is not None:
            self.makers[cls] = make
        for rebuild in self.on_change:
            rebuild()

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        choices = {kind: handler.generate_schema(cls) for kind, cls in self.table.items()}
        return core_schema.no_info_before_validator_function(
            self._section, core_schema.tagged_union_schema(choices, discriminator=_kind_of)
        )

    def _section(self, data: Any) -> Any:
        """``random``, nothing and a section without its word are short for a section with it."""
        if data is None or isinstance(data, str):
            data = {"kind": data or self.default}
        if isinstance(data, Mapping):
            data = {"kind": self.default, **data}
        kind = _kind_of(data)
        if kind is None:
            known = ", ".join(self.table)
            raise PydanticCustomError(
                "teach", f"a section with a key 'kind' is needed; kinds: {known}".replace("{", "{{")
            )
        if not isinstance(kind, str) or kind not in self.table:
            raise PydanticCustomError("kind", "{known}", {"known": nearest(str(kind), self.table)})
        return data


def _kind_of(data: Any) -> Any:
    return data.get("kind") if isinstance(data, Mapping) else getattr(data, "kind", None)


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which refuses a repeated key and all aliases: a few of them stand for
    more than any memory holds."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(
                None, None, "aliases (*name) are not read here: write the value again", mark
            )
        node: yaml.Node | None = super().compose_node(parent, index)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool | None):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key that is no word", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(text: str) -> Any:
    """Plain data of YAML. ValueError for anything that is none."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (TypeError, LookupError, AttributeError, OverflowError) as error:
        # Dates that do not exist, numbers without digits and the like leave PyYAML as they are.
        raise ValueError(f"a value that cannot be read ({error})") from None


def build(cls: type, data: Any, path: str = "") -> Any:
    """An instance of the section ``cls`` from plain data."""
    data = {} if data is None else data
    for keys, _ in _flags(data):
        annotation = _follow(cls, data, keys)
        if _bare(annotation) in (int, float):
            raise ConfigError(f"{_join(path, keys)}: got true or false, but a number is needed")
    for keys, number in _infinite(data):
        raise ConfigError(f"{_join(path, keys)}: got {number}, but a finite number is needed")
    try:
        return TypeAdapter(cls).validate_python(data)
    except ValidationError as error:
        raise ConfigError(_describe(error, cls, data, path)) from None


def plain(value: Any) -> Any:
    """The inverse of :func:`build`: dicts, lists and scalars, every field written out."""
    return TypeAdapter(type(value)).dump_python(value, mode="json")


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
        last = depth == len(keys) - 1
        if last and key == "kind" and _kinds(annotation) is not None:
            # A new kind has other fields: those of the old one must not survive.
            node.clear()
            node["kind"] = raw
            return
        annotation = _below(annotation, node, keys[: depth + 1])
        if last:
            node[key] = _parse(annotation, raw, path)
            return
        below = node.get(key)
        if not isinstance(below, dict):
            if _bare(annotation) is Ramp and isinstance(below, int | float):
                below = {"start": below, "end": below}
            else:
                below = {"kind": below} if _kinds(annotation) and below is not None else {}
        node[key] = below
        node = below


@functools.cache
def fields_of(cls: type) -> dict[str, Any]:
    """Field names of a section with their annotations, marks included."""
    hints = typing.get_type_hints(cls, include_extras=True)
    if issubclass(cls, BaseModel):
        return {name: hints[name] for name in cls.model_fields}
    assert dataclasses.is_dataclass(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def _below(annotation: Any, node: Any, path: Sequence[str]) -> Any:
    """The annotation of the last of ``path`` below ``annotation``, whose data is ``node``; a
    teaching error where there is none."""
    *above, key = path
    kinds = _kinds(annotation)
    if kinds is not None:
        kind = _kind_of(node) or kinds.default
        if not isinstance(kind, str) or kind not in kinds.table:
            known = nearest(str(kind), kinds.table)
            raise ConfigError(f"{'.'.join(above)}.kind={kind!r} is not known; {known}")
        annotation = kinds.table[kind]
    base = _bare(annotation)
    if _is_section(base):
        known_fields = fields_of(base)
        if key not in known_fields:
            raise ConfigError(f"unknown setting '{'.'.join(path)}': {nearest(key, known_fields)}")
        return known_fields[key]
    if typing.get_origin(base) is dict:
        return typing.get_args(base)[1]
    whole, section = ".".join(path), ".".join(above)
    raise ConfigError(f"unknown setting '{whole}': '{section}' is a single value, not a section")


def _follow(annotation: Any, data: Any, keys: Sequence[str]) -> Any:
    """The annotation at the end of ``keys``; None where the way ends before."""
    for depth, key in enumerate(keys):
        try:
            annotation = _below(annotation, data, keys[: depth + 1])
        except ConfigError:
            return None
        data = data.get(key) if isinstance(data, Mapping) else None
    return annotation


def _flags(data: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], bool]]:
    """Every true or false in plain data, which pydantic would take for 1 or 0."""
    if isinstance(data, bool):
        yield keys, data
    elif isinstance(data, Mapping):
        for key, value in data.items():
            yield from _flags(value, (*keys, str(key)))


def _infinite(data: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], float]]:
    """Every NaN and infinity in plain data."""
    if isinstance(data, float) and not math.isfinite(data):
        yield keys, data
    elif isinstance(data, Mapping):
        for key, value in data.items():
            yield from _infinite(value, (*keys, str(key)))
    elif isinstance(data, list | tuple):
        for index, value in enumerate(data):
            yield from _infinite(value, (*keys, str(index)))


def _parse(annotation: Any, raw: str, path: str) -> Any:
    """A command-line word as the field's type wants it. Text is never read as YAML."""
    base = _bare(annotation)
    optional = type(None) in typing.get_args(_unmarked(annotation))
    if optional and raw in ("null", "none", "None"):
        return None
    if base is str or base is pathlib.Path or _is_text_literal(base):
        return raw
    if _kinds(annotation) is not None and not raw.lstrip().startswith("{"):
        return {"kind": raw}  # noise=random is short for noise={kind: random}
    if base == list[str] and not raw.lstrip().startswith("["):
        return [raw]
    try:
        return read_yaml(raw)
    except ValueError:
        raise ConfigError(f"{path}={raw}: '{raw}' is not a number, list or word") from None


def _describe(error: ValidationError, cls: type, data: Any, path: str) -> str:
    return "\n".join(_one(dict(item), cls, data, path) for item in error.errors()[:5])


def _one(item: dict[str, Any], cls: type, data: Any, path: str) -> str:
    """One thing that pydantic refused, in our words."""
    annotation: Any = cls
    keys: list[str] = []
    parents: Any = cls
    kind_is_next = False
    for part in map(str, item["loc"]):
        if kind_is_next:  # pydantic names the kind on the way to its fields; our paths do not
            kind_is_next = False
            continue
        parents, keys = annotation, [*keys, part]
        annotation = _follow(cls, data, keys)
        kind_is_next = _kinds(annotation) is not None
    where, given = _join(path, keys), item["input"]
    message = str(item["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        try:
            _below(parents, _at(data, keys[:-1]), keys)
        except ConfigError as unknown:
            return str(unknown)
    refused = re.match(r"([a-z_][a-z_.]*)=", message) if item["type"] == "value_error" else None
    if refused is not None:
        return message.replace(refused[0], f"{_overlap(where, refused[1])}=")
    if item["type"] == "kind":
        return f"{where}.kind={_kind_of(given) or given!r} is not known; {message}"
    if item["type"] == "literal_error" and _is_text_literal(_bare(annotation)):
        words = typing.get_args(_bare(annotation))
        return f"{where}={given!r} is not known; {nearest(str(given), words)}"
    if item["type"] in ("model_type", "dataclass_type", "model_attributes_type"):
        known = ", ".join(fields_of(_bare(annotation))) if _is_section(_bare(annotation)) else ""
        where = where or "the configuration"
        return f"{where}: got {given!r}, but a section is needed, with keys: {known}"
    shown = f"got {given!r}: " if isinstance(given, str | int | float | list | tuple) else ""
    return f"{where}: {shown}{message[:1].lower() + message[1:]}"


def _overlap(where: str, name: str) -> str:
    """``name``, as a section calls it, with what stands above that section: representation.init and
    init.opacity make representation.init.opacity."""
    above, own = where.split(".") if where else [], name.split(".")
    for shared in range(min(len(above), len(own)), -1, -1):
        if shared == 0 or above[-shared:] == own[:shared]:
            return ".".join([*above, *own[shared:]])
    return name


def _at(data: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        data = data.get(key) if isinstance(data, Mapping) else None
    return data


def _kinds(annotation: Any) -> Kinds | None:
    if typing.get_origin(annotation) is typing.Annotated:
        for mark in typing.get_args(annotation)[1:]:
            if isinstance(mark, Kinds):
                return mark
    return None


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


def _is_section(cls: Any) -> bool:
    return isinstance(cls, type) and (issubclass(cls, BaseModel) or dataclasses.is_dataclass(cls))


def _is_text_literal(base: Any) -> bool:
    return typing.get_origin(base) is typing.Literal and all(
        isinstance(choice, str) for choice in typing.get_args(base)
    )


def _join(path: str, keys: Sequence[str]) -> str:
    return ".".join([*([path] if path else []), *keys])
