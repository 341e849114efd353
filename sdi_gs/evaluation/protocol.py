# SPDX-License-Identifier: Apache-2.0
"""The paper's protocol (Sec. 6): many views of a finished run, judged picture by picture.

The same measures for DDIM samples of the same model and words say how far the shape is from what
the model draws in 2D.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from representations.telling import each

from .. import build
from ..config import Config, to_plain
from ..errors import UserError, command
from ..guidance.predict import GuidedPredictor
from ..guidance.prompts import PromptSet
from ..guidance.sampling import ddim_sample, pure_noise
from ..guidance.viewpoints import Viewpoints
from ..look import Reopened, reopen
from .clip import IQA, PUBLISHED, Clip, clip_score, drift, iqa, retrieved
from .reward import Reward
from .together import Looks, Together, together
from .truth import AgainstTruth, against_truth, nearest_psnr, truth_of

TRUTH_VIEWS = 8
DDIM_STEPS = 30
EMPTY_ALPHA, EMPTY_DEVIATION = 0.02, 0.012  # of a view with nothing in it
MINI_JUDGE = "mini"  # the word for the judge that ships with the package


@dataclass(frozen=True)
class EvaluationOptions:
    """What is measured."""

    clip: str | None = None  # folder or id; None: the judge of mini's world, else the paper's
    views: int = 50
    flat: bool = True  # DDIM samples too
    samples: int = 2  # DDIM samples of each of 8 view angles
    candidates: tuple[str, ...] | None = None  # sentences of R-precision; None: mini's, or the 43
    image_reward: Path | None = None

    def __post_init__(self) -> None:
        if self.views < 5:
            raise UserError(f"views={self.views}: the protocol needs at least 5")
        if self.samples < 1:
            raise UserError(f"samples={self.samples}: allowed is 1 or more; or write --no-flat")


@dataclass(frozen=True)
class Judged:
    """Means over pictures; every number but ``clip_score`` and the reward in [0, 1]."""

    pictures: int
    clip_score: float  # 0 to 100
    clip_score_spread: float  # standard deviation over the pictures
    iqa: dict[str, float]  # quality, sharp, real
    r_precision: float
    image_reward: float | None
    drift: float  # of what is seen, over the pictures


@dataclass(frozen=True)
class Evaluation:
    """Everything about one run."""

    run: str
    prompt: str
    representation: str
    guidance: str
    diverged: bool
    shape: Judged
    flat: Judged | None  # the same of DDIM samples
    truth: AgainstTruth | None
    nearest_psnr_db: float | None  # of the shape's views, against the best true view
    flat_nearest_psnr_db: float | None  # of the DDIM samples, in the same way
    seconds: float | None
    peak_memory_mb: float | None

    def gap(self) -> dict[str, float] | None:
        """Shape minus DDIM samples, measure by measure: 0 is the quality of 2D."""
        if self.flat is None:
            return None
        gap = {
            "clip_score": self.shape.clip_score - self.flat.clip_score,
            "r_precision": self.shape.r_precision - self.flat.r_precision,
            **{name: value - self.flat.iqa[name] for name, value in self.shape.iqa.items()},
        }
        if self.nearest_psnr_db is not None and self.flat_nearest_psnr_db is not None:
            gap["nearest_psnr_db"] = self.nearest_psnr_db - self.flat_nearest_psnr_db
        return gap

    def plain(self) -> dict[str, Any]:
        return {**asdict(self), "gap_to_2d": self.gap()}


class Evaluated(NamedTuple):
    """Several runs, one by one and together."""

    runs: list[Evaluation]
    together: Together


def published_prompts() -> tuple[str, ...]:
    """The 43 sentences of the paper (App. A.4), as printed there."""
    text = (Path(__file__).parent / "prompts_43.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line)


def is_empty(picture: Tensor, alpha: Tensor) -> Tensor:
    """Whether there is nothing in each view: [B] bool of [B, 3, H, W] and [B, 1, H, W]."""
    faint = alpha.mean(dim=(1, 2, 3)) < EMPTY_ALPHA
    even = picture.std(dim=(1, 2, 3)) < EMPTY_DEVIATION
    return faint | even | ~torch.isfinite(picture).all(dim=(1, 2, 3))


def mostly_empty(picture: Tensor, alpha: Tensor) -> bool:
    """Whether there is nothing in more than half of the views: the shape has diverged."""
    return bool(is_empty(picture, alpha).float().mean() > 0.5)


class Judge:
    """CLIP with the sentences of one evaluation, encoded once."""

    def __init__(self, clip: Clip, candidates: Sequence[str], reward: Reward | None) -> None:
        self.clip = clip
        self.candidates = tuple(candidates)
        self.reward = reward
        self._candidates = clip.captions(self.candidates)
        self._pairs = {name: clip.captions(pair) for name, pair in IQA.items()}

    @staticmethod
    def open(
        source: str,
        target: torch.device,
        candidates: Sequence[str] | None = None,
        reward: Reward | None = None,
    ) -> Judge:
        """The judge of that name, folder or id; ``candidates`` None: :func:`default_candidates`."""
        return Judge(load_clip(source, target), candidates or default_candidates(source), reward)

    def __call__(self, pictures: Tensor, prompt: str) -> Judged:
        """``pictures`` [B, 3, H, W] in [0, 1]."""
        return self.of(self.clip.pictures(pictures), pictures, prompt)

    def of(self, seen: Tensor, pictures: Tensor, prompt: str) -> Judged:
        """The same, where the vectors [B, D] of the pictures are known."""
        own = self.clip.captions([prompt])
        score = clip_score(seen, own[0])
        # The prompt itself is one of the sentences, whether or not the list holds it.
        others = [k for k, text in enumerate(self.candidates) if not _same(text, prompt)]
        table = torch.cat([own, self._candidates[others]])
        return Judged(
            pictures=len(pictures),
            clip_score=float(score.mean()),
            clip_score_spread=float(score.std(correction=0)),
            iqa={name: float(iqa(seen, pair, self.clip.scale).mean())
                 for name, pair in self._pairs.items()},
            r_precision=float(retrieved(seen, table, 0).float().mean()),
            image_reward=self.reward(pictures, prompt) if self.reward else None,
            drift=drift(seen, table),
        )  # fmt: skip


def _same(a: str, b: str) -> bool:
    return " ".join(a.lower().split()) == " ".join(b.lower().split())


def default_clip(configs: Sequence[Config]) -> str:
    """The judge of mini's world where every run used mini, else the paper's CLIP."""
    return MINI_JUDGE if all(c.model.embedded for c in configs) else PUBLISHED


def load_clip(source: str, target: torch.device) -> Clip:
    """The judge of that name, folder or id."""
    if source != MINI_JUDGE:
        return Clip.load(source, target)
    from .judge import JUDGE_DIR

    if not JUDGE_DIR.is_dir():
        raise UserError(
            f"the judge of mini is missing from {JUDGE_DIR}: this installation is incomplete; "
            f"reinstall it, or name another with --clip, such as {PUBLISHED}"
        )
    return Clip.load(str(JUDGE_DIR), target)


def default_candidates(clip: str) -> tuple[str, ...]:
    """What R-precision chooses among: mini's objects in all colours, or the 43 sentences."""
    if clip != MINI_JUDGE:
        return published_prompts()
    from ..mini.corpus import COLORS, KINDS

    return tuple(f"a {color} {kind}" for kind in KINDS for color in COLORS)


