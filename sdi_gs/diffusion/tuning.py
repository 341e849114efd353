# SPDX-License-Identifier: Apache-2.0
"""How a model is run: faster, or in less memory. Its results stay the same to rounding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .latents import Prior

P = TypeVar("P", bound=Prior)

Compile = Literal[
    "no", "default", "reduce-overhead", "max-autotune", "openvino", "openvino-bfloat16"
]
"""How the network is compiled. ``default``, ``reduce-overhead`` and ``max-autotune`` are modes of
torch.compile: the first steps take minutes, the others less time; the second records CUDA graphs as
well. ``openvino``: for the CPU; see :mod:`~sdi_gs.diffusion.compiled`."""


@dataclass(frozen=True)
class Tuning:
    """Settings of ``model`` that change no result, or in bfloat16 only its last digits."""

    compile: Compile = "no"
    rows: int | None = None  # network samples asked at once; None: all of an evaluation
    # bounded: nothing inside of the VAE is kept for the backward pass but computed again, block by
    # block: a third of the memory for half again of the VAE's time.
    vae_memory: Literal["full", "bounded"] = "full"

    def __post_init__(self) -> None:
        if self.rows is not None and self.rows < 1:
            raise ValueError(f"model.rows={self.rows}: at least 1 is needed")


def tune(model: P, tuning: Tuning) -> P:
    """Apply settings to a model that was just loaded; the same model. ValueError where ``rows``
    would part views that the network sees together."""
    if tuning.rows is not None and tuning.rows % model.views_together:
        whole = max(1, tuning.rows // model.views_together) * model.views_together
        raise ValueError(
            f"model.rows={tuning.rows}: this model sees {model.views_together} views of a shape "
            f"together, so a multiple of that is needed: write model.rows={whole}"
        )
    # What convolutions want, tensor cores and oneDNN alike: no transposition before and after each.
    # On two cores mini's UNet takes 9 to 15 % less time, its VAE forward and backward 23 %.
    for module in (model.network, model.vae):
        if module is not None:
            module.to(memory_format=torch.channels_last)
    if tuning.vae_memory == "bounded" and model.vae is not None:
        bound_encoder(model.vae)
    if tuning.compile in ("openvino", "openvino-bfloat16"):
        from .compiled import compile_unet

        compile_unet(model.network, "float32" if tuning.compile == "openvino" else "bfloat16")
    elif tuning.compile != "no":
        model.network.compile(mode=tuning.compile, dynamic=False)
    if tuning.rows is not None:
        model.rows = tuning.rows
    return model


# What is computed again as one: of the plain networks, and of diffusers, by name, so that it need
# not be imported.
BLOCKS = ("Resnet", "Downsample", "PixelAttention", "ResnetBlock2D", "Downsample2D", "Attention")


def bound_encoder(vae: Any) -> None:
    """Compute every block of the encoder again in the backward pass instead of keeping what is
    inside. diffusers' own switch does so for a whole resolution at once, and the first of those
    holds nearly everything."""
    for module in vae.encoder.modules():
        if type(module).__name__ in BLOCKS:
            module.forward = _again(module.forward)


class _Again(torch.autograd.Function):
    """A function of one tensor whose inside is computed again when its gradient is asked for.
    Its other arguments are constants; frozen weights are."""

    @staticmethod
    def forward(ctx: Any, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(x)
        return function(x.detach())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[None, Tensor]:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            out = ctx.function(x)
        torch.autograd.backward(out, d_out)
        assert x.grad is not None
        return None, x.grad


def _again(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def inner(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out: Tensor = _Again.apply(lambda moving: forward(moving, *args, **kwargs), x)
        return out

    return inner
