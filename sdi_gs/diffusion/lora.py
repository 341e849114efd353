# SPDX-License-Identifier: Apache-2.0
"""A second noise predictor that shares the frozen network's weights: LoRA and a camera embedding.

Low-Rank Adaptation (arXiv 2106.09685) of every attention projection, and the pose of the camera
added to the time embedding through a small network of its own, as ProlificDreamer does. Both start
at nothing: before the first lesson the predictions are the frozen network's.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Generator, Tensor, nn

from .schedule import eps_of_v, mix

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


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


def projections(unet: Any) -> list[tuple[str, nn.Linear]]:
    """The attention projections of a network, which low-rank weights stand beside, by name."""
    return [
        (name, module)
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear) and name.endswith(tuple("." + p for p in PROJECTIONS))
    ]


def low_rank_parameters(unet: Any, rank: int) -> int:
    """Numbers that :class:`LoraLearner` trains beside ``unet``."""
    width = int(unet.time_embedding.linear_2.out_features)
    low = sum(rank * (m.in_features + m.out_features) for _, m in projections(unet))
    return low + 16 * width + width**2


def _sent(drawn: Tensor, like: Tensor) -> Tensor:
    """``drawn`` where ``like`` is; a card is not waited for."""
    if like.is_cuda:
        return drawn.pin_memory().to(like.device, non_blocking=True)
    return drawn.to(like.device)


class LoraLearner:
    """Satisfies :class:`~sdi_gs.diffusion.base.NoiseLearner`.

    Args:
        unet: the frozen network; it is not changed, and its weights are not copied.
        hidden: encoded prompt [1, tokens, width], the same for all views.
        alpha_bar: schedule [T].
        prediction: "epsilon" or "v_prediction", what the network predicts.
    """

    def __init__(
        self,
        unet: Any,
        hidden: Tensor,
        alpha_bar: Tensor,
        prediction: str,
        rank: int,
        rate: float,
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        shared = {id(p): p for p in (*unet.parameters(), *unet.buffers())}
        self.unet = copy.deepcopy(unet, shared)
        self.hidden = hidden
        self.alpha_bar = alpha_bar
        self.prediction = prediction
        self.dtype = next(unet.parameters()).dtype
        width = self.unet.time_embedding.linear_2.out_features
        self.unet.class_embedding = CameraEmbedding(width, generator, next(unet.parameters()))
        for name, module in projections(self.unet):
            parent = self.unet.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], LowRank(module, rank, generator))
        self.trained = {
            name: parameter
            for name, parameter in self.unet.named_parameters()
            if id(parameter) not in shared
        }
        self.optimizer = torch.optim.AdamW(list(self.trained.values()), lr=rate, weight_decay=0.01)

    def _eps(self, x_t: Tensor, t: Tensor, camera: Tensor) -> Tensor:
        words = self.hidden.expand(len(x_t), *self.hidden.shape[1:])
        out: Tensor = self.unet(
            x_t.to(self.dtype), t, encoder_hidden_states=words.to(self.dtype), class_labels=camera
        ).sample.to(x_t.dtype)
        if self.prediction == "epsilon":
            return out
        return eps_of_v(out, x_t, self.alpha_bar[t.clamp(min=0)].to(x_t.dtype))

    @torch.no_grad()
    def predict(self, x_t: Tensor, t: Tensor, camera: Tensor | None) -> Tensor:
        nowhere = torch.zeros(len(x_t), 16, device=x_t.device)
        return self._eps(x_t, t, nowhere if camera is None else camera)

    def learn(self, latents: Tensor, camera: Tensor, rng: Generator) -> Tensor:
        total = len(self.alpha_bar)
        t = _sent(torch.randint(total, (len(latents),), generator=rng), latents)
        noise = _sent(torch.randn(latents.shape, generator=rng), latents).to(latents)
        x_t = mix(latents, noise, self.alpha_bar.to(latents)[t])
        with torch.enable_grad():
            loss = (self._eps(x_t, t, camera) - noise).square().mean()
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
