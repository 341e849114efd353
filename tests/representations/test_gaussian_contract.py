# SPDX-License-Identifier: Apache-2.0
"""The Gaussian renderer fulfils the contract, on every back-end and with every strategy."""

from __future__ import annotations

import torch
from scipy.spatial.transform import Rotation

from representations.gaussians import DensifyConfig, GaussianConfig, GaussianRenderer, InitConfig
from representations.harmonics import rotate_rest
from representations.ops.splats.reference import rotation_matrices

from .contract import RendererContract


class GaussianContract(RendererContract):
    backend = "cpu"
    kind = "quantile"
    sh_degree = 0

    def make(self):
        densify = DensifyConfig(kind=self.kind, start=0.0, stop=1.0, every=2, grow_grad2d=1e-6)
        return GaussianRenderer(
            GaussianConfig(
                count=120,
                max_count=160,
                backend=self.backend,
                sh_degree=self.sh_degree,
                densify=densify,
                # Dense enough that the cut at 1/255, which no gradient sees, carries little light.
                init=InitConfig(opacity=0.7),
            ),
            steps=self.refine_steps,
        )

    def parameters(self, renderer):
        return [*renderer.gaussians.parameters(), *renderer.environment.parameters()]

    def motions(self):
        half_turns = torch.tensor([[0.9, 0.1, -0.3, 0.4], [0.2, -0.7, 0.5, 0.6]])
        rotations = rotation_matrices(half_turns)
        shifts = torch.tensor([[0.3, -0.2, 0.1], [-1.0, 0.5, 2.0]])
        return list(zip(rotations, shifts, strict=True))

    def move(self, renderer, rotation, shift):
        splats = renderer.gaussians
        splats.means.copy_(splats.means @ rotation.T + shift)
        axes = rotation @ rotation_matrices(splats.quat_wxyz)
        xyzw = torch.from_numpy(Rotation.from_matrix(axes.double().numpy()).as_quat())
        splats.quat_wxyz.copy_(xyzw[:, [3, 0, 1, 2]])
        splats.sh_rest.copy_(rotate_rest(splats.sh_rest, rotation))


class TestNumba(GaussianContract):
    pass


class TestReference(GaussianContract):
    backend = "reference"


class TestThreshold(GaussianContract):
    kind = "threshold"


class TestMcmc(GaussianContract):
    kind = "mcmc"


class TestHarmonics(GaussianContract):
    sh_degree = 2
