# SPDX-License-Identifier: Apache-2.0
"""A Stable Diffusion whose network sees several views of one shape side by side."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .base import Condition
from .folder import ModelError, naming
from .latents import ask_unet
from .source import INDEX, Opened
from .stable import StableDiffusion, networks
from .together import POSE, nowhere, poses, see_together

MOST_VIEWS = 64


class MultiView(StableDiffusion):
    """Its UNet is diffusers' with ``class_embed_type="projection"`` of 16 numbers: the pose. Rows
    of a call are views of one shape, ``views_together`` in a row, and attend to each other.

    ``model_index.json`` says how many as ``views_together``.
    """

    def __init__(
        self,
        unet: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        scheduler: Any,
        views: int,
        world: Tensor | None = None,
    ) -> None:
        """``views`` are seen together; ``world`` [4, 4] makes the model's world of ours."""
        super().__init__(unet, vae, text_encoder, tokenizer, scheduler)
        self.views_together = views
        self.world = world
        see_together(self.unet, views)

    @staticmethod
    def of(found: Opened) -> MultiView:
        """The model in a folder. ModelError where it is none."""
        views = found.index.get("views_together")
        if not isinstance(views, int) or isinstance(views, bool) or not 2 <= views <= MOST_VIEWS:
            raise ModelError(
                f"{found.folder / INDEX} has views_together={views!r}: how many views the network "
                f"sees side by side, 2 to {MOST_VIEWS}, is needed"
            )
        told = found.config("unet").get("projection_class_embeddings_input_dim")
        if told != POSE:
            raise ModelError(
                f"the unet of the model in {found.folder} is told {told!r} numbers of a camera "
                f"(projection_class_embeddings_input_dim): {POSE} are known here, a pose row by row"
            )
        with naming(f"the model {found.name}"):
            model = MultiView(*networks(found), views)
            model.try_out()
        return model

    def seen_from(self, condition: Condition, camera_to_world: Tensor) -> Condition:
        """``condition`` for pictures of those cameras [B, 4, 4]: with a part ``camera`` [B, 16]."""
        return Condition({**condition.parts, "camera": self._pose(camera_to_world)})

    def _pose(self, camera_to_world: Tensor) -> Tensor:
        """What the network is told of cameras [B, 4, 4], [B, 16]; zeros of zeros."""
        if self.world is not None:
            camera_to_world = self.world.to(camera_to_world) @ camera_to_world
        return poses(camera_to_world)

    def _noise(
        self,
        unet: Any,
        x_t: Tensor,
        t: Tensor,
        condition: Condition,
        camera: Tensor | None = None,
    ) -> Tensor:
        if camera is not None:  # of a copy, which is told the pose as it is
            camera = self._pose(camera.unflatten(1, (4, 4)))
        else:
            camera = condition.parts.get("camera", nowhere(len(x_t), x_t))
        out = ask_unet(unet, x_t, t, condition["hidden"], camera.to(x_t))
        return self._as_noise(out, self.prediction, x_t, t)
