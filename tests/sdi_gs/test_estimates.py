# SPDX-License-Identifier: Apache-2.0
"""Depth as an estimator sees it: the formula, the networks that are read, hollow faces, runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from representations.cameras import turntable
from representations.cloud import SplatCloud
from representations.gaussians import GaussianConfig, GaussianRenderer
from representations.gaussians.initialise import from_points
from representations.interface import Cameras
from sdi_gs import build, methods
from sdi_gs.config import load
from sdi_gs.errors import UserError
from sdi_gs.estimates import Estimates, disagreement
from sdi_gs.estimates.folder import DepthNetwork, Estimator, _is_metric
from sdi_gs.estimates.folder import load as load_network
from sdi_gs.estimates.small import WEIGHTS
from sdi_gs.evaluation.judge import JUDGE_DIR
from sdi_gs.mini.corpus import COLORS, truth
from sdi_gs.mini.geometry import depth_of
from sdi_gs.mini.render import cast
from sdi_gs.mini.shapes import Solid
from sdi_gs.ramp import Ramp
from sdi_gs.trainer import train, train_step

from .test_trainer import training


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_it_is_the_weighted_correlation_of_numpy() -> None:
    depth, seen, alpha = 1 + noise(3, 1, 6, 5), noise(3, 1, 6, 5, seed=1), noise(3, 1, 6, 5, seed=2)
    depth[0, 0, 0] = 0.0  # nothing there, whatever alpha says
    found = disagreement(depth, seen, alpha)
    for view in range(3):
        one, other, weight = (x[view].flatten().numpy() for x in (depth, seen, alpha))
        use = (weight > 0.5) & (one > 0)
        c = np.cov(1 / one[use], other[use], aweights=weight[use])
        rho = c[0, 1] / np.sqrt(c[0, 0] * c[1, 1])
        assert float(found[view]) == pytest.approx(1 - rho, abs=1e-12)


def test_neither_scale_nor_offset_nor_what_is_not_covered_counts() -> None:
    depth, alpha = 1 + noise(2, 1, 8, 8), noise(2, 1, 8, 8, seed=2)
    seen = torch.where(alpha > 0.5, 3.0 / depth - 7.0, 100 * noise(2, 1, 8, 8, seed=3))
    assert disagreement(depth, seen, alpha).tolist() == pytest.approx([0.0, 0.0], abs=1e-9)
    assert disagreement(depth, -seen, alpha).tolist() == pytest.approx([2.0, 2.0], abs=1e-9)


def test_its_slope_is_that_of_finite_differences() -> None:
    depth, seen, alpha = 1 + noise(2, 1, 4, 4), noise(2, 1, 4, 4, seed=1), noise(2, 1, 4, 4, seed=2)
    depth.requires_grad_()
    assert torch.autograd.gradcheck(lambda d: disagreement(d, seen, alpha), depth)


@pytest.mark.parametrize(
    ("depth", "seen", "alpha"), [(2.0, None, 1.0), (None, 0.3, 1.0), (None, None, 0.2)]
)
def test_what_is_flat_or_empty_costs_one_and_pulls_nowhere(
    depth: float | None, seen: float | None, alpha: float
) -> None:
    shape = (1, 1, 6, 6)
    drawn = (1 + noise(*shape) if depth is None else torch.full(shape, depth)).requires_grad_()
    estimate = noise(*shape, seed=1) if seen is None else torch.full(shape, seen)
    cost = disagreement(drawn, estimate, torch.full(shape, alpha))
    cost.sum().backward()
    assert cost.tolist() == [1.0]
    assert drawn.grad is not None
    assert float(drawn.grad.abs().max()) == 0.0


def cameras(size: int = 32, count: int = 4) -> Cameras:
    return turntable(count, 10.0, 3.0, 30.0, (size, size))


def test_true_depth_is_that_of_a_cube() -> None:
    import trimesh

    box = trimesh.creation.box(extents=(1, 1, 1))
    solid = Solid(np.asarray(box.vertices), np.asarray(box.faces), np.zeros(12, int), ("main",))
    flat = turntable(4, 0.0, 3.0, 30.0, (32, 32))
    depth = depth_of(solid, flat)
    assert depth.shape == (4, 1, 32, 32)
    # The face that looks at the camera is 2.5 away in every pixel: z-depth, not distance.
    covered = depth > 0
    assert torch.allclose(depth[covered], torch.tensor(2.5), atol=1e-5)
    side = 1.0 / (2 * 2.5 * np.tan(np.radians(15.0)))
    assert float(covered.float().mean()) == pytest.approx(side**2, rel=0.05)


def true_pictures(kind: str, color: str, seen: Cameras) -> tuple[Tensor, Tensor]:
    solid = truth(kind)
    painted = [view.paint(solid.palette(COLORS[color])) for view in cast(solid, seen)]
    return torch.from_numpy(np.stack(painted)).float(), depth_of(solid, seen)


@pytest.fixture(scope="module")
def mini() -> Estimator:
    return load_network("mini", torch.device("cpu"))


@pytest.mark.parametrize(("kind", "color"), [("mug", "red"), ("cat", "teal"), ("duck", "yellow")])
def test_mini_s_estimator_sees_the_depth_of_true_objects(
    mini: Estimator, kind: str, color: str
) -> None:
    seen = cameras(64, 8)
    pictures, depth = true_pictures(kind, color, seen)
    cover = (depth > 0).float()
    found = mini(pictures)
    own = float(disagreement(depth, found, cover).mean())
    assert own < 0.25
    # It is what the picture says: another picture's estimate is far from it.
    other = float(disagreement(depth, found.roll(2, 0), cover).mean())
    assert other > own + 0.2


def mask(hollow: bool) -> SplatCloud:
    """A face on the front of a ball, or the same pressed inwards; painted with the ball's shade, so
    that its picture is the same from the front."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.rand(500, 2, generator=generator) * 2 - 1
    spread = 0.6 * spread[spread.square().sum(1) < 1]
    bulge = 0.5 * (1 - spread.square().sum(1) / 0.36)
    means = torch.stack([-bulge if hollow else bulge, spread[:, 0], spread[:, 1]], dim=1)
    shade = (0.3 + 1.2 * bulge)[:, None].expand(-1, 3)
    return from_points(
        means, shade, opacity=0.9, scale_factor=0.8, sh_degree=0, generator=generator
    )


