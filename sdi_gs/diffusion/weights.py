# SPDX-License-Identifier: Apache-2.0
"""Which files hold the weights of a part of a model: plain ones, a variant (fp16), shards, or one
file that holds them all."""

from __future__ import annotations

import logging
import re
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from .folder import ModelError, read_json
from .single_file import weights_of
from .source import REMEDY, Opened

LOG = logging.getLogger(__name__)


class Weights(NamedTuple):
    """Where the weights of a network are."""

    files: list[Path]  # one, or shards
    variant: str | None  # of their names
    state: dict[str, Tensor] | None = None  # instead: those of a file that holds a whole model


def weights(part: str, stem: str, cls: str, model: Opened) -> Weights:
    """The weights of a part, whose files are named ``stem`` and whose published class is ``cls``.
    A variant that is alone is found by itself.

    Raises:
        ModelError: there are none, or several variants and none is asked for; with what to do.
    """
    own = model.part(part)
    if model.weights is not None:
        state = weights_of(model.weights, part, cls, read_json(own / "config.json"))
        if state:
            return Weights([], None, state)
    found = _variants(stem, own)
    asked = model.how.variant
    if asked in found:
        return Weights(found[asked], asked)
    if asked is not None and None in found:
        LOG.warning("%s has no weights of the variant %r: the plain ones are read", own, asked)
        return Weights(found[None], None)
    if found:
        ((variant, files), *others) = found.items()
        if asked is None and not others:
            return Weights(files, variant)
        what = "of several variants" if asked is None else f"none of the variant {asked!r}"
        write = " or ".join(f"model.variant={name}" for name in found)
        raise ModelError(f"{own} has weights {what}: write {write}")
    pickled = sorted(own.glob("*.bin"))
    if pickled:
        raise ModelError(_converting(pickled, stem))
    where = "" if model.weights is None else f", and {model.weights} holds none for it either"
    raise ModelError(
        f"the {part} of the model in {model.folder} does not load: {own} has no "
        f"{stem}.safetensors{where}{REMEDY}"
    )


def _variants(stem: str, own: Path) -> dict[str | None, list[Path]]:
    """Files of weights by the variant in their name; None: the plain ones."""
    found: dict[str | None, list[Path]] = {}
    name = re.escape(stem)
    for path in sorted(own.iterdir()):
        one = re.fullmatch(rf"{name}(?:\.(\w+))?\.safetensors", path.name)
        many = re.fullmatch(rf"{name}\.safetensors\.index(?:\.(\w+))?\.json", path.name)
        if one:
            found[one[1]] = [path]
        elif many and many[1] not in found:
            shards = sorted(set(read_json(path)["weight_map"].values()))
            if all((own / shard).is_file() for shard in shards):
                found[many[1]] = [own / shard for shard in shards]
    found.pop("non_ema", None)  # a model's own, before it was averaged
    return found


def _converting(pickled: Iterable[Path], stem: str) -> str:
    """What to do about pickled weights, which may hold any program."""
    path = min(pickled, key=lambda p: len(p.name))  # the plain one, beside model.fp16.bin
    target = path.with_name(f"{stem}.safetensors")
    code = (
        "import sys, torch; from safetensors.torch import save_file; "
        "w = torch.load(sys.argv[1], map_location='cpu', weights_only=True); "
        "save_file({k: v.clone().contiguous() for k, v in w.items()}, sys.argv[2], "
        "metadata={'format': 'pt'})"
    )
    typed = shlex.join([sys.executable, "-c", code, str(path), str(target)])
    return (
        f"{path} is a pickle, which can hold any program, and only .safetensors is read. This "
        f"converts it without running what may be in it:\n  {typed}"
    )
