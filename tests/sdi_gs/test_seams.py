# SPDX-License-Identifier: Apache-2.0
"""The seams between the rooms: conditions, schedules that end, views that belong together."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest
import torch
from torch import Generator, Tensor

from representations.cameras import camera_to_world
from sdi_gs.diffusion.analytic import GaussianMixture
from sdi_gs.diffusion.base import Condition, Denoiser
from sdi_gs.diffusion.schedule import (
    LEAST_SIGNAL,
    require_signal,
    scaled_linear_alpha_bar,
    with_signal,
)
from sdi_gs.diffusion.stable import StableDiffusion
from sdi_gs.errors import UserError
from sdi_gs.guidance import (
    GuidanceConfig,
    PromptConfig,
    PromptSet,
    ScoreDistillation,
    TimeConfig,
    Viewpoints,
)
from sdi_gs.guidance.noise import DDIMInversion, RandomNoise
from sdi_gs.guidance.prompts import FRONT, OVERHEAD, SIDE, perp_neg_blend, view_index
from sdi_gs.guidance.times import Times
from sdi_gs.ramp import Ramp
from sdi_gs.team import ALONE, share
from sdi_gs.views import ViewPolicy


def condition(rows: int, seed: int = 0) -> Condition:
    """Two parts of other shapes and one that is no floating point."""
    rng = Generator().manual_seed(seed)
    return Condition(
        {
            "hidden": torch.randn(rows, 3, 5, generator=rng),
            "pooled": torch.randn(rows, 4, generator=rng),
            "sizes": torch.full((rows, 2), 64),
        }
    )


def same(one: Condition, other: Condition) -> bool:
    return one.parts.keys() == other.parts.keys() and all(
        torch.equal(one[name], other[name]) for name in one.parts
    )


def test_the_verbs_of_a_condition_are_those_of_its_parts() -> None:
    c = condition(5)
    index = torch.tensor([4, 0, 0])
    assert all(torch.equal(c.rows(index)[name], c[name][index]) for name in c.parts)
    assert same(Condition.cat(list(c.split(2))), c)
    assert [len(piece) for piece in c.split(2)] == [2, 2, 1]
    assert len(c) == 5


def test_a_blend_is_linear_and_ends_where_its_ends_are() -> None:
    one, other = condition(3, 1), condition(3, 2)
    assert same(one.blend(other, torch.ones(3)), one)
    assert same(one.blend(other, torch.zeros(3)), other)
    share_ = torch.tensor([0.25, 0.5, 1.0])
    mixed = one.blend(other, share_)
    expected = 0.25 * one["hidden"][0] + 0.75 * other["hidden"][0]
    torch.testing.assert_close(mixed["hidden"][0], expected)
    assert torch.equal(mixed["pooled"][2], one["pooled"][2])


def test_what_cannot_be_blended_or_joined_is_refused() -> None:
    one = condition(2)
    other = Condition({**condition(2).parts, "sizes": torch.full((2, 2), 32)})
    with pytest.raises(ValueError, match="'sizes' of a condition is not blendable"):
        one.blend(other, torch.full((2,), 0.5))
    with pytest.raises(ValueError, match="cannot stand in one batch"):
        Condition.cat([one, Condition({"hidden": one["hidden"]})])
    with pytest.raises(ValueError, match="one row per sample"):
        Condition({"hidden": torch.zeros(2, 3), "pooled": torch.zeros(1, 3)})


class TwoParts(GaussianMixture):
    """The mixture's weights in two parts, which only together say what the mixture wants: if
    guidance looked inside a condition, it would miss one."""

    def embed(self, prompts: Sequence[str]) -> Condition:
        weights = super().embed(prompts)["weights"]
        salt = torch.rand(weights.shape, generator=Generator().manual_seed(len(prompts)))
        return Condition({"one": weights - salt.to(weights), "two": salt.to(weights)})

    def predict_noise(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        whole = (condition["one"] + condition["two"]).clamp(min=0.0)
        return super().predict_noise(x_t, t, Condition({"weights": whole}))


def world(cls: type[GaussianMixture] = GaussianMixture) -> GaussianMixture:
    means = torch.randn(5, 4, 2, 2, generator=Generator().manual_seed(3)).double()
    names = {"mug": [0, 1, 2, 3], "front": [0], "side": [1], "back": [2], "blurry": [4]}
    return cls(means, torch.full((5,), 0.3), names=names)


def around(count: int) -> Viewpoints:
    return Viewpoints.orbit(torch.linspace(-170.0, 170.0, count), torch.full((count,), 20.0))


@pytest.mark.parametrize("perp_neg", ["none", "threestudio", "stable-dreamfusion"])
def test_a_condition_of_several_parts_guides_like_one_of_one(perp_neg: str) -> None:
    rgb = torch.rand(4, 3, 2, 2, generator=Generator().manual_seed(0))
    targets = []
    for cls in (GaussianMixture, TwoParts):
        model = world(cls)
        config = PromptConfig(perp_neg=perp_neg)  # type: ignore[arg-type]
        prompts = PromptSet(model, "mug", "blurry", config)
        guide = ScoreDistillation(model, prompts, DDIMInversion(steps=2), steps=10)
        targets.append(guide(rgb, around(4), 5, Generator().manual_seed(1)).target)
    torch.testing.assert_close(targets[0], targets[1], rtol=1e-6, atol=1e-8)


def test_a_schedule_ends_where_the_signal_does() -> None:
    table = scaled_linear_alpha_bar()
    assert require_signal(table) is table
    zero = (table - table[-1]) * table[0] / (table[0] - table[-1])  # zero terminal SNR
    with pytest.raises(ValueError, match=r"the last (\d+) of 1000") as caught:
        require_signal(zero)
    kept = int(str(caught.value).rpartition("[:")[2].rstrip("]"))
    assert require_signal(zero[:kept])[-1] >= LEAST_SIGNAL > zero[kept]
    assert len(with_signal(zero)) == kept
    for wrong in (table.flip(0), 1.5 * table, table[None], table[:1]):
        with pytest.raises(ValueError, match="alpha_bar"):
            require_signal(wrong)
    with pytest.raises(ValueError, match="hold no signal"):
        GaussianMixture(torch.zeros(1, 1, 1, 1), torch.ones(1), alpha_bar=zero)


def test_a_model_of_zero_terminal_snr_is_cut_and_says_so(
    tiny_model: object, caplog: pytest.LogCaptureFixture
) -> None:
    model = StableDiffusion.load(tiny_model)  # type: ignore[arg-type]
    assert len(model.alpha_bar) == 1000
    assert not caplog.records

    class Scheduler:
        config = type("Config", (), {"prediction_type": "v_prediction"})
        alphas_cumprod = (model.alpha_bar - model.alpha_bar[-1]).clamp(min=0.0)

    with caplog.at_level(logging.WARNING):
        cut = StableDiffusion(
            model.unet, model.vae, model.text_encoder, model.tokenizer, Scheduler()
        )
    assert 900 < len(cut.alpha_bar) < 1000
    assert f"the first {len(cut.alpha_bar)} are used" in caplog.text


@pytest.mark.parametrize("total", [10, 100, 1000, 4000])
def test_nothing_is_counted_in_thousandths(total: int) -> None:
    """A schedule of another length: shares of it, and the number of steps of an inversion, stay."""
    table = torch.linspace(0.999, 0.01, total, dtype=torch.float64)
    model = GaussianMixture(torch.zeros(1, 1, 2, 2).double(), torch.ones(1), alpha_bar=table)
    noise = DDIMInversion(tau_max=0.0)
    guide = ScoreDistillation(
        model, "x", noise, config=GuidanceConfig(t=TimeConfig(high=Ramp(0.7, 0.7))), steps=1
    )
    from sdi_gs.ramp import Progress

    t = guide.times(1, Progress(0, 1), Generator()).host
    assert int(t) == round(0.7 * total)
    times = noise.times(t, t, table)[0]
    assert len(times.unique()) - 1 == 7
    last = torch.tensor([total - 1])
    steps = noise.times(last, last, table).shape[1] - 1
    assert steps == 10  # int(10 t) at t = 1, the paper's start


class Groups(GaussianMixture):
    """A model that must see four views of one shape side by side, and complains when it does not.

    The elevation of a view is in its condition, and is the same within a group.
    """

    def __init__(self) -> None:
        super().__init__(torch.zeros(1, 3, 2, 2).double(), torch.ones(1))
        self.views_together = 4
        self.calls: list[Tensor] = []

    def predict_noise(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        assert len(x_t) % 4 == 0
        for part in (t, condition["elevation"], condition["words"]):
            assert bool((part.reshape(-1, 4) == part.reshape(-1, 4)[:, :1]).all())
        turn = condition["azimuth"].reshape(-1, 4)
        assert torch.allclose((turn - turn[:, :1]) % 360, torch.tensor([0.0, 90, 180, 270]))
        self.calls.append(condition["words"])
        return super().predict_noise(x_t, t, Condition({"weights": torch.ones(len(x_t), 1)}))


class Around:
    """A subject whose conditions carry the cameras, and a negative that counts in some views."""

    def conditions(self, viewpoints: Viewpoints) -> object:
        from sdi_gs.guidance import Conditions

        def told(word: int) -> Condition:
            count = len(viewpoints)
            return Condition(
                {
                    "words": torch.full((count,), word),
                    "elevation": viewpoints.elevation_deg,
                    "azimuth": viewpoints.azimuth_deg,
                }
            )

        weights = torch.zeros(len(viewpoints), 1)
        weights[5] = -1.0  # one view of the second group
        return Conditions(told(0), told(1), [told(2)], weights, told(3))


def test_views_that_belong_together_are_drawn_timed_and_asked_together() -> None:
    model = Groups()
    assert isinstance(model, Denoiser)
    cameras, viewpoints = ViewPolicy().sample(8, 16, Generator().manual_seed(0), together=4)
    assert len(cameras) == 8
    config = GuidanceConfig(t=TimeConfig(high=Ramp(0.98, 0.98), low=Ramp(0.02, 0.02)))
    guide = ScoreDistillation(model, Around(), DDIMInversion(steps=2), config=config, steps=10)  # type: ignore
    guided = guide(torch.rand(8, 3, 2, 2), viewpoints, 0, Generator().manual_seed(2))
    assert len(guided.t.unique()) == 2  # one time per group
    # The negative counts in one view: its whole group is asked, and no other.
    assert {tuple(call.tolist()) for call in model.calls} == {(*[0] * 8, *[1] * 8, *[2] * 4)}
    with pytest.raises(ValueError, match="sees 4 views of a shape together"):
        guide(torch.rand(6, 3, 2, 2), viewpoints[:6], 0)


def test_groups_of_cameras_stand_on_a_circle() -> None:
    policy = ViewPolicy(azimuth_deg=(10.0, 10.0), elevation_deg=(5.0, 5.0), distance=(2.0, 2.0))
    cameras, seen = policy.sample(4, 16, Generator(), together=4)
    assert seen.azimuth_deg.tolist() == pytest.approx([10.0, 100.0, -170.0, -80.0])
    torch.testing.assert_close(cameras.positions.norm(dim=-1), torch.full((4,), 2.0))
    torch.testing.assert_close(camera_to_world(cameras.world_to_cam), seen.camera_to_world)
    with pytest.raises(ValueError, match="6 views do not make groups of 4"):
        policy.sample(6, 16, Generator(), together=4)


def test_batches_are_cut_between_groups() -> None:
    assert share(ALONE, 8, 4, 4) == [slice(0, 4), slice(4, 8)]
    with pytest.raises(UserError, match=r"groups of 4 views.* a multiple of 4, such as batch=4"):
        share(ALONE, 6, None, 4)
    with pytest.raises(UserError, match="write one of 4, 8"):
        share(ALONE, 8, 2, 4)


def test_viewpoints_have_the_pose_of_the_camera_that_was_drawn() -> None:
    """With all its jitter; the angles stay those before it."""
    policy = ViewPolicy(position_jitter=0.3, target_jitter=0.3, up_jitter=0.3)
    cameras, seen = policy.sample(5, 16, Generator().manual_seed(0))
    torch.testing.assert_close(seen.camera_to_world[:, :3, 3], cameras.positions)
    point = torch.tensor([0.3, -0.2, 0.5, 1.0])
    in_camera = cameras.world_to_cam @ point
    back = seen.camera_to_world @ (in_camera * torch.tensor([1.0, -1.0, -1.0, 1.0]))[..., None]
    torch.testing.assert_close(back[..., 0], point.expand(5, 4), rtol=1e-5, atol=1e-5)
    aimed = Viewpoints.orbit(seen.azimuth_deg, seen.elevation_deg, seen.distance)
    assert float((aimed.camera_to_world - seen.camera_to_world).abs().max()) > 0.1


def test_times_are_the_same_twice() -> None:
    t = Times.of(torch.tensor([3, 7]), "cpu")
    assert torch.equal(t.host, t.device)
    away = Times.of(torch.tensor([3, 7]), "meta")
    assert (away.host.tolist(), away.device.device.type) == ([3, 7], "meta")


def test_noise_is_told_how_far_the_run_is() -> None:
    """A ramp of a strategy moves over the run, without anybody making copies of it."""
    model = world()
    kappas = []
    for step in (0, 9):
        guide = ScoreDistillation(
            model, "mug", DDIMInversion(entropy=Ramp(5.0, 0.0), tau_max=0.0, cfg_scale=0.0),
            config=GuidanceConfig(t=TimeConfig(high=Ramp(0.5, 0.5))), steps=10,
        )  # fmt: skip
        rgb = torch.full((64, 3, 2, 2), 0.5)
        kappas.append(guide(rgb, around(64), step, Generator().manual_seed(0)).kappa.std())
    assert kappas[0] > 2.0 * kappas[1]


def test_random_noise_needs_no_prediction() -> None:
    model = world()
    guide = ScoreDistillation(model, "mug", RandomNoise(), steps=2)
    assert guide(torch.rand(1, 3, 2, 2), around(1), 0).evaluations == 2


@pytest.mark.parametrize("perp_neg", ["threestudio", "stable-dreamfusion"])
def test_overhead_begins_above_its_threshold_not_at_it(perp_neg: str) -> None:
    """For the words and for Perp-Neg alike (DreamFusion: elevation > 60 degrees)."""
    config = PromptConfig(perp_neg=perp_neg)  # type: ignore[arg-type]
    at, above = 60.0, 60.001
    seen = Viewpoints.orbit(torch.tensor([50.0, 50.0]), torch.tensor([at, above]))
    blend = perp_neg_blend(seen, config)
    assert bool((blend.weight[0] != 0.0).all())
    assert bool((blend.weight[1] == 0.0).all())
    assert blend.pair[:, 0].tolist() == [FRONT, OVERHEAD]
    assert view_index(seen, config).tolist() == [SIDE, OVERHEAD]


@pytest.mark.parametrize("steps", [0, -3])
def test_a_run_has_a_step(steps: int) -> None:
    with pytest.raises(ValueError, match="at least 1 step"):
        ScoreDistillation(world(), "mug", steps=steps)
