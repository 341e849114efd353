# SPDX-License-Identifier: Apache-2.0
"""What a network costs, counted on the device ``meta``: no weights, no arithmetic, exact shapes."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .latents import Prior


class Live(TorchDispatchMode):
    """Bytes of tensors that are alive, now and at most: what an allocator without waste needs."""

    def __init__(self, module: Any) -> None:
        """Parameters and buffers of ``module`` do not count, nor do views of them."""
        super().__init__()
        self.bytes = 0
        self.peak = 0
        self._seen: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
        self._own = [p.untyped_storage() for p in (*module.parameters(), *module.buffers())]
        self._seen.update({storage._cdata: storage for storage in self._own})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._born(leaf.untyped_storage())
        return out

    def _born(self, storage: Any) -> None:
        if storage._cdata in self._seen:
            return
        size = storage.nbytes()
        self._seen[storage._cdata] = storage
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._died, size)

    def _died(self, size: int) -> None:
        self.bytes -= size


class FusedAttention(TorchFunctionMode):
    """Attention as a CUDA card does it: without the table of all pairs in memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return torch.ops.aten._scaled_dot_product_flash_attention(*args[:3])[0]


@dataclass(frozen=True)
class Cost:
    """Of one call."""

    flops: float  # a multiplication and an addition are two
    peak_bytes: int  # of activations, while it runs
    kept_bytes: int  # of activations that stay until the backward pass


def parameter_bytes(module: Any) -> int:
    """Of what a network holds: its parameters, and the tables beside them."""
    held = (*module.parameters(), *module.buffers())
    return sum(p.numel() * p.element_size() for p in held)


def measure(module: Any, call: Callable[[], Any]) -> Cost:
    """FLOPs and bytes of ``call()``, which runs ``module``; what it returns stays until its end.

    It is called twice: the counter of FLOPs keeps tensors alive longer than they would be.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton

    with FlopCounterMode(display=False) as flops:
        call()
    with Live(module) as live:
        kept = call()
        after = live.bytes
        del kept
    return Cost(float(flops.get_total_flops()), live.peak, after)


def of_prediction(
    model: Prior, samples: int, latents: int | None = None, backward: bool = False
) -> Cost:
    """Predicting the noise of ``samples`` square latents (of the model's own size, or of that
    side); with ``backward`` so that weights inside can learn from it, which keeps what every layer
    has made; whole groups where views are seen together. ``model`` is on the device meta."""
    samples += -samples % model.views_together
    side, channels = latent_shape(model)
    x = torch.empty(samples, channels, latents or side, latents or side, device="meta")
    t = torch.zeros(samples, device="meta", dtype=torch.long)
    words = model.embed(["a mug"] * samples)

    def call() -> Any:
        if backward:
            with FusedAttention():
                out = model.predict_noise(x.requires_grad_(), t, words)
                out.backward(torch.empty_like(out))
            return out
        with torch.no_grad(), FusedAttention():
            return model.predict_noise(x, t, words)

    return measure(model.network, call)


def latent_shape(model: Prior) -> tuple[int, int]:
    """Side and channels of a model's latents, which is on the device meta."""
    with torch.no_grad():
        z = model.encode(torch.empty(1, 3, model.image_size, model.image_size, device="meta"))
    return int(z.shape[-1]), int(z.shape[1])


def of_encoding(
    model: Prior, pictures: int, size: int | None = None, backward: bool = False
) -> Cost:
    """Encoding pictures (of the model's own size, or of that side) that have a gradient, as every
    step does; with ``backward`` both ways."""
    side = size or model.image_size
    rgb = torch.empty(pictures, 3, side, side, device="meta").requires_grad_()
    before, model.image_size = model.image_size, side

    def call() -> Any:
        z = model.encode(rgb)
        if backward:
            z.backward(torch.empty_like(z))
        return z

    try:
        return measure(torch.nn.Module() if model.vae is None else model.vae, call)
    finally:
        model.image_size = before


def of_words(model: Prior, sentences: int) -> Cost:
    """Encoding sentences, once a run."""
    return measure(torch.nn.ModuleList(model.readers), lambda: model.embed(["a mug"] * sentences))
