# SPDX-License-Identifier: Apache-2.0
"""The measures against closed forms and transformers' own forward pass; then the verb."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from representations.cameras import turntable
from representations.interface import Cameras
from sdi_gs.errors import UserError
from sdi_gs.evaluation import protocol, truth
from sdi_gs.evaluation.clip import Clip, clip_score, drift, iqa, retrieved
from sdi_gs.evaluation.reward import Reward
from sdi_gs.look import Stage

Run = Callable[..., Any]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(*shape: int, seed: int = 0) -> Tensor:
    return torch.nn.functional.normalize(randn(*shape, seed=seed), dim=-1)


# --- a CLIP folder laid out as the published one is -------------------------------------------


@pytest.fixture(scope="module")
def published_layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the files of openai/clip-vit-base-patch32: vocab.json and merges.txt, and a
    preprocessor_config.json of the old style, with bare numbers as sizes."""
    from sdi_gs.evaluation.judge import make_model, make_tokenizer

    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(folder)
    state = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(state["vocab"]))
    merges = [m if isinstance(m, str) else " ".join(m) for m in state["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 16})
    )
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "feature_extractor_type": "CLIPFeatureExtractor",
                "do_resize": True, "size": 64, "resample": 3,
                "do_center_crop": True, "crop_size": 64, "do_normalize": True,
                "image_mean": [0.48145466, 0.4578275, 0.40821073],
                "image_std": [0.26862954, 0.26130258, 0.27577711],
            }
        )
    )  # fmt: skip
    return folder


def test_scores_are_those_of_the_models_own_forward_pass(published_layout: Path) -> None:
    """transformers computes logits_per_image = exp(logit_scale) * cos by another path."""
    from PIL import Image
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    texts = ["a red mug", "a blue car, front view"]
    pictures = torch.rand(3, 3, 80, 100, generator=torch.Generator().manual_seed(1))
    clip = Clip.load(str(published_layout))
    given = 100.0 * clip.pictures(pictures) @ clip.captions(texts).T

    model = CLIPModel.from_pretrained(published_layout).eval()
    tokens = CLIPTokenizer.from_pretrained(published_layout)(
        texts, padding="max_length", max_length=16, return_tensors="pt"
    )
    pils = [Image.fromarray((p * 255).round().byte().permute(1, 2, 0).numpy()) for p in pictures]
    pixels = CLIPImageProcessor.from_pretrained(published_layout)(pils, return_tensors="pt")
    with torch.no_grad():
        logits = model(**tokens, **pixels).logits_per_image
    expected = 100.0 * logits / model.logit_scale.exp()
    torch.testing.assert_close(given, expected.detach(), rtol=1e-4, atol=1e-4)
    assert given.std() > 0.1


def test_many_pictures_are_as_good_as_few(published_layout: Path) -> None:
    clip = Clip.load(str(published_layout))
    pictures = torch.rand(70, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    alone = torch.cat([clip.pictures(p[None]) for p in pictures[[0, 63, 64, 69]]])
    torch.testing.assert_close(clip.pictures(pictures)[[0, 63, 64, 69]], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("source", ["./nothing", "/no/such/folder", "alone"])
def test_a_missing_clip_folder_is_told(source: str) -> None:
    with pytest.raises(UserError, match="no such folder"):
        Clip.load(source)


def test_a_folder_that_is_no_clip_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be loaded as a CLIPModel"):
        Clip.load(str(tmp_path))


# --- closed forms --------------------------------------------------------------------------------


def test_clip_score_is_a_hundred_cosines_and_never_negative() -> None:
    caption = torch.tensor([1.0, 0.0])
    pictures = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]])
    assert clip_score(pictures, caption).tolist() == pytest.approx([100.0, 60.0, 0.0])


def test_iqa_is_a_logistic_function_of_the_difference() -> None:
    pictures, pair = unit(5, 8), unit(2, 8, seed=1)
    margin = 30.0 * pictures @ (pair[0] - pair[1])
    torch.testing.assert_close(iqa(pictures, pair, 30.0), margin.sigmoid())


def test_retrieval_counts_only_a_strict_first_place() -> None:
    candidates = torch.eye(3)
    pictures = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0.5, 0.5, 0]])
    assert retrieved(pictures, candidates, 0).tolist() == [True, False, False]


