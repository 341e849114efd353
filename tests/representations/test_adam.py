# SPDX-License-Identifier: Apache-2.0
"""Adam without torch's compiler: torch's own steps, and no compiler."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from representations.adam import Adam

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("settings", [{}, {"betas": (0.9, 0.99), "eps": 1e-15, "weight_decay": 0.1},
                                      {"amsgrad": True}, {"foreach": True}])  # fmt: skip
def test_the_same_steps_as_torch(settings: dict[str, object]) -> None:
    """Bit for bit, over a change of rate, a state that is carried over and a new group."""
    given = [torch.randn(5, 3), torch.randn(4)]
    mine, theirs = ([one.clone().requires_grad_() for one in given] for _ in range(2))
    optimizers = []
    for cls, parameters in ((Adam, mine), (torch.optim.Adam, theirs)):
        optimizer = cls([{"params": parameters[:1], "lr": 1e-2, "name": "first"}], **settings)  # type: ignore[arg-type]
        optimizer.add_param_group({"params": parameters[1:], "lr": 1e-3, "name": "second"})
        optimizers.append(optimizer)
    for step in range(6):
        gradients = [torch.randn_like(one) for one in given]
        for optimizer, parameters in zip(optimizers, (mine, theirs), strict=True):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
            optimizer.param_groups[0]["lr"] = 1e-2 / (step + 1)
            if step == 3:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            assert all(parameter.grad is None for parameter in parameters)
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    assert not torch.equal(mine[0], given[0])


def test_a_step_leaves_no_graph() -> None:
    x = torch.ones(3, requires_grad=True)
    optimizer = Adam([x], lr=0.1)
    (x * 2).sum().backward()
    optimizer.step()
    assert x.is_leaf
    assert torch.is_grad_enabled()


def test_torch_s_compiler_stays_out() -> None:
    code = """
import sys, torch
from representations.adam import Adam
x = torch.ones(3, requires_grad=True)
optimizer = Adam([x], lr=0.1)
optimizer.add_param_group({"params": [torch.ones(2, requires_grad=True)]})
(x * 2).sum().backward()
optimizer.step(); optimizer.zero_grad(); optimizer.load_state_dict(optimizer.state_dict())
print("torch._dynamo" in sys.modules)
"""
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                         check=True, timeout=300)  # fmt: skip
    assert out.stdout.split() == ["False"]
