# SPDX-License-Identifier: Apache-2.0
"""Folders of diffusers and transformers, looked at before those libraries see them.

They raise dozens of unrelated errors about damaged files, give random numbers to weights that are
missing, and take what a header claims at its word. What is looked at here is named by file.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError, first_line

LARGEST_JSON = 64 * 2**20  # bytes; the tokenizers of large models have 20 MB
LARGEST_HEADER = 100 * 2**20  # bytes, as in safetensors itself
MOST_LAYERS = 512
WIDEST = 2**20  # of any dimension that a config.json may ask for
SURPLUS = 2  # a config may ask for so many times the numbers that its weights hold

_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I16": 16, "U16": 16,
    "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
    "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


class ModelError(ValueError):
    """A model that cannot be loaded, with what to do about it."""


def check_part(folder: Path) -> None:
    """Refuse a folder whose JSON or safetensors files cannot be what they claim. Folders within
    are not looked at. Raises ModelError with the file and the reason."""
    try:
        names = sorted(folder.iterdir())
    except OSError as error:
        raise ModelError(f"{folder} cannot be read: {error.strerror or error}") from None
    shards = any(path.suffix == ".safetensors" for path in names)
    for path in names:
        if path.suffix == ".json":
            found = read_json(path)
            if path.name == "config.json":
                _check_sizes(path, found)
            elif path.name.endswith(".index.json") and not (shards and _is_of_others(path, found)):
                _check_index(path, found)
        elif path.suffix == ".safetensors":
            read_header(path)
    if shards and not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has weights and no config.json: copy it from the same model")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. ModelError where there is none."""
    try:
        size = path.stat().st_size
        if size > LARGEST_JSON:
            raise ModelError(f"{path} has {size:,} bytes, which is no setting of a model")
        found = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from None
    except ModelError:
        raise
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f"{path} is damaged ({first_line(error)}): copy it again from where the model is from"
        ) from None
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds {type(found).__name__}, and settings are needed")
    return found


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} stands where a number is needed")


def _check_sizes(path: Path, found: Any, above: str = "") -> None:
    """Layers and widths that no model has would be built before anybody compares them with the
    weights."""
    for key, value in found.items() if isinstance(found, dict) else enumerate(found):
        name = f"{above}.{key}" if above else str(key)
        if isinstance(value, dict | list):
            _check_sizes(path, value, name)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            most = MOST_LAYERS if "layers" in name else WIDEST
            if not -WIDEST <= value <= most:
                raise ModelError(f"{path} asks for {name}={value:.6g}: allowed is up to {most:,}")


def _is_of_others(path: Path, found: dict[str, Any]) -> bool:
    """Whether an index names no file that is there: that of a variant which was not copied."""
    shards = found.get("weight_map")
    named = map(str, shards.values()) if isinstance(shards, dict) else ()
    return bool(shards) and not any((path.parent / name).is_file() for name in named)


def _check_index(path: Path, found: dict[str, Any]) -> None:
    shards = found.get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ModelError(f"{path} has no weight_map: it is damaged")
    for name in sorted(set(map(str, shards.values()))):
        if Path(name).name != name or not (path.parent / name).is_file():
            raise ModelError(f"{path} names {name}, which is not beside it: copy that file too")


def read_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a .safetensors file, of which only the header is read.
    ModelError where the header does not fit the length of the file."""
    again = "copy it again from where the model is from"
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            first = stream.read(8)
            length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
            if not 2 <= length <= min(LARGEST_HEADER, size - 8):
                raise ModelError(
                    f"{path} has {size:,} bytes and claims a header of {length:,}: {again}"
                )
            text = stream.read(length)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from None
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        shapes = {name: _shape(entry, size - 8 - length) for name, entry in header.items()}
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
        raise ModelError(f"{path} has a damaged header ({first_line(error)}): {again}") from None
    held = sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in header.values())
    if held != size - 8 - length:
        raise ModelError(f"{path} has tensors of {held:,} bytes and room for others: {again}")
    return shapes


def _shape(entry: dict[str, Any], room: int) -> tuple[int, ...]:
    """ValueError and its kin where dtype, shape and place of a tensor disagree."""
    begin, end = entry["data_offsets"]
    shape = entry["shape"]
    if not all(type(value) is int and value >= 0 for value in (begin, end, *shape)):
        raise ValueError("a size that is none")
    bits = _BITS[entry["dtype"]] * math.prod(shape)
    if not begin <= end <= room or (end - begin) * 8 != bits:
        raise ValueError("a tensor is cut off, or of another length than its shape")
    return tuple(shape)


_ACCELERATOR = (torch.AcceleratorError,) if hasattr(torch, "AcceleratorError") else ()
"""What a card says that has failed; no fault of a file."""


@contextmanager
def naming(what: str, remedy: str = "") -> Iterator[None]:
    """Whatever a library raises about ``what`` becomes a ModelError about it."""
    try:
        yield
    except (ModelError, UserError, torch.OutOfMemoryError, *_ACCELERATOR):
        raise
    except Exception as error:
        raise ModelError(f"{what} does not load: {first_line(error)}{remedy}") from error


def loaded(
    folder: Path | None,
    what: str,
    build: Callable[[], torch.nn.Module],
    load: Callable[[], tuple[Any, dict[str, Any]]],
) -> Any:
    """A network of ``folder``, all of whose weights came from its files and are numbers.

    ``build`` makes it from its settings alone; that is done on the device ``meta``, which costs no
    memory, to see whether the settings are of these weights. ``load`` is a ``from_pretrained`` with
    ``output_loading_info=True``. ``folder`` None: a network of the hub's cache, loaded right away.
    ModelError otherwise.
    """
    if folder is not None:
        held = sum(
            math.prod(shape)
            for path in folder.glob("*.safetensors")
            for shape in read_header(path).values()
        )
        with torch.device("meta"):
            asked = sum(parameter.numel() for parameter in build().parameters())
        if held and asked > SURPLUS * held:
            raise ModelError(
                f"{folder / 'config.json'} asks for {asked:,} numbers, and the weights beside it "
                f"have {held:,}: they are not of one model"
            )
    model, info = load()
    lacking = sorted(str(name) for name in info.get("missing_keys") or ())
    wrong = [str(name) for name in info.get("mismatched_keys") or ()]
    if lacking or wrong:
        named = ", ".join([*lacking, *wrong][:3])
        raise ModelError(
            f"{what} lacks {len(lacking)} weights that its config.json asks for, and "
            f"{len(wrong)} have another shape ({named}, ...): copy the folder again, with "
            "config and weights of one model"
        )
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{what} has weights that are no numbers, in {name}: copy it again")
    return model


def check_words(what: str, tokenizer: Any, vocabulary: int, positions: int | None) -> None:
    """ModelError where a tokenizer makes numbers that its text encoder has no row for, or more of
    them than it has ``positions`` (None: whoever asks cuts them to those)."""
    longest = tokenizer.model_max_length
    if positions is not None and not 2 <= longest <= positions:
        raise ModelError(
            f"{what}: the tokenizer makes {longest} words of a sentence, and the text encoder "
            f"takes {positions}: they are not of one model"
        )
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if not 0 <= highest < vocabulary:
        raise ModelError(
            f"{what}: the tokenizer counts words up to {highest}, and the text encoder knows "
            f"{vocabulary}: they are not of one model"
        )
