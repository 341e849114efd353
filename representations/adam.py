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


class UniformAdam(Adam):
    """Adam that divides all numbers of a parameter by the same one, a mean of their largest squared
    gradient: the direction of a step is kept, and with it the smoothness of a preconditioned
    gradient (Nicolet et al. 2021, "Large Steps in Inverse Rendering of Geometry", 4.3). Settings
    and states are Adam's; of these, weight decay and the variants are not heeded."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)
        return loss

    def _move(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        (first, second), count = group["betas"], float(state["step"])
        state["exp_avg"].lerp_(gradient, 1.0 - first)
        largest = gradient.abs().amax().square()
        state["exp_avg_sq"].mul_(second).add_((1.0 - second) * largest)
        spread = state["exp_avg_sq"].div(1.0 - second**count).sqrt_().add_(group["eps"])
        parameter.addcdiv_(state["exp_avg"], spread, value=-group["lr"] / (1.0 - first**count))
