# SPDX-License-Identifier: Apache-2.0
"""What a run writes down about itself: stats.jsonl, a line per step, and summary.json at its end.

Each has one type, one reader and one writer. A value that is not there, of another type or out of
its range is damage, and the reader says in which file, on which line, and what to do.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from representations.files import write_bytes

from ..errors import UserError
from ..trainer import StepReport

LONGEST_LINE = 2**20  # bytes of a line of stats.jsonl; a real one has some 500
LARGEST = 2**24  # bytes of a summary.json; a real one has some 1000
NAMED = 3  # damaged lines that a sentence names; of the others it gives the number

Count = Annotated[int, Field(ge=0, le=10**12)]
Number = Annotated[float, Field(ge=-3.5e38, le=3.5e38, allow_inf_nan=False)]  # as float32 has them
Seconds = Annotated[float, Field(ge=0, le=1e10, allow_inf_nan=False)]
Megabytes = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=LONGEST_LINE)]


class Peaks(BaseModel):
    """The most memory that a process held."""

    # Strict: a word is no number, and neither is true. Keys of a later version are passed over.
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    peak_memory_mb: Megabytes | None = None
    peak_cuda_memory_mb: Megabytes | None = None

    def plain(self) -> dict[str, int | None]:
        """Both, as they stand in a file: whole megabytes."""
        both = {"peak_memory_mb": self.peak_memory_mb,
                "peak_cuda_memory_mb": self.peak_cuda_memory_mb}  # fmt: skip
        return {name: None if value is None else round(value) for name, value in both.items()}


class StepLine(Peaks):
    """A line of stats.jsonl: what one step did."""

    step: Count  # its index
    t: Number  # mean diffusion time index of the views
    loss: Number
    losses: dict[Text, Number]  # "guidance" and the weighted terms
    size: Count  # primitives after the step
    unit: Text  # of the size
    added: Count
    removed: Count
    events: list[Text]
    evaluations: Count  # samples the denoiser was asked about
    seconds: dict[Text, Seconds]  # by stage


class Summary(Peaks):
    """summary.json: what a finished run came to."""

    seconds: Seconds  # of the whole run
    asset: dict[Text, Text]  # name of the file, and what it holds
    versions: dict[Text, Text]
    hardware: dict[Text, Text | Count | None]
    prompt: Text | None = None
    steps: Count | None = None
    seconds_per_stage: dict[Text, Seconds] = {}
    size: Count | None = None
    converted_from: Text | None = None
    psnr_db: dict[Text, Number | None] | None = None


class Stats(NamedTuple):
    """The lines of a stats.jsonl that can be believed, in the order of their steps."""

    lines: list[StepLine]
    texts: list[str]  # the same as they stand in the file
    damage: list[str]  # a sentence for each other line, with the file and its number


def line_of(report: StepReport, memory: Peaks) -> dict[str, Any]:
    """The line of a step, as plain data."""
    return {
        "step": report.step,
        "t": round(report.t, 3),
        "loss": report.loss,
        "losses": report.losses,
        "size": report.refined.size,
        "unit": report.refined.unit,
        "added": report.refined.added,
        "removed": report.refined.removed,
        "events": list(report.refined.events),
        "evaluations": report.evaluations,
        "seconds": {name: round(value, 5) for name, value in report.seconds.items()},
        **memory.plain(),
    }


def read_stats(path: Path) -> Stats:
    """The steps in ``path``; none where there is no such file.

    A last line that a crash cut off is no damage. Any other line that is no step is, and so is one
    whose step does not come after the one before: as many lines as possible are believed, so one
    that claims a step of the far future does not cost those after it. UserError where the file
    cannot be read at all.
    """
    steps: list[tuple[int, str, StepLine]] = []
    damage: dict[int, str] = {}
    for number, raw, whole in _lines(path):
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            steps.append((number, text, _checked(StepLine, text)))
        except ValueError as error:
            if whole:
                damage[number] = str(error)
    kept = _rising([line.step for _, _, line in steps])
    for index, (number, _, line) in enumerate(steps):
        if index not in kept:
            damage[number] = f"its step {line.step} does not come after the one before"
    good = [step for index, step in enumerate(steps) if index in kept]
    return Stats(
        [line for _, _, line in good],
        [text for _, text, _ in good],
        [f"{path} line {number}: {damage[number]}" for number in sorted(damage)],
    )


def _lines(path: Path) -> Iterator[tuple[int, bytes, bool]]:
    """Number from 1, bytes, and whether a line end follows; a line that is too long is cut."""
    try:
        with path.open("rb") as stream:
            number = 0
            while raw := stream.readline(LONGEST_LINE):
                number += 1
                rest = raw
                while not rest.endswith(b"\n") and (rest := stream.readline(LONGEST_LINE)):
                    pass
                yield number, raw.removesuffix(b"\n"), bool(rest)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror or error}; it is a file with a line per step, "
            "so move what is there out of the way"
        ) from None


def _rising(values: Sequence[int]) -> set[int]:
    """Indices of a longest strictly rising part of ``values``."""
    ends: list[int] = []  # of the best part of each length: index of its last value
    tails: list[int] = []  # and that value
    before: list[int] = []
    for index, value in enumerate(values):
        at = bisect_left(tails, value)
        before.append(ends[at - 1] if at else -1)
        ends[at : at + 1] = [index]
        tails[at : at + 1] = [value]
    found: set[int] = set()
    index = ends[-1] if ends else -1
    while index >= 0:
        found.add(index)
        index = before[index]
    return found


def lost(damage: Sequence[str]) -> str:
    """One sentence about the lines that were left out; "" where none was."""
    more = len(damage) - NAMED
    told = "; ".join(damage[:NAMED]) + (f"; and {more} more" if more > 0 else "")
    lines = "1 damaged line" if len(damage) == 1 else f"{len(damage)} damaged lines"
    return f"{lines} left out ({told})" if damage else ""


def missing_steps(lines: Sequence[StepLine], steps: int) -> str:
    """Which of the steps 0 to ``steps`` - 1 have no line, for people; "" where all have one."""
    gaps, want = [], 0
    for step in [*(line.step for line in lines if line.step < steps), steps]:
        if step > want:
            gaps.append(str(want) if step == want + 1 else f"{want} to {step - 1}")
        want = step + 1
    told = ", ".join(gaps[:NAMED]) + (", ..." if len(gaps) > NAMED else "")
    return told


def require_complete(path: Path, steps: int, again: str) -> list[StepLine]:
    """Every step of a finished run, for whoever measures. UserError where one is missing, damaged
    or too much; ``again`` says what to do."""
    found = read_stats(path)
    if found.damage:
        raise UserError(
            f"{lost(found.damage).replace(' left out', '')}: nothing is measured on it; {again}"
        )
    if gaps := missing_steps(found.lines, steps):
        raise UserError(
            f"{path} lacks the steps {gaps} of {steps}: nothing is measured on it; {again}"
        )
    if len(found.lines) > steps:
        raise UserError(
            f"{path} has {len(found.lines)} steps of a run of {steps}: nothing is measured on it; "
            f"{again}"
        )
    return found.lines


def read_summary(path: Path, again: str) -> Summary:
    """UserError where it is damaged; ``again`` says what to do then."""
    try:
        return _checked(Summary, read_text(path))
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}; {again}") from None


def read_text(path: Path) -> str:
    """The whole of a small file. ValueError where there is no such file, or no text in it."""
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it has {path.stat().st_size:,} bytes, allowed are {LARGEST:,}")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("it is not text in UTF-8") from None
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror or error})") from None


def parse(text: str) -> Any:
    """JSON as its standard has it: no NaN, no key twice. ValueError otherwise."""
    try:
        return json.loads(text, parse_constant=_no_number, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON ({error})") from None
    except RecursionError:
        raise ValueError("it is not JSON of ours (it is nested too deeply)") from None


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} stands where a number is needed")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:40]!r} is given twice")
    return found


_Record = TypeVar("_Record", bound=BaseModel)


def _checked(cls: type[_Record], text: str) -> _Record:
    """ValueError, in one line, where the text is not such a record."""
    try:
        return cls.model_validate(parse(text))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part)[:40] for part in first["loc"]) or "all of it"
        raise ValueError(f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}") from None


def to_json(value: Any, indent: int | None = None) -> str:
    """The text of a JSON file of ours, without the line end. JSON has no NaN and no infinity: null
    stands for them."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def write_json(path: Path, value: Any) -> Path:
    """Replace ``path`` by ``value``, indented; see :func:`to_json`."""
    return write_bytes(path, (to_json(value, indent=2) + "\n").encode())


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def largest_memory(seen: Iterable[Peaks]) -> Peaks:
    """The highest of each figure; None where nothing has it."""
    seen = list(seen)

    def most(values: Iterable[float | None]) -> float | None:
        return max((value for value in values if value is not None), default=None)

    return Peaks(
        peak_memory_mb=most(one.peak_memory_mb for one in seen),
        peak_cuda_memory_mb=most(one.peak_cuda_memory_mb for one in seen),
    )
