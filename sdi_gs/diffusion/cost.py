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
from torch.utils.flop_counter import FlopCounterMode

from .published import TOKENS, Networks


class Live(TorchDispatchMode):
    """Bytes of tensors that are alive, now and at most: what an allocator without waste needs."""

    def __init__(self, module: Any) -> None:
        """Parameters of ``module`` do not count, nor do views of them."""
        super().__init__()
        self.bytes = 0
        self.peak = 0
        self._seen: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
        self._own = [p.untyped_storage() for p in module.parameters()]
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
    return sum(p.numel() * p.element_size() for p in module.parameters())


def measure(module: Any, call: Callable[[], Any]) -> Cost:
    """FLOPs and bytes of ``call()``, which runs ``module``; what it returns stays until its end.

    It is called twice: the counter of FLOPs keeps tensors alive longer than they would be.
    """
    with FlopCounterMode(display=False) as flops:
        call()
    with Live(module) as live:
        kept = call()
        after = live.bytes
        del kept
    return Cost(float(flops.get_total_flops()), live.peak, after)


def of_unet(parts: Networks, samples: int, latents: int = 64, backward: bool = False) -> Cost:
    """Predicting the noise of ``samples`` square latents of that side; with ``backward`` so that
    weights inside can learn from it, which keeps what every layer has made."""
    kind = {"device": "meta", "dtype": next(parts.unet.parameters()).dtype}
    x = torch.empty(samples, parts.unet.config.in_channels, latents, latents, **kind)
    words = torch.empty(samples, TOKENS, parts.unet.config.cross_attention_dim, **kind)
    t = torch.empty(samples, device="meta", dtype=torch.long)

    def call() -> Any:
        if backward:
            with FusedAttention():
                out = parts.unet(x.requires_grad_(), t, encoder_hidden_states=words).sample
                out.backward(torch.empty_like(out))
            return out
        with torch.no_grad(), FusedAttention():
            return parts.unet(x, t, encoder_hidden_states=words).sample

    return measure(parts.unet, call)


def of_encoding(parts: Networks, pictures: int, size: int = 512, backward: bool = False) -> Cost:
    """Encoding pictures that have a gradient, as every step does; with ``backward`` both ways."""
    kind = {"device": "meta", "dtype": next(parts.vae.parameters()).dtype}
    rgb = torch.empty(pictures, 3, size, size, **kind).requires_grad_()

    def call() -> Any:
        mean = parts.vae.encode(rgb).latent_dist.mean
        if backward:
            mean.backward(torch.empty_like(mean))
        return mean

    return measure(parts.vae, call)


def of_text_encoder(parts: Networks, sentences: int) -> Cost:
    """Encoding sentences, once a run."""
    ids = torch.zeros(sentences, TOKENS, device="meta", dtype=torch.long)

    def call() -> Any:
        with torch.no_grad():
            return parts.text_encoder(ids).last_hidden_state

    return measure(parts.text_encoder, call)
