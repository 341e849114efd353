# SPDX-License-Identifier: Apache-2.0
"""What the public face is made of. The command line is built on the same functions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from representations.reading import Reading

from . import assets, build, look
from . import run as runs
from .artefacts import media
from .config import SEAMS, Config, ModelConfig, load
from .errors import RunFailure, UserError, command, nearest
from .going_on import Change
from .origin import origin_of
from .splat_files import OpenedSplats, open_splats
from .views import ViewPolicy
from .watch.progress import watcher as standard_watcher

if TYPE_CHECKING:
    from representations.cloud import SplatCloud
    from representations.interface import Cameras, Renderer

    from .diffusion.base import Denoiser

DEFAULT_PRESET = "mini"  # the one that works everywhere, without a download
Settings = Sequence[str] | Mapping[str, Any]
PREVIEW_SIZE = 256  # pixels of a view in a notebook


class Asset:
    """A shape that a run has made, or that a file of splats holds.

    In a notebook it shows itself. ``renderer`` is the shape, ``config`` the settings of its run,
    ``path`` the folder of the run or the file.
    """

    def __init__(
        self,
        path: Path,
        config: Config,
        stage: look.Stage | None,
        opened: OpenedSplats | None = None,
    ) -> None:
        self.path = path
        self.config = config
        self._stage = stage
        self._opened = opened
        self._views = config.views if opened is None else ViewPolicy()

    @property
    def stage(self) -> look.Stage:
        """The shape as people are shown it: that of a file in the middle, in our size."""
        if self._stage is None and self._opened is not None:
            self._stage = look.stage(self.config, self._opened.shown)
        assert self._stage is not None
        return self._stage

    @property
    def renderer(self) -> Renderer:
        """The shape itself: draws pictures from any cameras, with gradient."""
        return self.stage.renderer if self._opened is None else self._opened.renderer

    @property
    def notes(self) -> tuple[str, ...]:
        """What is worth knowing of how its file was read; empty for a run."""
        return () if self._opened is None else self._opened.notes

    @property
    def cloud(self) -> SplatCloud:
        """A copy of the splats, before any activation. UserError where the shape has none."""
        from representations.interface import HasSplats

        if not isinstance(self.renderer, HasSplats):
            raise UserError(
                f"{self.path} has no splats; make some: "
                + command("convert", self.path, "--to", "gaussians")
            )
        return self.renderer.cloud()

    def save(
        self,
        path: str | Path,
        kind: str | None = None,
        *,
        mesh: assets.MeshOptions | None = None,
        splats: assets.SplatOptions | None = None,
    ) -> assets.Exported:
        """Write the shape to ``path``. The result says what the file holds.

        Args:
            path: its ending says the format: .ply .compressed.ply .splat .spz .sog .html hold
                splats, .glb and .obj triangles. An existing file is replaced.
            kind: the format by name, where the ending does not say it: "mesh-ply" in a .ply.
            mesh: how triangles are made.
            splats: which splats, in which frame, with how many harmonics.

        Raises UserError for an unknown ending, and for what the format cannot hold.
        """
        path, mesh = Path(path), mesh or assets.MeshOptions()
        mesh = replace(mesh, name=mesh.name or self.config.prompt)
        try:
            return assets.export(
                self.renderer, path, kind or assets.kind_of(path, self.renderer), self._views,
                mesh, splats,
            )  # fmt: skip
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror or error}") from error

    def draw(self, cameras: Cameras) -> Tensor:
        """Pictures [N, 3, H, W] in [0, 1] on the CPU, on the run's background, without gradient."""
        if self._opened is None:
            return self.stage.draw(cameras)
        return look.stage(self.config, self.renderer).draw(cameras)

    def turntable(
        self,
        path: str | Path,
        *,
        frames: int = 60,
        size: int = 512,
        fps: int = 24,
        elevation_deg: float = 15.0,
    ) -> Path:
        """Write a film all around the shape, .mp4 or .gif; the file.

        Args:
            frames: pictures of one turn.
            size: pixels, square.
            fps: pictures per second.
            elevation_deg: of the camera above the horizon, in [-90, 90].
        """
        path = Path(path)
        if path.suffix not in (".mp4", ".gif"):
            raise UserError(
                f"{path}: a film is an .mp4 or a .gif; write {path.with_suffix('.mp4')}"
            )
        if frames < 1 or size < 16 or fps < 1 or not -90.0 <= elevation_deg <= 90.0:
            raise UserError(
                f"frames={frames}, size={size}, fps={fps}, elevation_deg={elevation_deg}: allowed "
                "are at least 1 frame, 16 pixels, 1 picture per second, and -90 to 90 degrees"
            )
        return media.save_film(self.stage.turntable(frames, size, elevation_deg), path, fps)

    def preview(self) -> bytes:
        """A sheet of four sides, as PNG."""
        views = self.stage.turntable(look.PREVIEW_VIEWS, PREVIEW_SIZE, 15.0)
        return media.png_bytes(media.contact_sheet(views, columns=look.PREVIEW_VIEWS))

    def _repr_png_(self) -> bytes:
        return self.preview()

    def __repr__(self) -> str:
        said = f"{self.config.prompt!r}, " if self.config.prompt else ""
        return f"Asset({said}{self.config.representation.kind}, {str(self.path)!r})"