@pytest.mark.parametrize("shift", [0, 1, 5, 16, 20])
def test_silhouettes_of_a_moved_square_overlap_as_they_must(shift: int) -> None:
    pictures = torch.ones(2, 3, 64, 64)
    pictures[0, 1:, 20:36, 10:26] = 0.2
    pictures[1, 1:, 20:36, 10 + shift : 26 + shift] = 0.2
    common = max(0, 16 - shift)
    (iou,) = truth.silhouette_iou(pictures[:1], pictures[1:]).tolist()
    assert iou == pytest.approx(common / (32 - common))


def test_two_white_pictures_have_the_same_silhouette() -> None:
    white = torch.ones(1, 3, 8, 8)
    assert truth.silhouette_iou(white, white).tolist() == [1.0]


def test_ssim_of_even_pictures_is_its_luminance_term() -> None:
    a, b = torch.full((1, 3, 32, 32), 0.3), torch.full((1, 3, 32, 32), 0.7)
    c1 = 0.01**2
    expected = (2 * 0.3 * 0.7 + c1) / (0.3**2 + 0.7**2 + c1)
    assert truth.ssim(a, b).tolist() == pytest.approx([expected], rel=1e-5)
    assert truth.ssim(a, a).tolist() == pytest.approx([1.0])


def turned(kind: str = "car", views: int = 8) -> tuple[Tensor, Tensor]:
    """True pictures all around, with their azimuths."""
    from representations.cameras import turntable
    from sdi_gs.mini.corpus import DISTANCE, FOV_Y_DEG, SIZE, render_truth

    cameras = turntable(views, 15.0, DISTANCE, FOV_Y_DEG, (SIZE, SIZE))
    return render_truth(kind, "red", cameras), torch.arange(views) * (360.0 / views)


def test_the_true_object_has_every_view_right_and_one_front() -> None:
    pictures, azimuth = turned()
    found = truth.against_truth(pictures, pictures, azimuth)
    assert (found.psnr_db, found.silhouette_iou) == (120.0, 1.0)
    assert found.ssim == pytest.approx(1.0)
    assert (found.front_views, found.front_views_of_truth, found.right_views) == (1, 1, 8)


def test_an_object_with_its_front_on_every_side_is_a_janus() -> None:
    pictures, azimuth = turned()
    found = truth.against_truth(pictures[:1].expand(8, -1, -1, -1), pictures, azimuth)
    assert (found.front_views, found.right_views) == (8, 1)


def test_an_object_turned_by_a_quarter_has_one_front_and_no_view_right() -> None:
    pictures, azimuth = turned()
    found = truth.against_truth(pictures.roll(2, dims=0), pictures, azimuth)
    assert (found.front_views, found.right_views) == (1, 0)


