# SPDX-License-Identifier: Apache-2.0
"""Whether a saved state is of the thing that is to go on with it: looked at before any of it is
taken, for torch accepts moments of another shape and rates that are words, and fails a step later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

LARGEST = 1e12
"""Of the numbers in an optimiser's groups: rates, decays, and how they change."""


def require_tensors(given: Any, shapes: Mapping[str, Sequence[int]], name: str) -> None:
    """Raise ValueError unless ``given`` holds tensors of these names and shapes, all finite."""
    if not isinstance(given, Mapping) or set(given) != set(shapes):
        found = sorted(map(str, given)) if isinstance(given, Mapping) else type(given).__name__
        raise ValueError(f"the state's {name} holds {found}, needed is {sorted(shapes)}")
    for key, shape in shapes.items():
        require_tensor(given[key], shape, f"{name}.{key}")


def require_tensor(given: Any, shape: Sequence[int], name: str) -> None:
    """Raise ValueError unless ``given`` is a finite tensor of that shape."""
    if not isinstance(given, Tensor):
        raise ValueError(f"the state's {name} is no tensor but {type(given).__name__}")
    if tuple(given.shape) != tuple(shape):
        raise ValueError(
            f"the state's {name} has shape {tuple(given.shape)}, needed is {tuple(shape)}"
        )
    if given.is_complex() or not bool(torch.isfinite(given).all()):
        raise ValueError(f"the state's {name} holds numbers that are not finite")


def require_optimizer(given: Any, own: Optimizer, shapes: Sequence[Sequence[int]]) -> None:
    """Raise ValueError unless ``given`` is a state of an optimiser like ``own`` for parameters of
    these shapes, in the order of its groups."""
    groups = own.state_dict()["param_groups"]
    found = given.get("param_groups") if isinstance(given, Mapping) else None
    if not isinstance(found, list) or len(found) != len(groups):
        raise ValueError(f"the state's optimizer has no {len(groups)} groups of parameters")
    for number, (theirs, ours) in enumerate(zip(found, groups, strict=True)):
        _require_like(theirs, ours, f"optimizer.param_groups.{number}")
    moments = given.get("state")
    if not isinstance(moments, Mapping):
        raise ValueError("the state's optimizer has no moments")
    for index, entry in moments.items():
        if type(index) is not int or not 0 <= index < len(shapes) or not isinstance(entry, Mapping):
            raise ValueError(f"the state's optimizer has moments of {index!r}, which is none of it")
        for name, value in entry.items():
            shape = () if name == "step" else shapes[index]
            require_tensor(value, shape, f"optimizer.state.{index}.{name}")
    known = {frozenset(entry) for entry in moments.values()}
    if len(known) > 1 or any({"exp_avg", "exp_avg_sq", "step"} ^ names for names in known):
        raise ValueError("the state's optimizer lacks moments of Adam for some of its parameters")


def _require_like(given: Any, own: Any, name: str) -> None:
    """Plain data of the same build; numbers may differ between 0 and LARGEST."""
    if isinstance(own, Mapping):
        fits = isinstance(given, Mapping) and set(given) == set(own)
        if fits:
            for key in own:
                _require_like(given[key], own[key], f"{name}.{key}")
    elif isinstance(own, list | tuple):
        fits = isinstance(given, list | tuple) and len(given) == len(own)
        if fits:
            for index, (one, other) in enumerate(zip(given, own, strict=True)):
                _require_like(one, other, f"{name}.{index}")
    elif isinstance(own, int | float) and not isinstance(own, bool):
        number = isinstance(given, int | float) and not isinstance(given, bool)
        fits = number and 0 <= given <= LARGEST  # which NaN is not
    else:
        fits = type(given) is type(own) and given == own
    if not fits:
        raise ValueError(f"the state's {name} is {str(given)[:60]!r}, needed is one like {own!r}")
