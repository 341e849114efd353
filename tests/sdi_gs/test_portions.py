# SPDX-License-Identifier: Apache-2.0
"""A step in portions, or shared by several processes, is the step as a whole."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from representations.cameras import orbit
from representations.instant_ngp import InstantNGPConfig, InstantNGPRenderer
from representations.instant_ngp.config import GridConfig, MarchConfig, MaterialConfig
from representations.interface import Alone, Exchange, Renderer
from sdi_gs.errors import UserError
from sdi_gs.guidance.draws import ViewSlice, uniform
from sdi_gs.ramp import Ramp
from sdi_gs.team import ALONE, Team, share
from sdi_gs.trainer import Training, micro_batches, train, train_step

from ..torchrun import pair
from .test_trainer import training


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Second(Team):
    """The second of two processes, as far as it can be seen from here."""

    rank, count = 1, 2


def test_views_are_shared_evenly_and_in_order() -> None:
    assert share(ALONE, 4, None) == [slice(0, 4)]
    assert share(ALONE, 4, 2) == [slice(0, 2), slice(2, 4)]
    assert share(Second(), 8, None) == [slice(4, 8)]
    assert share(Second(), 8, 1) == [slice(k, k + 1) for k in range(4, 8)]
    with pytest.raises(UserError, match=r"batch=3 .* 2 processes: .* such as batch=2"):
        share(Second(), 3, None)
    with pytest.raises(UserError, match=r"micro_batch=3 .* the 4 views .* one of 1, 2, 4"):
        share(ALONE, 4, 3)


def field_training(exchange: Exchange | None = None) -> Training:
    """A radiance field with everything that is random about a view: ray starts and lamps."""
    config = InstantNGPConfig(
        grid=GridConfig(levels=4, start_levels=4, log2_size=10, max_resolution=32),
        march=MarchConfig(resolution=16, samples=64, max_samples=64, update_every=5),
        material=MaterialConfig(albedo_steps=0, albedo_share=0.2, textureless_share=0.2),
    )
    weights = {name: Ramp(0.1, 0.1) for name in ("orientation", "z_variance", "opaque")}
    return dataclasses.replace(
        training(), renderer=InstantNGPRenderer(config), weights=weights
    )  # fmt: skip


def splat_training(exchange: Exchange | None = None) -> Training:
    weights = {name: Ramp(0.1, 0.1) for name in ("opacity", "tv_rgb", "convexity")}
    return training(weights=weights, exchange=exchange)


def parameters(renderer: Renderer) -> dict[str, Tensor]:
    return {
        f"{group['name']} {k}": parameter.detach().clone()
        for optimizer in renderer.optimizers
        for group in optimizer.param_groups
        for k, parameter in enumerate(group["params"])
    }


@pytest.mark.parametrize("make", [splat_training, field_training], ids=["splats", "field"])
@pytest.mark.parametrize("micro_batch", [1, 2])
def test_a_step_in_portions_is_the_step_as_a_whole(
    make: Callable[[], Training], micro_batch: int
) -> None:
    """Gradients agree to rounding, so do the parameters where Adam does not divide by nothing."""
    found = []
    for portion in (None, micro_batch):
        run = dataclasses.replace(make(), batch=4, micro_batch=portion)
        gradients: dict[str, Tensor] = {}

        (optimizer,) = run.renderer.optimizers

        def keep(
            *_: object, into: dict[str, Tensor] = gradients, of: torch.optim.Optimizer = optimizer
        ) -> None:
            for group in of.param_groups:
                for k, parameter in enumerate(group["params"]):
                    if parameter.grad is not None:
                        into[f"{group['name']} {k}"] = parameter.grad.clone()

        optimizer.register_step_pre_hook(keep)
        report = train_step(run, 0)
        found.append((report, gradients, run.rng.get_state()))
    (whole, expected, state), (cut, got, same_state) = found
    assert cut.losses == pytest.approx(whole.losses, rel=1e-5)
    assert (cut.t, cut.evaluations) == (pytest.approx(whole.t), whole.evaluations)
    assert torch.equal(state, same_state)
    assert expected.keys() == got.keys()
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-5 * scale, msg=name)
    assert max(float(g.abs().max()) for g in expected.values()) > 1e-5


def test_statistics_of_growth_do_not_depend_on_portions() -> None:
    runs = [dataclasses.replace(splat_training(), batch=4, micro_batch=m) for m in (None, 1)]
    for run in runs:
        for step in range(3):
            train_step(run, step)
    whole, cut = (run.renderer.statistics for run in runs)  # type: ignore[attr-defined]
    torch.testing.assert_close(cut.pull, whole.pull, rtol=2e-3, atol=1e-6)
    assert torch.equal(cut.views, whole.views)
    torch.testing.assert_close(cut.radius, whole.radius)
    assert float(whole.views.max()) == 12


def test_a_portion_may_not_forget_a_view() -> None:
    run = dataclasses.replace(splat_training(), batch=6, micro_batch=2)
    before = run.rng.get_state()
    seen = []
    for views, rng in micro_batches(run):
        assert isinstance(rng, ViewSlice)
        assert torch.equal(rng.rng.get_state(), before)
        seen += list(range(6))[views]
        uniform(2, rng)
    assert seen == list(range(6))


def test_rays_and_lamps_follow_the_view_and_not_the_portion() -> None:
    renderer = field_training().renderer
    cameras = orbit(*(torch.tensor([v] * 3) for v in (20.0, 15.0, 2.2, 40.0)), (12, 12))
    together, _ = renderer.render(cameras, torch.ones(3, 3))
    for k in range(3):
        alone, _ = renderer.render(cameras[k : k + 1], torch.ones(1, 3))
        torch.testing.assert_close(alone.rgb[0], together.rgb[k], rtol=1e-5, atol=1e-6)
    # The same camera three times, and yet three different pictures.
    assert float((together.rgb[0] - together.rgb[1]).detach().abs().max()) > 1e-4


def test_a_method_that_learns_from_all_views_refuses_portions(sdi_gs, tmp_path: Path) -> None:
    for method in ("vsd", "stein"):
        said = sdi_gs(
            "generate", "a red mug", "--config", "mini", "--guidance", method,
            "--out", tmp_path / method, "batch=2", "micro_batch=1",
        )  # fmt: skip
        assert said.code == 2
        assert "leave micro_batch out" in said.err
        assert not (tmp_path / method).exists()
    said = sdi_gs("generate", "a red mug", "--config", "mini", "micro_batch=3")
    assert said.code == 2
    assert "micro_batch=3 does not divide the 4 views" in said.err


KINDS = {"splats": splat_training, "field": field_training}


def train_and_keep(team: Team, out: Path) -> None:
    """Twelve steps of four views of each kind, and what they came to in the folder ``out``."""
    for kind, make in KINDS.items():
        run = dataclasses.replace(make(exchange=team), batch=4, team=team, steps=12)
        reports = list(train(run))
        torch.save(parameters(run.renderer), out / f"{kind}-{team.count}-{team.rank}.pt")
        if team.leads:
            rows = [[r.losses, r.t, r.evaluations, r.refined.size] for r in reports]
            (out / f"{kind}-{team.count}.json").write_text(json.dumps(rows))
    assert team.any(team.rank == 1, torch.device("cpu")) == (team.count == 2)


WORKER = """
import sys
from pathlib import Path

