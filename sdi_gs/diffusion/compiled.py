# SPDX-License-Identifier: Apache-2.0
"""A plain UNet compiled by OpenVINO for the processor: the same answers, sooner.

It knows this processor's instructions, needs no OpenMP, whose threads wait for one another where
other programs run, and can work in bfloat16 where the processor can. It answers only; whoever wants
a gradient, or trains a copy, asks the network itself.

OpenVINO reads a recording of the network. To make one takes ten seconds, so it is kept in the
user's cache under a digest of all that goes into it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import first_line
from .folder import ModelError
from .plain_unet import Output, PlainUNet

Precision = Literal["float32", "bfloat16"]
_HINTS = {"float32": "f32", "bfloat16": "bf16"}
_RECORDED = "unet.xml"
_RECORDING = 2
"""Counts up when networks are recorded in another way."""


def compile_unet(network: nn.Module, precision: Precision) -> None:
    """Have ``network`` asked through OpenVINO wherever nobody wants a gradient.

    Args:
        precision: in which it computes; questions and answers stay in float32.

    Raises:
        ModelError: OpenVINO is not installed or too old, or the network is not a plain UNet in
            float32 on the CPU.
    """
    # The hook of torch.compile, which copies of a module do not take along.
    network._compiled_call_impl = _Compiled(_plain(network), precision)


def _plain(network: nn.Module) -> PlainUNet:
    """The network, if it can be compiled; ModelError otherwise."""
    try:
        import openvino  # noqa: F401
    except Exception as error:
        raise ModelError(
            f"model.compile=openvino needs OpenVINO, which does not load ({first_line(error)}): "
            "pip install 'sdi-gs[openvino]', or write model.compile=no"
        ) from error
    if not isinstance(network, PlainUNet):
        raise ModelError(
            "model.compile=openvino is for the plain UNet of Stable Diffusion, and the network of "
            f"this model is of class {type(network).__name__}: write model.compile=no"
        )
    if network.rays is not None:
        raise ModelError(
            "model.compile=openvino is for a UNet alone, and this one has an adapter beside it "
            "(model.adapter): write model.compile=no"
        )
    one = next(network.parameters())
    if one.device.type != "cpu":
        raise ModelError(
            f"model.compile=openvino is for the CPU, and this run is on {one.device}: write "
            "model.compile=no, or device=cpu"
        )
    if one.dtype != torch.float32:
        raise ModelError(
            f"model.compile=openvino takes a network in float32, and model.dtype is {one.dtype}: "
            "write model.dtype=float32; model.compile=openvino-bfloat16 computes in bfloat16"
        )
    return network


@functools.cache
def _core() -> Any:
    """OpenVINO itself, once and for as long as the process lives: it brings a larger stack for
    handlers of signals with it where there is one (faulthandler, Jupyter), and frees that with
    itself, so that the next Ctrl-C crashed."""
    import openvino

    return openvino.Core()


class _Compiled:
    def __init__(self, network: PlainUNet, precision: Precision) -> None:
        self._network = network
        self._labelled = network.class_embedding is not None
        core = _core()
        settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._request = core.compile_model(_model(core, network), "CPU", settings)

    def __call__(
        self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor,
        class_labels: Tensor | None = None,
    ) -> Output:  # fmt: skip
        wanted = torch.is_grad_enabled() and (
            x.requires_grad or encoder_hidden_states.requires_grad
        )
        other = (class_labels is not None) != self._labelled  # than what was recorded
        if wanted or other or x.dtype != torch.float32:
            return self._network.forward(x, t, encoder_hidden_states, class_labels)
        asked = [x, t, encoder_hidden_states, *([class_labels] if self._labelled else [])]
        given = [tensor.detach().contiguous().numpy() for tensor in asked if tensor is not None]
        # Shared: OpenVINO reads the arrays where they are; what it returns is a copy.
        out = self._request(given, share_inputs=True, share_outputs=False)[0]
        return Output(torch.from_numpy(out))


class _Bare(nn.Module):
    """A network whose questions and answer are tensors alone."""

    def __init__(self, network: PlainUNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, words: Tensor, labels: Tensor | None = None) -> Tensor:
        out: Tensor = self.network(x, t, words, labels).sample
        return out


def _model(core: Any, network: PlainUNet) -> Any:
    """The network as OpenVINO reads it: from the cache, or recorded now and put there."""
    kept = _cache() / _digest(network)
    if (kept / _RECORDED).is_file():
        # What somebody else has damaged is recorded again.
        with contextlib.suppress(Exception):
            return core.read_model(kept / _RECORDED)
    made = _record(network)
    with contextlib.suppress(OSError):  # no room or not ours to write: the next run records again
        _keep(made, kept)
    return made


def _record(network: PlainUNet) -> Any:
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    c = network.config
    side = 2 ** len(c.block_out_channels)
    rows = 2 * _together(network)
    example = [
        torch.zeros(rows, c.in_channels, side, side),
        torch.zeros(rows, dtype=torch.int64),
        torch.zeros(rows, 7, c.cross_attention_dim),
    ]
    if network.class_embedding is not None:
        example.append(torch.zeros(rows, c.projection_class_embeddings_input_dim))
    # openvino.convert_model does the same, and reports that it was used to its makers.
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of tracing, about shapes that are the same for all
        decoder = TorchScriptPythonDecoder(_Bare(network), example_input=tuple(example))
        frontend = FrontEndManager().load_by_framework("pytorch")
        return frontend.convert(frontend.load(decoder))


def _together(network: PlainUNet) -> int:
    """Rows of the network that attend to each other."""
    return max(int(getattr(module, "views", 1)) for module in network.modules())


def _keep(made: Any, kept: Path) -> None:
    """Write a recording where only whole ones are ever seen."""
    import openvino

    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".new-") as new:
        whole = Path(new) / "whole"
        whole.mkdir()
        openvino.save_model(made, whole / _RECORDED, compress_to_fp16=False)
        shutil.rmtree(kept, ignore_errors=True)  # a damaged one
        whole.rename(kept)


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sdi-gs" / "openvino"


def _digest(network: PlainUNet) -> str:
    """Of all that a recording depends on."""
    found = hashlib.sha256()
    versions = (_RECORDING, importlib.metadata.version("openvino"), torch.__version__,
                _together(network))  # fmt: skip
    found.update(json.dumps([versions, vars(network.config)], sort_keys=True, default=str).encode())
    for name, tensor in network.state_dict().items():
        found.update(f"{name} {tuple(tensor.shape)}".encode())
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()[:32]
