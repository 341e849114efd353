# SPDX-License-Identifier: Apache-2.0
"""The Gaussian renderer fulfils the contract, on every back-end and with every strategy."""

from __future__ import annotations

from representations.gaussians import DensifyConfig, GaussianConfig, GaussianRenderer, InitConfig

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
                steps=self.refine_steps,
                backend=self.backend,
                sh_degree=self.sh_degree,
                densify=densify,
                # Dense enough that the cut at 1/255, which no gradient sees, carries little light.
                init=InitConfig(opacity=0.7),
            )
        )

    def parameters(self, renderer):
        return [*renderer.gaussians.parameters(), *renderer.environment.parameters()]


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