def test_the_term_turns_a_hollow_face_outwards() -> None:
    """An estimator that is not fooled, the depth of the mask that bulges, and nothing else."""
    front = turntable(1, 0.0, 3.0, 30.0, (32, 32))
    config = GaussianConfig(count=10, max_count=2000)
    with torch.no_grad():
        right = GaussianRenderer(config, cloud=mask(False)).render(front, torch.ones(1, 3))[0]
    closeness = torch.where(right.depth > 0, 1 / right.depth.clamp(min=0.1), 0.0)
    shape = GaussianRenderer(config, cloud=mask(True))
    estimates = Estimates(lambda pictures: closeness)

    def cost() -> Tensor:
        render, _ = shape.render(front, torch.ones(1, 3))
        return estimates.terms(render, ["estimated_depth"])["estimated_depth"]

    assert cost().item() > 1.9  # inside out
    optimizer = torch.optim.Adam([shape.gaussians.means], lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        cost().backward()
        optimizer.step()
    assert cost().item() < 0.1


class TestFolders:
    @staticmethod
    def dpt(folder: Path) -> Path:
        from transformers import DPTConfig, DPTForDepthEstimation

        torch.manual_seed(0)
        config = DPTConfig(
            hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16,
            image_size=32, patch_size=16, backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8,
        )  # fmt: skip
        model = DPTForDepthEstimation(config).eval()
        for parameter in model.parameters():  # as published they start so small that it says 0
            torch.nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(
            json.dumps(
                {"size": {"height": 32, "width": 32}, "image_mean": [0.485, 0.456, 0.406],
                 "image_std": [0.229, 0.224, 0.225]}
            )
        )  # fmt: skip
        return folder

    def test_a_dpt_says_closeness_of_the_picture_as_it_wants_it(self, tmp_path: Path) -> None:
        from transformers import AutoModelForDepthEstimation

        folder = self.dpt(tmp_path)
        network = load_network(str(folder), torch.device("cpu"))
        assert not network.metric
        picture = noise(2, 3, 32, 32).float()
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        normal = (picture - mean[:, None, None]) / std[:, None, None]
        with torch.no_grad():
            model = AutoModelForDepthEstimation.from_pretrained(folder)
            wanted = model(pixel_values=normal).predicted_depth
        scale = float(wanted.std())
        assert scale > 1e-3
        assert torch.allclose(network(picture)[:, 0], wanted, atol=1e-4 * scale)
        assert not torch.allclose(network(0.9 * picture)[:, 0], wanted, atol=1e-2 * scale)
        # Other sizes are brought to the network's, and its answer back to theirs.
        assert network(noise(1, 3, 80, 48).float()).shape == (1, 1, 80, 48)
        # A picture of twice the size with the same content is the same picture.
        smooth = F.interpolate(noise(2, 3, 4, 4).float(), 256, mode="bicubic").clamp(0, 1)
        small, large = (network(F.avg_pool2d(smooth, k)) for k in (8, 4))
        assert float((F.avg_pool2d(large, 2) - small).abs().mean()) < 0.1 * float(small.std())

    def test_a_glpn_says_a_distance(self, tmp_path: Path) -> None:
        from transformers import GLPNConfig, GLPNForDepthEstimation

        config = GLPNConfig(
            hidden_sizes=[8] * 4, depths=[1] * 4, num_attention_heads=[1] * 4, sr_ratios=[1] * 4,
            decoder_hidden_size=8, drop_path_rate=0.0,
        )  # fmt: skip
        GLPNForDepthEstimation(config).eval().save_pretrained(tmp_path)
        network = load_network(str(tmp_path), torch.device("cpu"))
        assert isinstance(network, DepthNetwork)
        assert network.metric
        picture = noise(1, 3, 64, 64).float()
        with torch.no_grad():  # without preprocessor_config.json: [0, 1] -> [-1, 1]
            distance = network.model(pixel_values=picture * 2 - 1).predicted_depth
        assert torch.allclose(network(picture)[:, 0] * distance, torch.ones(1, 64, 64), atol=1e-5)

    def test_depth_pro_says_closeness_as_its_own_processor_knows(self) -> None:
        """The processor makes a distance of it. It is read, since it runs with torchvision only."""
        import transformers
        from transformers import AutoConfig

        models = Path(transformers.__file__).parent / "models"
        code = (models / "depth_pro" / "image_processing_depth_pro.py").read_text(encoding="utf-8")
        assert "depth = 1.0 / torch.clamp(depth" in code
        assert not _is_metric(AutoConfig.for_model("depth_pro"))

    @pytest.mark.parametrize(("kind", "metric"), [("dpt", False), ("zoedepth", True)])
    def test_other_kinds(self, kind: str, metric: bool) -> None:
        from transformers import AutoConfig

        assert _is_metric(AutoConfig.for_model(kind)) == metric

    def test_settings_of_depth_anything_say_it_and_an_unknown_kind_is_refused(self) -> None:
        from transformers import AutoConfig

        for said in ("relative", "metric"):
            config = AutoConfig.for_model("depth_anything", depth_estimation_type=said)
            assert _is_metric(config) == (said == "metric")
        with pytest.raises(ValueError, match=r"kind bert says a distance .* known are depth_any"):
            _is_metric(AutoConfig.for_model("bert"))

    def test_a_model_of_the_hub_is_fetched_or_its_absence_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import huggingface_hub

        asked = []

        def fetch(source: str, allow_patterns: list[str]) -> str:
            asked.append(source)
            if source != "someone/depth":
                raise OSError("no network")
            return str(self.dpt(tmp_path))

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
        assert load_network("someone/depth", torch.device("cpu")) is not None
        with pytest.raises(ValueError, match=r"cannot be fetched as a model of the hub \(no net"):
            load_network("someone/else", torch.device("cpu"))
        assert asked == ["someone/depth", "someone/else"]

    def test_what_is_no_estimator_is_refused_with_what_to_write(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"no such folder. Write mini, or a folder with"):
            load_network(str(tmp_path / "none"), torch.device("cpu"))
        with pytest.raises(ValueError, match=r"is no network for monocular depth"):
            load_network(str(JUDGE_DIR), torch.device("cpu"))
        cut = self.dpt(tmp_path)
        weights = cut / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(ValueError, match=r"is no network for monocular depth"):
            load_network(str(cut), torch.device("cpu"))


class TestRuns:
    SMALL = ("prompt=a red mug", "steps=2", "batch=2", "threads=1", "representation.count=100")

    def test_a_run_has_the_term_among_its_losses(self) -> None:
        run = build.training(load("mini", [*self.SMALL, "terms.estimated_depth=0.1"]))
        losses = [report.losses for report in train(run)]
        assert all(0.0 < loss["estimated_depth"] <= 0.2 for loss in losses)
        assert {"guidance", "estimated_depth"} <= set(losses[0])

    def test_a_mesh_whose_shape_is_trained_has_it_too(self) -> None:
        config = load("mini_mesh", ["prompt=a mug", "terms.estimated_depth=0.1"])
        assert methods.estimates_of(config, torch.device("cpu")) is not None
        words = ["prompt=a mug", "terms.estimated_depth=0.1", "representation.shape.rate=0"]
        with pytest.raises(UserError, match="representation=textured does not move"):
            methods.estimates_of(load("mini_mesh", words), torch.device("cpu"))

    def test_nothing_is_loaded_where_no_term_asks(self) -> None:
        assert build.training(load("mini", [*self.SMALL])).estimates is None

    def test_portions_of_a_step_have_the_mean_of_their_views(self) -> None:
        def step(micro_batch: int | None) -> tuple[float, Tensor]:
            run = training(weights={"estimated_depth": Ramp(0.5, 0.5)})
            run = replace(
                run, micro_batch=micro_batch, estimates=Estimates(lambda rgb: rgb.mean(1, True))
            )
            loss = train_step(run, 0).losses["estimated_depth"]
            return loss, run.renderer.gaussians.means.detach()  # type: ignore[attr-defined]

        (whole, moved), (portions, other) = step(None), step(1)
        assert whole == pytest.approx(portions, rel=1e-5)
        assert torch.allclose(moved, other, atol=1e-5)

    def test_an_estimator_that_no_term_asks_is_told(self) -> None:
        with pytest.raises(UserError, match=r"none asks it: write terms.estimated_depth=0.1 too"):
            build.training(load("mini", [*self.SMALL, "estimator.source=mini"]))

    @pytest.mark.parametrize(
        ("preset", "words", "said"),
        [
            ("mini", ["terms.estimated_deep=1"], "estimated_depth"),
            ("mini", ["estimator.source=nowhere"], "no such folder"),
            ("sdi_gaussians", [], r"estimator.source=FOLDER"),
            ("mini_sjc", [], "representation=latent_voxels does not move"),
        ],
    )
    def test_mistakes_are_told(self, preset: str, words: list[str], said: str) -> None:
        config = load(preset, [*self.SMALL[:1], "terms.estimated_depth=1", *words])
        with pytest.raises(UserError, match=said):
            build.training(config)


def test_the_weights_are_small_and_half_precision() -> None:
    from safetensors.torch import load_file

    assert {value.dtype for value in load_file(WEIGHTS).values()} == {torch.float16}
    assert WEIGHTS.stat().st_size < 2e6


def test_a_picture_of_another_size_is_the_same_picture(mini: Estimator) -> None:
    small, large = (true_pictures("mug", "red", cameras(size))[0] for size in (64, 128))
    cover = (depth_of(truth("mug"), cameras(64)) > 0).float()
    seen = F.avg_pool2d(mini(large), 2)
    assert seen.shape == mini(small).shape
    as_depth = 1 / (1 + seen - seen.min())
    assert float(disagreement(as_depth, mini(small), cover).mean()) < 0.02


@pytest.mark.parametrize("preset", ["mini", "mini_nerf", "mini_mesh"])
def test_it_moves_the_surface_of_splats_of_a_field_and_of_a_mesh(preset: str) -> None:
    shape = build.renderer(load(preset, ["prompt=a mug", "seed=1"]), torch.device("cpu"))
    render, _ = shape.render(cameras(24), torch.ones(4, 3))
    estimates = Estimates(lambda pictures: pictures.mean(1, keepdim=True).cumsum(-1))
    estimates.terms(render, ["estimated_depth"])["estimated_depth"].backward()
    slopes = {
        group.get("name", "field"): max(
            float(p.grad.abs().max()) for p in group["params"] if p.grad is not None
        )
        for optimizer in shape.optimizers
        for group in optimizer.param_groups
        if any(p.grad is not None for p in group["params"])
    }
    assert max(slopes.values()) > 1e-6
    if preset == "mini_mesh":
        assert slopes["shape"] > 1e-6
    if preset == "mini":
        assert slopes["means"] > 1e-6
        assert slopes.get("sh_dc", 0.0) == 0.0  # the estimate of the colours has no gradient
