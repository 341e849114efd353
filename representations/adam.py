# SPDX-License-Identifier: Apache-2.0
"""torch's Adam without torch's compiler, which the methods of torch's optimisers import when they
are first called, so that it can step around them. That takes more than a second of a processor."""

from __future__ import annotations

import inspect
from typing import Any

import torch


def _bare(name: str) -> Any:
    """The method of torch's Adam inside its decorators."""
    return inspect.unwrap(getattr(torch.optim.Adam, name))


class Adam(torch.optim.Adam):
    """The same arithmetic, states and arguments. It is not meant for compiled programs, nor to be
    differentiated (``differentiable=True``)."""

    # Gradients are off, as torch's own decorator has them.
    step = torch.no_grad()(_bare("step"))
    zero_grad = _bare("zero_grad")
    add_param_group = _bare("add_param_group")
    state_dict = _bare("state_dict")
    load_state_dict = _bare("load_state_dict")
