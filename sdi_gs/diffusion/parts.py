# SPDX-License-Identifier: Apache-2.0
"""The parts of a model in a folder of diffusers' layout: networks, tokenizers, the schedule.

A network is made by the arithmetic of this package where that knows all of its settings, and by the
class that published it elsewhere. The first needs neither diffusers nor transformers to be
imported, which takes longer than to load a small model.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from . import plain_text, plain_unet, plain_vae, plain_words
from .folder import ModelError, check_part, check_words, loaded, naming, read_json
from .lora_file import merge
from .schedule import alpha_bar_of
from .source import REMEDY, Opened
from .weights import Weights, weights

LOG = logging.getLogger(__name__)

PREDICTIONS = ("epsilon", "v_prediction")


class Plain(NamedTuple):
    """The arithmetic of this package that can take the place of a published class."""

    network: Callable[[Mapping[str, Any]], nn.Module]
    why_not: Callable[[Mapping[str, Any]], str | None]  # it cannot
    renamed: tuple[tuple[str, str], ...] = ()  # what older folders call a weight


class Part(NamedTuple):
    """A network of a model folder, and who can make it."""

    name: str  # of its folder
    package: Literal["diffusers", "transformers"]
    published: str  # the class there
    plain: Plain | None = None

    @property
    def weights(self) -> str:
        """The name of the file of its weights, without the ending."""
        return "diffusion_pytorch_model" if self.package == "diffusers" else "model"


_OLD_ATTENTION = tuple(
    (rf"(mid_block\.attentions\.\d+)\.{old}\.", rf"\1.{new}.")
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"),
                     ("proj_attn", r"to_out.0"))
)  # fmt: skip
UNET = Part(
    "unet", "diffusers", "UNet2DConditionModel", Plain(plain_unet.PlainUNet, plain_unet.why_not)
)
VAE = Part(
    "vae", "diffusers", "AutoencoderKL",
    Plain(plain_vae.PlainVAE, plain_vae.why_not, _OLD_ATTENTION),
)  # fmt: skip
TEXT = Part(
    "text_encoder", "transformers", "CLIPTextModel",
    Plain(plain_text.PlainTextEncoder, plain_text.why_not, ((r"^text_model\.", ""),)),
)  # fmt: skip


def network(part: Part, model: Opened) -> Any:
    """One network, in the asked precision, in evaluation mode, on the CPU. ModelError where its
    files are no network."""
    own = model.part(part.name)
    with naming(f"the {part.name} of the model in {model.folder}", REMEDY):
        source = weights(part.name, part.weights, part.published, model)
        plain = part.plain
        reason = f"class {part.published}"
        if plain is not None:
            reason = plain.why_not(read_json(own / "config.json")) or ""
        if plain is not None and not reason and model.how.engine != "diffusers":
            return _plain(part, plain, own, model.how.torch_dtype, source)
        if model.how.engine == "plain":
            raise ModelError(
                f"the {part.name} of the model in {model.folder} has {reason}, which the plain "
                "networks do not know: write model.engine=auto"
            )
        if source.state is not None:
            return _published_of(part, own, model.how.torch_dtype, source.state)
        return _published(part, own, model.how.torch_dtype, source.variant)


def tokenizer(name: str, cls: str, model: Opened) -> Any:
    """The tokenizer in the folder ``name``, by that class of transformers."""
    quiet("transformers")
    with naming(f"the {name} of the model in {model.folder}", REMEDY):
        made: Any = getattr(importlib.import_module("transformers"), cls)
        return made.from_pretrained(model.part(name))


def clip_tokenizer(name: str, model: Opened, encoder: Any) -> Any:
    """A tokenizer whose words the CLIP ``encoder`` knows. ModelError otherwise."""
    with naming(f"the {name} of the model in {model.folder}", REMEDY):
        own = model.part(name)
        plain = model.how.engine != "diffusers" and plain_words.why_not(own) is None
        made = plain_words.PlainTokenizer(own) if plain else None
    made = made or tokenizer(name, "CLIPTokenizer", model)
    with naming(f"the {name} of the model in {model.folder}", REMEDY):
        check_words(
            str(model.folder), made, encoder.config.vocab_size,
            encoder.config.max_position_embeddings,
        )  # fmt: skip
    return made


def t5_tokenizer(name: str, model: Opened, encoder: Any) -> Any:
    """A tokenizer whose words the T5 ``encoder`` knows. ModelError otherwise."""
    own = model.part(name)
    if not (own / "tokenizer.json").is_file() and importlib.util.find_spec("sentencepiece") is None:
        raise ModelError(
            f"{own} has no tokenizer.json, and its spiece.model is read by another package: "
            "pip install sentencepiece"
        )
    made = tokenizer(name, "T5TokenizerFast", model)
    with naming(f"the {name} of the model in {model.folder}", REMEDY):
        vocabulary = encoder.config.vocab_size
        check_words(str(model.folder), made, vocabulary, None)
    return made


def schedule(model: Opened) -> Any:
    """What is read of a scheduler: its table, and what the network was taught to predict."""
    with naming(f"the scheduler of the model in {model.folder}", REMEDY):
        path = model.part("scheduler") / "scheduler_config.json"
        config = read_json(path)
        kind = config.get("prediction_type", "epsilon")
        if kind not in PREDICTIONS:
            raise ModelError(
                f"{path} has prediction_type={kind!r}: allowed are {' and '.join(PREDICTIONS)}"
            )
        return SimpleNamespace(
            alphas_cumprod=alpha_bar_of(config), config=SimpleNamespace(prediction_type=kind)
        )


def _plain(part: Part, plain: Plain, own: Path, dtype: torch.dtype, source: Weights) -> Any:
    config = read_json(own / "config.json")

    def build() -> nn.Module:
        return plain.network(config)

    def load() -> tuple[nn.Module, dict[str, Any]]:
        return filled(build, _state(plain, _tensors(source), dtype))

    return loaded(own, str(own), build, load)


def filled(
    build: Callable[[], nn.Module], state: Mapping[str, Tensor]
) -> tuple[nn.Module, dict[str, Any]]:
    """The network that ``build`` makes with the weights of ``state``, which may hold others too;
    and which of its weights are not there, or of another shape, as ``from_pretrained`` says it."""
    with torch.device("meta"):
        network = build()
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


def _tensors(source: Weights) -> Iterator[tuple[str, Tensor]]:
    from safetensors.torch import load_file

    if source.state is not None:
        yield from source.state.items()
    for path in source.files:
        yield from load_file(path).items()


def _state(
    plain: Plain, tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype
) -> dict[str, Tensor]:
    """Weights by the names of today, in ``dtype``."""
    state = {}
    for name, tensor in tensors:
        for old, new in plain.renamed:
            name = re.sub(old, new, name)
        state[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return state


def _made_by(part: Part, own: Path) -> tuple[Any, Callable[[], nn.Module]]:
    """The published class, and how it is made of its settings alone."""
    quiet("diffusers", "transformers")
    cls: Any = getattr(importlib.import_module(part.package), part.published)
    if part.package == "transformers":
        return cls, lambda: cls(cls.config_class.from_pretrained(own))
    return cls, lambda: cls.from_config(cls.load_config(own))


def _published(part: Part, own: Path, dtype: torch.dtype, variant: str | None) -> Any:
    """By the class of diffusers or transformers, from the folder."""
    cls, build = _made_by(part, own)
    safe: dict[str, Any] = {"use_safetensors": True, "local_files_only": True,
                            "output_loading_info": True, "variant": variant}  # fmt: skip
    safe["dtype" if part.package == "transformers" else "torch_dtype"] = dtype
    return loaded(own, str(own), build, lambda: cls.from_pretrained(own, **safe))


def _published_of(part: Part, own: Path, dtype: torch.dtype, state: dict[str, Tensor]) -> Any:
    """By the class of diffusers or transformers, from weights that are there."""
    _, build = _made_by(part, own)

    def load() -> tuple[nn.Module, dict[str, Any]]:
        with torch.device("meta"):
            made = build()
        wanted = made.state_dict()
        bare = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
        named = {name: bare.get(name.removeprefix("text_model.")) for name in wanted}
        missing = [name for name, tensor in named.items() if tensor is None]
        wrong = [n for n, v in named.items() if v is not None and v.shape != wanted[n].shape]
        if not missing and not wrong:
            if any(name not in wanted for name, _ in made.named_buffers()):
                made = build()  # what is kept in no file is made with the numbers that it has
            made.load_state_dict(named, assign=True)
        return made.to(dtype).eval(), {"missing_keys": missing, "mismatched_keys": wrong}

    return loaded(None, str(own), build, load)


def adapt(model: Opened, networks: Mapping[str, Any], layers_per_block: Any = 2) -> None:
    """Add the low-rank weights that are asked for to the networks, by the name of their part."""
    if model.how.lora is not None:
        path = Path(model.how.lora).expanduser()
        count = merge(path, model.how.lora_scale, networks, layers_per_block)
        LOG.info("%s changes %d layers", path, count)


def agree(model: Opened, one: tuple[str, str, Any], other: tuple[str, str, Any]) -> None:
    """ModelError where two parts of a model ask for other numbers: (part, what, number) twice."""
    if one[2] != other[2]:
        raise ModelError(
            f"the parts of the model in {model.folder} are not of one model: {one[0]} has "
            f"{one[1]}={one[2]}, and {other[0]} {other[1]}={other[2]}"
        )


def require_noise_alone(model: Opened, part: str) -> None:
    """ModelError for a network that wants more than a noisy latent, such as one for inpainting."""
    takes = model.config(part).get("in_channels", 4)
    made = model.config("vae").get("latent_channels", 4)
    if takes != made:
        raise ModelError(
            f"the {part} of the model in {model.folder} takes {takes} channels, and its vae makes "
            f"{made}: it wants more than a noisy picture (9 of 4: a picture and a mask, for "
            "inpainting; 8: a picture to change; 5: its depth; 7: a picture to enlarge); a "
            "text-to-image model is needed, such as the one that it was made from"
        )


LARGEST_PICTURE = 4096  # pixels along a side
MOST_TIMES = 100_000
_RANGES: tuple[tuple[str, str, float, float], ...] = (
    ("vae/config.json", "scaling_factor", 1e-3, 1e3),
    ("unet/config.json", "sample_size", 1, LARGEST_PICTURE // 4),
    ("transformer/config.json", "sample_size", 1, LARGEST_PICTURE // 4),
    ("scheduler/scheduler_config.json", "num_train_timesteps", 2, MOST_TIMES),
    ("scheduler/scheduler_config.json", "beta_start", 1e-9, 1.0),
    ("scheduler/scheduler_config.json", "beta_end", 1e-9, 1.0),
    ("scheduler/scheduler_config.json", "shift", 1e-3, 1e3),
)


def check(model: Opened, parts: Iterable[str]) -> None:
    """Refuse a model folder without one of ``parts``, and settings that cannot be meant. ModelError
    names the file."""
    parts = list(parts)
    for part in parts:
        if not model.part(part).is_dir():
            raise ModelError(
                f"the model in {model.folder} does not load: it has no folder {part} -- all parts "
                "are needed in diffusers layout, with .safetensors weights"
            )
        check_part(model.part(part))
    for name, key, low, high in _RANGES:
        part, _, file = name.partition("/")
        if part not in parts:
            continue
        value = read_json(model.part(part) / file).get(key, low)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not low <= value <= high:
            raise ModelError(
                f"{model.part(part) / file} has {key}={value!r}: allowed are {low:g} to {high:g}"
            )


def quiet(*libraries: Literal["diffusers", "transformers"]) -> None:
    """Loading bars, and notes about absent torchvision or notebook widgets, say nothing that a user
    can act on."""
    warnings.filterwarnings("ignore", message="IProgress not found")  # of tqdm, which is not shown
    for library in libraries:
        module = importlib.import_module(f"{library}.utils.logging")
        module.disable_progress_bar()
        module.set_verbosity_error()
        logging.getLogger(library).setLevel(logging.ERROR)