def test_pictures_of_unknown_camera_find_their_view() -> None:
    pictures, _ = turned()
    noisy = pictures[[5, 2]] + 0.1
    expected = -10 * torch.log10(torch.tensor(0.01))
    found = truth.nearest_psnr(noisy, pictures)
    torch.testing.assert_close(found, expected.expand(2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("picture", "alpha", "empty"),
    [
        (torch.rand(3, 8, 8), torch.full((1, 8, 8), 0.5), False),
        (torch.rand(3, 8, 8), torch.full((1, 8, 8), 0.01), True),
        (torch.full((3, 8, 8), 0.4), torch.ones(1, 8, 8), True),
        (torch.rand(3, 8, 8).index_fill(0, torch.tensor([0]), float("nan")),
         torch.ones(1, 8, 8), True),
    ],
)  # fmt: skip
def test_an_empty_view_is_faint_even_or_not_finite(
    picture: Tensor, alpha: Tensor, empty: bool
) -> None:
    assert bool(protocol.is_empty(picture[None], alpha[None])) is empty


def test_the_published_sentences_are_43() -> None:
    prompts = protocol.published_prompts()
    assert len(set(prompts)) == 43
    assert "A rabbit, animated movie character, high detail 3d mode" in prompts


@pytest.mark.parametrize(
    ("named", "expected"), [("aaaa", 0.0), ("bbbb", 0.0), ("abbb", 0.25), ("abca", 0.5), ("a", 0.0)]
)
def test_drift_counts_the_views_that_are_something_else(named: str, expected: float) -> None:
    """By sentences at right angles, in whatever order the views and the sentences come."""
    sentences = torch.eye(4)
    pictures = torch.stack([sentences["abc".index(letter)] for letter in named])
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        assert drift(pictures, sentences[order]) == expected
        assert drift(pictures.flip(0), sentences[order]) == expected


def test_a_true_object_is_one_thing_from_all_sides_and_pictures_of_several_are_not() -> None:
    from sdi_gs.mini.corpus import DISTANCE, FOV_Y_DEG, SIZE, render_truth

    cameras = turntable(4, 15.0, DISTANCE, FOV_Y_DEG, (SIZE, SIZE))
    known = (("cat", "teal"), ("snowman", "green"), ("chair", "blue"))
    cat, snowman, chair = (render_truth(kind, color, cameras) for kind, color in known)
    judge = protocol.Judge.open(protocol.MINI_JUDGE, torch.device("cpu"))
    assert [judge(views, "a teal cat").drift for views in (cat, snowman, chair)] == [0.0] * 3
    assert judge(torch.cat([cat[:2], snowman[:1], chair[:1]]), "a teal cat").drift == 0.5


def test_own_prompt_competes_whether_or_not_it_is_listed(published_layout: Path) -> None:
    pictures = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    clip = Clip.load(str(published_layout))
    listed = protocol.Judge(clip, ["a red mug", "A  Blue Car"], None)(pictures, "a blue car")
    unlisted = protocol.Judge(clip, ["a red mug"], None)(pictures, "a blue car")
    assert listed == unlisted
    cosines = clip.pictures(pictures) @ clip.captions(["a blue car", "a red mug"]).T
    assert listed.r_precision == pytest.approx(
        float((cosines[:, 0] > cosines[:, 1]).float().mean())
    )
    assert listed.clip_score == pytest.approx(float(100 * cosines[:, 0].clamp(min=0).mean()))


# --- ImageReward ---------------------------------------------------------------------------------


def test_a_reward_is_the_mean_of_its_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Fake:
        def score(self, prompt: str, picture: Any) -> float:
            return len(prompt) + picture.getpixel((0, 0))[0] / 255

    loaded: list[tuple[str, str]] = []

    def load(weights: str, med_config: str) -> Fake:
        loaded.append((weights, med_config))
        return Fake()

    monkeypatch.setitem(sys.modules, "ImageReward", types.SimpleNamespace(load=load))
    (tmp_path / "ImageReward.pt").touch()
    pictures = torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)])
    assert Reward.load(tmp_path)(pictures, "four") == pytest.approx(4.5)
    assert loaded == [(str(tmp_path / "ImageReward.pt"), str(tmp_path / "med_config.json"))]


def test_what_a_reward_needs_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no ImageReward\.pt in it"):
        Reward.load(tmp_path)
    (tmp_path / "ImageReward.pt").touch()
    monkeypatch.setitem(sys.modules, "ImageReward", None)
    with pytest.raises(UserError, match="pip install image-reward"):
        Reward.load(tmp_path)


# --- the verb ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mini_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of mini: unfinished as an object, finished as a run."""
    from sdi_gs.cli.main import main

    out = tmp_path_factory.mktemp("runs") / "mug"
    small = ["steps=2", "batch=1", "output.turntable.frames=2", "output.turntable.size=32"]
    assert main(["generate", "a red mug", "--config", "mini", "--out", str(out), *small]) == 0
    return out