import torch

torch.set_num_threads(1)
from sdi_gs.team import joined
from tests.sdi_gs.test_portions import train_and_keep

with joined() as team:
    train_and_keep(team, Path(sys.argv[1]))
"""


def test_two_processes_make_what_one_makes(tmp_path: Path) -> None:
    """Twelve steps of four views, structure edits included: the same splats and field, to the
    rounding of sums in another order, which Adam's first steps magnify. Both kinds in one pair of
    processes, because to start one takes longer than the steps; who is alone needs none."""
    pair(["-c", WORKER, tmp_path], tmp_path)
    train_and_keep(ALONE, tmp_path)
    for kind in KINDS:
        alone = torch.load(tmp_path / f"{kind}-1-0.pt")
        first, second = (torch.load(tmp_path / f"{kind}-2-{rank}.pt") for rank in (0, 1))
        rows = [json.loads((tmp_path / f"{kind}-{n}.json").read_text()) for n in (1, 2)]
        assert len(rows[0]) == 12
        for (one_losses, *one), (two_losses, *two) in zip(*rows, strict=True):
            assert two == one, kind
            assert two_losses == pytest.approx(one_losses, rel=1e-3), kind
        assert alone.keys() == first.keys()
        for name in alone:
            assert torch.equal(first[name], second[name]), name  # both did the same step
            difference = (first[name] - alone[name]).norm()
            assert float(difference) <= 1e-3 * float(alone[name].norm()), f"{kind}, {name}"


def test_two_processes_leave_one_run(
    sdi_gs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line, under torchrun's environment: one folder, one voice, the same asset."""
    settings = [
        "generate", "a red mug", "--config", "mini", "--steps", "3",
        "batch=2", "threads=1", "representation.count=200", "representation.max_count=200",
        "output.turntable.frames=2", "output.turntable.size=32", "output.turntable.format=gif",
    ]  # fmt: skip
    said = "".join(
        one.stdout for one in pair(["-m", "sdi_gs", *settings, "--out", "two"], tmp_path)
    )
    monkeypatch.chdir(tmp_path)
    alone = sdi_gs(*settings, "--out", "one")
    assert alone.code == 0, alone.err
    assert said.count("loading mini") == 1
    assert "final.ply" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    from representations.export import read_ply

    one, two = (read_ply(tmp_path / name / "final.ply") for name in ("one", "two"))
    torch.testing.assert_close(two.means, one.means, rtol=0, atol=2e-3)
    torch.testing.assert_close(two.sh_dc, one.sh_dc, rtol=0, atol=2e-2)


def test_one_process_is_alone() -> None:
    values = torch.ones(3)
    assert ALONE.total(values) is values
    assert Alone().greatest(values) is values
    assert ALONE.leads
    assert not ALONE.any(False, torch.device("cpu"))
    assert ALONE.any(True, torch.device("cpu"))
