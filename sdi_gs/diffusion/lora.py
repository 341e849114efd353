# SPDX-License-Identifier: Apache-2.0
"""A second noise predictor that shares the frozen network's weights: LoRA and a camera embedding.

Low-Rank Adaptation (arXiv 2106.09685) of every attention projection, and the pose of the camera
added to the time embedding through a small network of its own, as ProlificDreamer does. Both start
at nothing: before the first lesson the predictions are the frozen network's.
"""

from __future__ import annotations

import copy
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn

from .base import Condition
from .schedule import mix

PROJECTIONS = (
    "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
)  # fmt: skip


class LowRank(nn.Module):
    """``frozen(x) + up(down(x))``; ``up`` starts at zero."""

    def __init__(self, frozen: nn.Linear, rank: int, generator: Generator) -> None:
        super().__init__()
        self.frozen = frozen
        bound = frozen.in_features**-0.5
        first = 2.0 * torch.rand(rank, frozen.in_features, generator=generator) - 1.0
        self.down = nn.Parameter((bound * first).to(frozen.weight.device))
        self.up = nn.Parameter(torch.zeros(frozen.out_features, rank, device=self.down.device))

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        low = (x.float() @ self.down.T) @ self.up.T
        out: Tensor = self.frozen(x)
        return out + low.to(out.dtype)


class CameraEmbedding(nn.Module):
    """Pose [B, 16] -> [B, width], beside the time embedding; starts at zero."""

    def __init__(self, width: int, generator: Generator, like: Tensor) -> None:
        super().__init__()
        bound = 0.25  # 16^-1/2
        first = 2.0 * torch.rand(width, 16, generator=generator) - 1.0
        self.inner = nn.Parameter((bound * first).to(like.device))
        self.outer = nn.Parameter(torch.zeros(width, width, device=like.device))
        self.dtype = like.dtype

    def forward(self, pose: Tensor) -> Tensor:
        hidden = nn.functional.silu(pose.float() @ self.inner.T)
        return (hidden @ self.outer.T).to(self.dtype)


def projections(network: Any) -> list[tuple[str, nn.Linear]]:
    """The attention projections of a network, which low-rank weights stand beside, by name."""
    return [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and name.endswith(tuple("." + p for p in PROJECTIONS))
    ]


class Place(Protocol):
    """Where the network of a prior learns of the camera: beside the time."""

    def width(self, network: Any) -> int:
        """Numbers of its time embedding."""
        ...

    def put(self, network: Any, camera: nn.Module) -> None:
        """Have ``camera``, which makes [B, width] of poses [B, 16], added to the time embedding."""
        ...


class BesideClass:
    """In a UNet of diffusers, or the plain one: it adds a class embedding where it has one. In a
    model that sees several views that is one of poses already, and the two are added."""

    def width(self, network: Any) -> int:
        return int(network.time_embedding.linear_2.out_features)

    def put(self, network: Any, camera: nn.Module) -> None:
        there = network.class_embedding
        network.class_embedding = camera if there is None else _Both(there, camera)


class _Both(nn.Module):
    """The sum of two embeddings of one pose."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, pose: Tensor) -> Tensor:
        out: Tensor = self.first(pose) + self.second(pose)
        return out


def low_rank_parameters(network: Any, rank: int, place: Place) -> int:
    """Numbers that :class:`LoraLearner` trains beside ``network``."""
    width = place.width(network)
    low = sum(rank * (m.in_features + m.out_features) for _, m in projections(network))
    return low + 16 * width + width**2


class Ask(Protocol):
    """How a prior asks its network, or a copy of it that is told the camera."""

    def __call__(self, network: Any, x_t: Tensor, t: Tensor, camera: Tensor) -> Tensor:
        """(network, x_t [B, c, h, w], t [B], poses [B, 16]) -> epsilon [B, c, h, w]."""
        ...


class _Noise(Protocol):
    def __call__(
        self, network: Any, x_t: Tensor, t: Tensor, condition: Condition, camera: Tensor, /
    ) -> Tensor: ...


def under(noise: _Noise, condition: Condition) -> Ask:
    """How to ask for noise under the one ``condition`` [1, ...], whatever the number of rows."""

    def ask(network: Any, x_t: Tensor, t: Tensor, camera: Tensor) -> Tensor:
        parts = {k: p.expand(len(x_t), *p.shape[1:]) for k, p in condition.parts.items()}
        return noise(network, x_t, t, Condition(parts), camera)

    return ask


def _sent(drawn: Tensor, like: Tensor) -> Tensor:
    """``drawn`` where ``like`` is; a card is not waited for."""
    if like.is_cuda:
        return drawn.pin_memory().to(like.device, non_blocking=True)
    return drawn.to(like.device)


class LoraLearner:
    """Satisfies :class:`~sdi_gs.diffusion.base.NoiseLearner`.

    Args:
        network: the frozen network; it is not changed, and its weights are not copied.
        ask: how to ask it, under the prompt.
        place: where it learns of the camera.
        alpha_bar: schedule [T].
    """

    def __init__(
        self, network: Any, ask: Ask, place: Place, alpha_bar: Tensor, rank: int, rate: float
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        shared = {id(p): p for p in (*network.parameters(), *network.buffers())}
        self.network = copy.deepcopy(network, shared)
        self.ask = ask
        self.alpha_bar = alpha_bar
        like = next(network.parameters())
        place.put(self.network, CameraEmbedding(place.width(self.network), generator, like))
        for name, module in projections(self.network):
            parent = self.network.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], LowRank(module, rank, generator))
        self.trained = {
            name: parameter
            for name, parameter in self.network.named_parameters()
            if id(parameter) not in shared
        }
        self.optimizer = torch.optim.AdamW(list(self.trained.values()), lr=rate, weight_decay=0.01)

    @torch.no_grad()
    def predict(self, x_t: Tensor, t: Tensor, camera: Tensor | None) -> Tensor:
        nowhere = torch.zeros(len(x_t), 16, device=x_t.device)
        return self.ask(self.network, x_t, t, nowhere if camera is None else camera)

    def learn(self, latents: Tensor, camera: Tensor, rng: Generator) -> Tensor:
        total = len(self.alpha_bar)
        t = _sent(torch.randint(total, (len(latents),), generator=rng), latents)
        noise = _sent(torch.randn(latents.shape, generator=rng), latents).to(latents)
        x_t = mix(latents, noise, self.alpha_bar.to(latents)[t])
        with torch.enable_grad():
            loss = (self.ask(self.network, x_t, t, camera) - noise).square().mean()
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        return copy.deepcopy(
            {
                "weights": {name: p.detach() for name, p in self.trained.items()},
                "optimizer": self.optimizer.state_dict(),
            }
        )

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        if set(state["weights"]) != set(self.trained):
            raise ValueError("this state belongs to a second network of another shape")
        for name, value in state["weights"].items():
            self.trained[name].copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