def evaluate(
    paths: Sequence[Path], options: EvaluationOptions, say: Callable[[str], None]
) -> Evaluated:
    """Judge the finished runs at ``paths``. UserError for one that never finished."""
    configs = [_require_finished(path) for path in paths]
    source = options.clip or default_clip(configs)
    reward = Reward.load(options.image_reward) if options.image_reward else None
    judge = Judge.open(source, build.device(configs[0].device), options.candidates, reward)
    say(f"judge: {source}, {len(judge.candidates)} sentences for R-precision")
    evaluations, looks = [], []
    for path in each(paths, "run"):
        say(f"{path}: {options.views} views")
        found, seen = _evaluate(path, judge, options)
        evaluations.append(found)
        looks.append(seen)
    return Evaluated(evaluations, together([one for one in looks if one is not None]))


def _require_finished(path: Path) -> Config:
    from ..artefacts import run_folder

    run = run_folder.open_existing(path)
    if not run.summary_file.is_file():
        raise UserError(
            f"{path} never finished, so there is nothing to judge yet: continue it with "
            + command("resume", path)
        )
    run.summary()  # damaged ones are told before a model is loaded
    return run.config()


def _evaluate(
    path: Path, judge: Judge, options: EvaluationOptions
) -> tuple[Evaluation, Looks | None]:
    """What the run is worth, and how it looks; None where it has diverged."""
    opened = reopen(path)
    config, summary = opened.config, opened.run.summary()
    size = max(config.resolution, judge.clip.size)
    elevation = config.output.turntable.elevation_deg
    cameras = config.views.showcase(options.views, size, elevation)
    shown, alpha = opened.stage.look(cameras)
    truth, nearest = _against_truth(opened)
    pictures = shown.nan_to_num().clamp(0, 1)
    seen = judge.clip.pictures(pictures)
    flat = flat_nearest = flat_seen = None
    if options.flat:
        drawn = ddim_pictures(config, options.samples)
        flat_seen = judge.clip.pictures(drawn)
        flat = judge.of(flat_seen, drawn, config.prompt)
        flat_nearest = _nearest(drawn, config)
    diverged = mostly_empty(shown, alpha)
    looks = None if diverged else Looks(config.prompt, seen.cpu(), _on_cpu(flat_seen))
    return Evaluation(
        run=str(path),
        prompt=config.prompt,
        representation=to_plain(config)["representation"]["kind"],
        guidance=_guidance_name(config),
        diverged=diverged,
        shape=judge.of(seen, pictures, config.prompt),
        flat=flat,
        truth=truth,
        nearest_psnr_db=nearest,
        flat_nearest_psnr_db=flat_nearest,
        seconds=summary.seconds,
        peak_memory_mb=summary.peak_cuda_memory_mb or summary.peak_memory_mb,
    ), looks