def test_every_measure_of_a_mini_run_is_printed_offline(
    sdi_gs: Run, mini_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "evaluation.json"
    said = sdi_gs("evaluate", mini_run, "--views", 6, "--samples", 1, "--out", out)
    assert said.code == 0, said.err
    for name in ("CLIP score", "CLIP-IQA quality %", "CLIP-IQA sharp %", "CLIP-IQA real %",
                 "R-precision %", "content drift %", "psnr_db", "ssim", "silhouette_iou",
                 "front_views", "3D - 2D: clip_score",
                 "3D - 2D: nearest_psnr_db", "diverged"):  # fmt: skip
        assert name in said.out
    (one,) = json.loads(out.read_text())["evaluations"]
    assert one["shape"]["pictures"] == 6
    assert one["flat"]["pictures"] == 8
    assert one["gap_to_2d"]["clip_score"] == pytest.approx(
        one["shape"]["clip_score"] - one["flat"]["clip_score"]
    )
    # Two steps make no mug, and thirty of DDIM do: by the judge and by the truth.
    assert one["flat"]["r_precision"] > one["shape"]["r_precision"]
    assert one["flat_nearest_psnr_db"] > one["nearest_psnr_db"]


def test_a_run_that_never_finished_is_refused(sdi_gs: Run, mini_run: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.yaml").write_text((mini_run / "config.yaml").read_text())
    said = sdi_gs("evaluate", broken)
    assert said.code == 2
    assert "never finished" in said.err
    assert "sdi-gs resume" in said.err


def test_bad_options_are_told_before_anything_is_loaded(
    sdi_gs: Run, mini_run: Path, tmp_path: Path
) -> None:
    foreign = tmp_path / "notes.txt"
    foreign.write_text("mine")
    for options, message in (
        (("--clip", tmp_path / "none"), "no such folder"),
        (("--views", 1), "at least 5"),
        (("--samples", 0), "--no-flat"),
        (("--candidates", foreign), "2 or more"),
        (("--candidates", tmp_path / "none.txt"), "cannot be read"),
        (("--image-reward", tmp_path), "no ImageReward.pt"),
        (("--out", foreign), "is not an evaluation"),
    ):
        said = sdi_gs("evaluate", mini_run, *options)
        assert (said.code, message in said.err) == (2, True), said.err
    assert foreign.read_text() == "mine"


def test_ddim_samples_are_asked_for_from_eight_sides(
    fast: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdi_gs.config import load
    from sdi_gs.guidance import Conditions, PromptSet, Viewpoints

    asked: list[Viewpoints] = []
    real = PromptSet.conditions

    def spy(self: PromptSet, views: Viewpoints) -> Conditions:
        asked.append(views)
        return real(self, views)

    monkeypatch.setattr(PromptSet, "conditions", spy)
    monkeypatch.setattr(protocol, "DDIM_STEPS", 2)
    pictures = protocol.ddim_pictures(load(str(fast), ["prompt=a mug"]), samples=2)
    assert len(pictures) == 16
    sides = [45.0 * k for k in range(8)]
    assert [views.azimuth_deg.tolist() for views in asked] == [sides, sides]
    assert all(views.elevation_deg.tolist() == [15.0] * 8 for views in asked)


def test_the_models_own_pictures_of_views_that_are_seen_together(
    fast: Path, prior_folders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups stand at quarter turns, and their pictures come back in the order of the sides."""
    from sdi_gs import build
    from sdi_gs.config import load
    from sdi_gs.guidance.prompts import PromptSet

    asked: list[Any] = []
    real = PromptSet.conditions

    def spy(self: Any, viewpoints: Any) -> Any:
        asked.append(viewpoints)
        return real(self, viewpoints)

    def sample(predict: Any, noise: Tensor, steps: int, scale: float) -> Tensor:
        return asked[-1].azimuth_deg.reshape(-1, 1, 1, 1).expand_as(noise)

    config = load(str(fast), ["prompt=a mug", f"model.source={prior_folders('mv')}"])
    model = build.denoiser(config.model, torch.device("cpu"))
    monkeypatch.setattr(type(model), "decode", lambda self, z: z / 360.0)
    monkeypatch.setattr(protocol.build, "denoiser", lambda *_: model)
    monkeypatch.setattr(PromptSet, "conditions", spy)
    monkeypatch.setattr(protocol, "ddim_sample", sample)
    pictures = protocol.ddim_pictures(config, samples=2)
    assert asked[0].azimuth_deg.tolist() == [0.0, 90.0, 180.0, 270.0, 45.0, 135.0, 225.0, 315.0]
    assert (360.0 * pictures[:, 0, 0, 0]).tolist() == pytest.approx(
        [45.0 * k for k in range(8)] * 2
    )


@pytest.mark.parametrize(("empty", "diverged"), [(3, False), (4, True)])
def test_a_run_with_mostly_empty_views_has_diverged(
    mini_run: Path, monkeypatch: pytest.MonkeyPatch, empty: int, diverged: bool
) -> None:
    real = Stage.look

    def look(self: Stage, cameras: Cameras) -> tuple[Tensor, Tensor]:
        pictures, alpha = real(self, cameras)
        alpha[:empty] = 0.0
        return pictures, alpha

    monkeypatch.setattr(Stage, "look", look)
    options = protocol.EvaluationOptions(views=6, flat=False)
    (one,), _ = protocol.evaluate([mini_run], options, lambda said: None)
    assert one.diverged is diverged
