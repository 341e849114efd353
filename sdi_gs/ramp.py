# SPDX-License-Identifier: Apache-2.0
"""Settings that move over the steps of a run."""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple


class Progress(NamedTuple):
    """How far a run is: ``ramp.at(*progress)`` is the value that a setting has now."""

    step: int  # index of the step, from 0
    total_steps: int  # of the run


@dataclass(frozen=True)
class Ramp:
    """A value that moves from ``start`` to ``end`` over a number of steps, then stays."""

    start: float  # value at step 0
    end: float  # value from step ``over`` on
    over: int | None = None  # steps; None: the whole run, however long it is
    # sqrt is HiFA's; step stays at ``start`` and jumps.
    shape: Literal["linear", "sqrt", "cosine", "step"] = "linear"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """In settings a bare number stands for the ramp that stays there, in both directions."""
        from pydantic_core import core_schema

        # The fields are those of a class of its own: pydantic remembers the schema of a class by
        # its name, and would take that of the bare fields for this one the next time.
        section = core_schema.no_info_before_validator_function(
            _as_section, handler.generate_schema(_fields_alone())
        )
        return core_schema.no_info_after_validator_function(
            lambda read: Ramp(**vars(read)),
            section,
            serialization=core_schema.plain_serializer_function_ser_schema(_as_number),
        )

    def at(self, step: int, total_steps: int) -> float:
        """The value at ``step`` of a run of ``total_steps``; ``ramp.at(*progress)``."""
        span = self.over if self.over is not None else total_steps
        done = 1.0 if span <= 0 else min(max(step / span, 0.0), 1.0)
        if self.shape == "sqrt":
            done = math.sqrt(done)
        elif self.shape == "step":
            done = math.floor(done)
        elif self.shape == "cosine":
            done = 0.5 - 0.5 * math.cos(math.pi * done)
        return self.start + (self.end - self.start) * done


def ramp(value: Ramp | float) -> Ramp:
    """A plain number as the ramp that stays there."""
    return value if isinstance(value, Ramp) else Ramp(value, value)


@functools.cache
def _fields_alone() -> type:
    hints = typing.get_type_hints(Ramp)
    own = [(field.name, hints[field.name], dataclasses.field(default=field.default))
           if field.default is not dataclasses.MISSING else (field.name, hints[field.name])
           for field in dataclasses.fields(Ramp)]  # fmt: skip
    return dataclasses.make_dataclass("RampFields", own)


def _as_section(data: Any) -> Any:
    """A ramp or a number as its fields; a number may be one such as 1e-2, which YAML takes for a
    word."""
    if isinstance(data, Ramp):
        return vars(data)
    if isinstance(data, bool) or not isinstance(data, int | float | str):
        return data
    try:
        value = float(data)
    except ValueError:
        return data
    return {"start": value, "end": value}


def _as_number(value: Ramp) -> Any:
    return value.start if value == Ramp(value.start, value.start) else vars(value)