def configure(
    prompt: str | None = None,
    preset: str | None = DEFAULT_PRESET,
    *,
    guidance: str | None = None,
    seed: int | None = None,
    steps: int | None = None,
    settings: Settings = (),
) -> Config:
    """The settings of a run; see :func:`generate`."""
    overrides = _assignments(settings)
    for name, value in (("prompt", prompt), ("seed", seed), ("steps", steps)):
        if value is not None:
            overrides.append(f"{name}={value}")
    return load(preset, overrides, guidance)


def generate(
    prompt: str,
    preset: str | None = DEFAULT_PRESET,
    *,
    guidance: str | None = None,
    seed: int | None = None,
    steps: int | None = None,
    settings: Settings = (),
    out: str | Path | None = None,
    watcher: runs.Watcher | None = None,
) -> Asset:
    """Make a 3D asset from a sentence, in a folder of its own.

    Ctrl-C (in a notebook: interrupt) saves the state and raises RunFailure; :func:`resume` goes on.

    Args:
        prompt: a sentence, such as "a red mug".
        preset: its name (``sdi-gs config list``) or a YAML file; None: the paper's settings.
        guidance: a method instead of the preset's own, such as "sds".
        seed: of everything random, 0 or more.
        steps: optimisation steps, 1 or more.
        settings: others, as ``["batch=2", "noise.entropy=0"]`` or ``{"batch": 2}``.
        out: a new folder; default outputs/<prompt>-<n>.
        watcher: who shows the run; default a line in a terminal, a bar in a notebook.

    Raises:
        UserError: a setting, a folder or a prompt that cannot work; nothing was done.
        RunFailure: the run was stopped, or diverged.
    """
    config = configure(prompt, preset, guidance=guidance, seed=seed, steps=steps, settings=settings)
    origin = origin_of(preset, guidance)
    folder = None if out is None else Path(out)
    return _watched(watcher, lambda shown: runs.generate(config, folder, shown, origin))


def resume(
    path: str | Path,
    watcher: runs.Watcher | None = None,
    *,
    steps: int | None = None,
    settings: Settings = (),
) -> Asset:
    """Continue the run in the folder ``path`` to the same bytes as without the stop.

    Args:
        steps: of the whole run, more than it has: it goes on beyond its end, where what moves with
            the run stays as it is there.
        settings: of ``output``, ``device`` and ``threads``, which may be others from here on.

    Raises UserError where there is nothing to continue and for any other setting, RunFailure where
    it is stopped again.
    """
    change = Change(steps, _assignments(settings))
    return _watched(watcher, lambda shown: runs.resume(Path(path), shown, change))