def _on_cpu(vectors: Tensor | None) -> Tensor | None:
    return None if vectors is None else vectors.cpu()


def _guidance_name(config: Config) -> str:
    return f"{config.noise.kind} / {config.update.kind}"


def _against_truth(opened: Reopened) -> tuple[AgainstTruth | None, float | None]:
    from ..mini.corpus import SIZE, render_truth

    config = opened.config
    known = truth_of(config)
    if known is None:
        return None, None
    elevation = config.output.turntable.elevation_deg
    cameras = config.views.showcase(TRUTH_VIEWS, SIZE, elevation)
    pictures = opened.stage.draw(cameras).clamp(0, 1)
    azimuth = torch.arange(TRUTH_VIEWS) * (360.0 / TRUTH_VIEWS)
    truth = against_truth(pictures, render_truth(*known, cameras), azimuth)
    return truth, _nearest(pictures, config)


def _nearest(pictures: Tensor, config: Config) -> float | None:
    """Mean PSNR of each picture against the best of 72 views of the true object."""
    from ..mini.corpus import SIZE, render_truth

    known = truth_of(config)
    if known is None:
        return None
    rings = [config.views.showcase(24, SIZE, elevation) for elevation in (0.0, 15.0, 30.0)]
    truth = torch.cat([render_truth(*known, ring, samples=2) for ring in rings])
    return float(nearest_psnr(pictures, truth).mean())


@torch.no_grad()
def ddim_pictures(config: Config, samples: int) -> Tensor:
    """What the model of ``config`` draws for its sentence by DDIM, seen from 8 sides:
    [8 * samples, 3, H, W] in [0, 1] on the CPU."""
    target = build.device(config.device)
    model = build.denoiser(config.model, target)
    with build.below("prompts"):
        prompts = PromptSet(model, config.prompt, config.negative_prompt, config.prompts)
    count = TRUTH_VIEWS * samples
    noise = pure_noise(model, count, config.resolution, config.seed, target)
    azimuth = torch.arange(count) % TRUTH_VIEWS * (360.0 / TRUTH_VIEWS)
    elevation = torch.full((count,), config.output.turntable.elevation_deg)
    # Views that are seen together stand at equal steps around the shape.
    if TRUTH_VIEWS % model.views_together:
        raise UserError(
            f"{config.model.source} sees {model.views_together} views of a shape together, and "
            f"{TRUTH_VIEWS} sides make no whole groups of them: leave out its samples"
        )
    turns = torch.arange(TRUTH_VIEWS).reshape(model.views_together, -1).T.flatten()
    out: dict[int, Tensor] = {}
    for some in turns + TRUTH_VIEWS * torch.arange(samples)[:, None]:
        views = Viewpoints.orbit(azimuth[some], elevation[some])
        scale = config.guidance.cfg_scale.start
        predict = GuidedPredictor(model, prompts.conditions(views))
        z = ddim_sample(predict, noise[some], DDIM_STEPS, scale)
        pictures = model.decode(z).clamp(0, 1).cpu()
        out |= dict(zip(some.tolist(), pictures, strict=True))
    return torch.stack([out[k] for k in range(count)])
