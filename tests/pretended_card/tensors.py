# SPDX-License-Identifier: Apache-2.0
"""Tensors that say ``cuda:0`` and hold their numbers on the CPU.

Two modes are active in a process that has the card. One sees every function that is called
from Python: it answers for ``.device``, makes tensors where they are asked for, and moves them. The
other sees every operator, also those that a backward pass begins by itself: it looks for mixed
devices and for waits, and computes on the CPU.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .counting import count, place

aten = torch.ops.aten
CARD = torch.device("cuda:0")


class _Now(threading.local):
    """What is going on in this thread."""

    rooted = False  # a backward pass that began with a tensor on the card
    called = False  # a function that was called from Python, as opposed to by autograd


_now = _Now()


@contextlib.contextmanager
def _set(**values: bool) -> Iterator[None]:
    before = {name: getattr(_now, name) for name in values}
    vars(_now).update(values)
    try:
        yield
    finally:
        vars(_now).update(before)


class OnCard(Tensor):
    """A tensor on the card. C++ takes it for one on the CPU, without memory."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnCard:
        made: OnCard = Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, layout=inner.layout, device="cpu",
        )  # fmt: skip
        return made

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _function(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _operator(func, args, kwargs or {})

    def __deepcopy__(self, memo: Any) -> OnCard:
        copied = OnCard(self.inner.detach().clone())
        copied.requires_grad_(self.requires_grad)
        if getattr(self, "_is_param", False):  # what makes a tensor a Parameter
            copied._is_param = True  # type: ignore[attr-defined]
        memo[id(self)] = copied
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        """In a file it is a tensor on the CPU, as map_location would make it."""
        count("read")
        return self.inner.detach().__reduce_ex__(protocol)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"{self.inner!r} on {CARD}"


def bare(value: Any) -> Any:
    """With the numbers in place of the tensors on the card."""
    if isinstance(value, OnCard):
        return value.inner
    if type(value) in (list, tuple):
        return type(value)([bare(part) for part in value])
    if type(value) is dict:
        return {name: bare(part) for name, part in value.items()}
    return value


def _on_card(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value if isinstance(value, OnCard) else OnCard(value)
    return type(value)([_on_card(v) for v in value]) if type(value) in (list, tuple) else value


def _leaves(args: Any, kwargs: Any) -> list[Any]:
    """All arguments, those in lists by themselves; torch's own walk takes most of a run's time."""
    found: list[Any] = []
    for value in (*args, *kwargs.values()):
        if type(value) in (list, tuple):
            found += _leaves(value, {})
        else:
            found.append(value)
    return found


def mixed(what: object) -> RuntimeError:
    return RuntimeError(
        f"Expected all tensors to be on the same device, but found at least two devices, {CARD} "
        f"and cpu! ({what})"
    )


class _Move(torch.autograd.Function):
    """From the CPU to the card, or back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.inner.clone() if isinstance(x, OnCard) else OnCard(x.detach().clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        moved: Tensor = _Move.apply(gradient)
        return moved


def _move(x: Tensor, non_blocking: bool = False) -> Tensor:
    if isinstance(x, OnCard):
        count("read")
    else:
        waits = not (non_blocking and getattr(x, "pinned", False))
        count("sent and waited" if waits else "sent")
    moved: Tensor = _Move.apply(x)
    return moved


# --- functions that are called from Python


def _to(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    other = next((v for v in (*args, kwargs.get("other")) if isinstance(v, Tensor)), None)
    copy = bool(kwargs.pop("copy", False))
    if other is not None:
        place = CARD if isinstance(other, OnCard) else torch.device("cpu")
        dtype, non_blocking, layout = other.dtype, bool(kwargs.get("non_blocking")), None
    else:
        place, dtype, non_blocking, layout = torch._C._nn._parse_to(*args, **kwargs)
    if place is not None and (place.type == "cuda") != isinstance(x, OnCard):
        x, copy = _move(x, non_blocking), False
    with torch._C.DisableTorchFunctionSubclass():
        options: dict[str, Any] = {} if layout is None else {"memory_format": layout}
        if place is not None and place.type not in ("cpu", "cuda"):
            options["device"] = place
        return Tensor.to(x, dtype=dtype or x.dtype, copy=copy, **options)


def _new_tensor(x: Tensor, data: Any, **kwargs: Any) -> Tensor:
    return _from_data(data, **{"dtype": x.dtype, "device": x.device, **kwargs})


def _from_data(data: Any, dtype: Any = None, device: Any = None, **options: Any) -> Tensor:
    """torch.tensor and its kin: made on the CPU and copied, which waits."""
    if isinstance(data, OnCard):
        return data.detach().clone()
    if isinstance(data, list | tuple) and any(isinstance(v, OnCard) for v in _leaves(data, {})):
        for value in _leaves(data, {}):
            if isinstance(value, OnCard):
                count("read")
        data = bare(data)
    made = torch.tensor(data, dtype=dtype)
    if device is not None and torch.device(device).type == "cuda":
        count("sent and waited")
        made = OnCard(made)
    return made.requires_grad_() if options.get("requires_grad") else made


def _numpy(x: Tensor, *args: Any, **kwargs: Any) -> Any:
    if isinstance(x, OnCard):
        raise TypeError(
            f"can't convert {CARD} device type tensor to numpy. Use Tensor.cpu() to copy the "
            "tensor to host memory first."
        )
    return x.numpy(*args, **kwargs)


def _tolist(x: Tensor) -> Any:
    if isinstance(x, OnCard):
        count("read")
    return bare(x).tolist()


def _pin(x: Tensor, *_: Any) -> Tensor:
    if isinstance(x, OnCard):
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors")
    pinned = x.clone()
    pinned.pinned = True  # type: ignore[attr-defined]
    return pinned


HANDLED: dict[Any, Callable[..., Any]] = {
    Tensor.device.__get__: lambda x: CARD if isinstance(x, OnCard) else x.device,
    Tensor.is_cuda.__get__: lambda x: isinstance(x, OnCard),
    Tensor.is_cpu.__get__: lambda x: not isinstance(x, OnCard),
    Tensor.get_device: lambda x: 0 if isinstance(x, OnCard) else -1,
    Tensor.to: _to,
    Tensor.cpu: lambda x, **_: _to(x, "cpu"),
    Tensor.cuda: lambda x, *_, **k: _to(x, CARD, non_blocking=k.get("non_blocking", False)),
    Tensor.type_as: lambda x, other: _to(x, other),
    Tensor.new_tensor: _new_tensor,
    Tensor.numpy: _numpy,
    Tensor.__array__: _numpy,
    Tensor.tolist: _tolist,
    Tensor.pin_memory: _pin,
    Tensor.is_pinned: lambda x, *_: getattr(x, "pinned", False),
    Tensor.data_ptr: lambda x: bare(x).data_ptr(),
    Tensor.untyped_storage: lambda x: bare(x).untyped_storage(),
    torch.tensor: _from_data,
}


def _function(func: Any, args: Any, kwargs: Any) -> Any:
    kwargs = dict(kwargs)
    device = kwargs.get("device")
    asked = torch.device(device).type if device is not None else None
    some = any(isinstance(value, OnCard) for value in _leaves(args, kwargs))
    handled = HANDLED.get(func)
    if handled is not None and (some or asked == "cuda" or func in _MAY_MOVE):
        with _set(called=True):
            return handled(*args, **kwargs)
    if asked is None or not (some or asked == "cuda"):
        pinned = kwargs.pop("pin_memory", False) and not some
        with torch._C.DisableTorchFunctionSubclass(), _set(called=True):
            out = func(*args, **kwargs)
        return _pin(out) if pinned else out
    return _made(func, args, kwargs, asked)


_MAY_MOVE = {Tensor.to, Tensor.cuda, Tensor.type_as, Tensor.pin_memory, Tensor.is_pinned}


def _made(func: Any, args: Any, kwargs: Any, asked: str) -> Tensor:
    """A new tensor on the device that was named."""
    if func in (torch.as_tensor, torch.asarray):
        return _to(args[0], asked) if isinstance(args[0], Tensor) else _from_data(*args, **kwargs)
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type != asked:
        raise RuntimeError(
            f"Expected a '{asked}' device type for generator but found '{generator.device.type}'"
        )
    del kwargs["device"]
    requires = kwargs.pop("requires_grad", False)
    with torch._C.DisableTorchFunctionSubclass(), _set(called=True):
        out = func(*bare(args), **bare(kwargs))
        out = _on_card(out) if asked == "cuda" else out
    return out.requires_grad_() if requires else out


class Functions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _function(func, args, kwargs or {})


def _backward(run: Callable[..., Any]) -> Callable[..., Any]:
    """The engine of autograd, in which Python may be called back: the modes are on again."""

    def engine(outputs: Any, *args: Any, **kwargs: Any) -> Any:
        rooted = any(isinstance(tensor, OnCard) for tensor in outputs)
        with torch._C._EnableTorchFunction(), Functions(), _set(rooted=rooted, called=False):
            return run(outputs, *args, **kwargs)

    return engine


# --- operators

_INDEXED = {aten.index.Tensor, aten._unsafe_index.Tensor, aten.index_put_.default,
            aten.index_put.default, aten._index_put_impl_.default}  # fmt: skip
_COPIES = {aten.copy_.default, aten._to_copy.default, aten.lift_fresh.default}
_READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero",
          "repeat_interleave.Tensor", "bincount")  # fmt: skip


def _operator(func: Any, args: Any, kwargs: Any) -> Any:
    leaves = _leaves(args, kwargs)
    tensors = [value for value in leaves if isinstance(value, Tensor)]
    some = any(isinstance(tensor, OnCard) for tensor in tensors)
    device = kwargs.get("device")
    asked = device.type if device is not None else None
    if some:
        _examine(func, args, kwargs, tensors)
    # autograd makes what is missing by itself, and C++ believes in the CPU.
    begun = not tensors and _now.rooted and not _now.called
    onto = some or asked == "cuda" or (begun and torch._C._current_autograd_node() is not None)
    if onto and not some:
        generators = [value for value in leaves if isinstance(value, torch.Generator)]
        if any(generator.device.type == "cpu" for generator in generators):
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
    plain = {**kwargs, "device": torch.device("cpu")} if asked == "cuda" else kwargs
    out = func(*bare(args), **bare(plain))
    if func._schema.is_mutable:
        return _written(func, args, kwargs, out, onto)
    if func is aten.index.Tensor:
        onto = isinstance(args[0], OnCard)
    return _on_card(out) if onto else out


lost: list[Callable[[], Exception]] = []
"""What every operator on the card fails with, once a launch has failed."""


def _examine(func: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> None:
    """Mixed devices, and what makes the host wait."""
    for error in lost:
        raise error()
    name = str(func).removeprefix("aten.")
    if func is aten.copy_.default:
        source, target = isinstance(args[1], OnCard), isinstance(args[0], OnCard)
        if source != target and args[1].dim() + args[0].dim() > 0:
            count("read" if source else "sent and waited")
    elif func in _INDEXED:
        _examine_index(func, args)
    elif func not in _COPIES:
        # A number on the CPU travels with the call, and Adam counts its steps there.
        if any(not isinstance(t, OnCard) and t.dim() > 0 for t in tensors):
            raise mixed(f"{name}, {place()}")
        if name.startswith(_READS):
            count("read")
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type == "cpu":
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")


def _examine_index(func: Any, args: Any) -> None:
    indices = [index for index in args[1] if index is not None]
    if not isinstance(args[0], OnCard):
        raise mixed(f"indices on {CARD} of a tensor on the cpu, {place()}")
    for index in indices:
        if not isinstance(index, OnCard) and index.dim() > 0:
            count("sent and waited")
    values = args[2] if len(args) > 2 else None
    if values is not None and not isinstance(values, OnCard) and values.dim() > 0:
        raise mixed(f"{func}, {place()}")
    # One number for a mask is filled in; everything else asks for the places first.
    filled = values is not None and values.numel() == 1 and len(indices) == 1
    if any(index.dtype == torch.bool for index in indices) and not filled:
        count("read")


def _written(func: Any, args: Any, kwargs: Any, out: Any, onto: bool) -> Any:
    """What an operator that writes gives back: the tensors that were given."""
    names = [argument.name for argument in func._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    written = iter(
        given[argument.name]
        for argument in func._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
    )
    returns = func._schema.returns
    outs = [out] if len(returns) == 1 else list(out or ())
    back = [
        next(written) if kind.alias_info is not None else (_on_card(value) if onto else value)
        for kind, value in zip(returns, outs, strict=False)
    ]
    return back[0] if len(returns) == 1 else tuple(back) if returns else None


class Operators(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _operator(func, args, kwargs or {})


def begin() -> None:
    """The modes, for the rest of the process."""
    import torch.autograd

    torch.autograd._engine_run_backward = _backward(torch.autograd._engine_run_backward)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    Functions().__enter__()
    Operators().__enter__()