def open_asset(path: str | Path, how: Reading | None = None) -> Asset:
    """The shape of a run's newest checkpoint, or the splats of a file: .ply in every dialect,
    .splat, .spz, .ksplat or .sog.

    Args:
        path: the folder of a run, or the file.
        how: what the file does not say itself: its axis up, activated values, rows to drop. The
            notes of the result say what was noticed.

    Raises UserError for anything else.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(
            f"{path} does not exist; give the folder of a run, such as outputs/..., or a file of "
            "splats"
        )
    if path.is_file():
        opened = open_splats(path, how)
        return Asset(path, opened.config, None, opened)
    if how is not None and how != Reading():
        raise UserError(f"{path} is no file of splats: what was said of how to read it has no use")
    found = look.reopen(path)
    return Asset(path, found.config, found.stage)


def load_prior(
    source: str | Path = DEFAULT_PRESET,
    *,
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    variant: str | None = None,
    layout: str | Path | None = None,
    lora: str | Path | None = None,
    lora_scale: float = 1.0,
    adapter: str | Path | None = None,
) -> Denoiser:
    """A frozen diffusion model, ready to guide.

    Args:
        source: "mini", which ships with the package; a folder in diffusers layout; one
            .safetensors file; or a model id of the Hugging Face hub.
        dtype: of the network's own arithmetic; "auto": float16 on CUDA, else float32.
        device: where it lives; "auto": CUDA where it works.
        variant: of the files of weights, such as "fp16"; one that is alone is found by itself.
        layout: for a single file, a folder of the same architecture with settings and tokenizers.
        lora: a .safetensors file of low-rank weights, added to the networks ``lora_scale`` times.
        adapter: a .safetensors file of MV-Adapter, with which Stable Diffusion 2.1 or SDXL sees six
            views of a shape at once.

    Raises UserError where it cannot be loaded, with what to do about it.
    """
    chosen = ModelConfig(
        source=str(source), dtype=dtype, variant=variant, layout=None if layout is None
        else str(layout), lora=None if lora is None else str(lora), lora_scale=lora_scale,
        adapter=None if adapter is None else str(adapter),
    )  # fmt: skip
    return build.denoiser(chosen, build.device(device))


def register(seam: str, cls: type, make: Callable[..., Any] | None = None) -> None:
    """Let settings choose ``cls`` by its own word: in YAML, on the command line, in comparisons.

    Args:
        seam: "noise", "update", "background", "representation" or "prior".
        cls: a frozen dataclass whose field ``kind`` is its word and whose other fields are its
            settings. A noise is a :class:`NoiseStrategy`, an update an :class:`UpdateRule`.
        make: where ``cls`` holds settings only, what makes the thing itself:
            ``make(settings, run) -> Renderer`` of a representation (see :class:`Run`),
            ``make(settings, device) -> Denoiser`` of a prior, which ``model.source`` names, and
            ``make(settings, method) -> Guidance`` of an update that learns
            (see :class:`sdi_gs.methods.Method`).

    Raises UserError for an unknown seam, a class without a word, and a word that is taken.
    """
    if seam not in SEAMS:
        raise UserError(f"register({seam!r}, ...): {nearest(seam, SEAMS)}")
    needed = {
        "representation": "(settings, run) -> renderer",
        "prior": "(settings, device) -> denoiser",
    }
    if make is None and seam in needed:
        raise UserError(f"register({seam!r}, {cls.__name__}): give make, a function {needed[seam]}")
    SEAMS[seam].register(cls, make)


def _watched(watcher: runs.Watcher | None, train: Callable[[runs.Watcher], Any]) -> Asset:
    """Train under the eyes of ``watcher``; the finished asset."""
    if watcher is not None:
        run = train(watcher)
    else:
        standard = standard_watcher()
        try:
            run = train(standard)
        finally:
            standard.end()
    if run is None:
        raise RunFailure(
            "this process only helps another one, which has the run; start several processes with "
            "torchrun -m sdi_gs generate"
        )
    return open_asset(run.path)


def _assignments(settings: Settings) -> list[str]:
    """Settings as they are typed at a command line."""
    if isinstance(settings, str):
        raise UserError(f"settings={settings!r}: give a list of these, such as [{settings!r}]")
    if not isinstance(settings, Mapping):
        return list(settings)
    return [
        f"{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in settings.items()
    ]


__all__ = ["Asset", "generate", "load_prior", "open_asset", "register", "resume"]
