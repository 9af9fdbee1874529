"""A second device where there is none: tensors that say they live on ``elsewhere:0`` and compute on the CPU.

PyTorch lets Python stand in for a backend (its key PrivateUse1). A tensor of the class here holds a CPU tensor that
nobody else sees. Operators run on what is held, and what CUDA refuses is refused: operands on two devices, another
device's generator, a view in NumPy. So code that forgets a tensor on the CPU fails here as it would on a GPU. What it
cannot show: kernels that round otherwise, memory that runs out, work still under way when Python goes on.

Import it before the first backward pass of a process: autograd counts the devices then, and only then. The interface
is experimental; ``MISSING`` is empty or says why it cannot be used here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

NAME = "elsewhere"  # PyTorch adds a method of this name to modules, so no model may have one
aten = torch.ops.aten
_COPIES = (aten._to_copy.default, aten.copy_.default)
_INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
# These take a number on the CPU without saying that they are pointwise.
_TAKE_NUMBERS = (
    aten.where.self, aten.fill.Tensor, aten.fill_.Tensor, aten.masked_fill.Tensor, aten.masked_fill_.Tensor,
    aten.clamp.Tensor, aten.clamp_.Tensor, *_INDEXED,
)  # fmt: skip
# What PyTorch would build from an empty tensor that it enlarges, and what copies where Python is not asked.
_MAKERS = (
    "arange", "arange.start", "arange.start_step", "linspace", "logspace", "eye", "eye.m", "randperm",
    "randperm.generator", "_copy_from", "_local_scalar_dense",
)  # fmt: skip


class Elsewhere(Tensor):
    """A tensor on the simulated device; ``held`` is its content."""

    held: Tensor
    __module__ = "torch"  # by which EagerPy, under Foolbox, tells whose tensor it is
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> Elsewhere:
        made = Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=torch.device(NAME, 0),
        )  # fmt: skip
        made.held = held
        return made

    def tolist(self) -> Any:  # any device's numbers may be read; NumPy is refused by PyTorch
        return self.held.tolist()

    def __format__(self, form: str) -> str:
        return format(self.held, form)

    def __reduce_ex__(self, protocol: Any) -> Any:  # saved tensors come back on the CPU, as map_location="cpu" asks
        return self.held.__reduce_ex__(protocol)

    def __repr__(self, **_: Any) -> str:
        return f"Elsewhere({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, *args, **(kwargs or {}))


class Generator(torch.Generator):
    """What ``torch.Generator`` is to be replaced by in a test: it can be made for the simulated device too."""

    there: ClassVar[dict[int, Generator]] = {}  # by the address that alone survives the way through PyTorch

    def __new__(cls, device: Any = "cpu") -> Generator:
        made: Generator = super().__new__(cls)
        if torch.device(device).type == NAME:
            cls.there[made._cdata] = made
        return made

    def __init__(self, device: Any = "cpu") -> None:
        super().__init__()


class Backend:
    """``torch.elsewhere``: one device with a random state of its own."""

    generator = torch.Generator()

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed(self, seed: int) -> None:
        self.generator.manual_seed(seed)

    manual_seed_all = manual_seed

    def get_rng_state(self, device: Any = 0) -> Tensor:
        return self.generator.get_state()

    def set_rng_state(self, state: Tensor, device: Any = 0) -> None:
        self.generator.set_state(state)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


def there(model: nn.Module) -> nn.Module:
    return model.to(NAME)


def alike(run: Callable[[str], Any]) -> Any:
    """What ``run`` gives on the CPU, which must be what it gives there; the random state there stays as it is."""
    here = run("cpu")
    before = Backend.generator.get_state()
    assert run(NAME) == here
    assert torch.equal(Backend.generator.get_state(), before)
    return here


def _run(function: Any, *args: Any, **kwargs: Any) -> Any:
    """One operator, on what its arguments hold. Its result is on the device that they or ``device`` name."""
    if function is aten._copy_from.default:
        return _run(aten.copy_.default, args[1], args[0])
    returned, draws, takes_generator = _traits(function)
    there = any(isinstance(tensor, Elsewhere) for tensor in _tensors((args, kwargs)))
    if kwargs.get("device") is not None:
        there = torch.device(kwargs["device"]).type != "cpu"
        kwargs["device"] = torch.device("cpu")
    kwargs.pop("pin_memory", None)
    _refuse_mixed(function, args, kwargs)
    held, named = _held(args), _held(kwargs)
    if not (there and draws):
        result = function(*held, **named)
    elif takes_generator:
        named["generator"] = _generator(kwargs.get("generator"))
        result = function(*held, **named)
    else:
        with _device_draws():
            result = function(*held, **named)
    if not any(returned):
        return _wrapped(result) if there else result
    if torch.Tag.inplace_view in function.tags:
        _reshape(function, args, kwargs)
    written = tuple(kwargs[name] if name in kwargs else args[place] for place, name in filter(None, returned))
    for tensor in _tensors(written):
        if isinstance(tensor, Elsewhere) and tensor.shape != tensor.held.shape:
            raise NotImplementedError(f"{function} changed a shape in place, which cannot be simulated")
    return written[0] if len(written) == 1 else written


def _reshape(function: Any, args: Any, kwargs: Any) -> None:
    """Give the tensor itself the shape that what it holds has got."""
    before = torch._C._meta_in_tls_dispatch_include()
    with torch.utils._mode_utils.no_dispatch():
        torch._C._set_meta_in_tls_dispatch_include(True)
        try:
            function(*args, **kwargs)
        finally:
            torch._C._set_meta_in_tls_dispatch_include(before)


@lru_cache(None)
def _traits(function: Any) -> tuple[list[tuple[int, str] | None], bool, bool]:
    """For each result the argument that it is, None for a new tensor; whether it draws, and from what is given it."""
    schema = function._schema
    names = {
        next(iter(argument.alias_info.before_set), ""): (place, argument.name)
        for place, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    }
    results = [
        names[next(iter(result.alias_info.before_set))] if result.alias_info and result.alias_info.is_write else None
        for result in schema.returns
    ]
    takes_generator = any(argument.name == "generator" for argument in schema.arguments)
    return results, takes_generator or torch.Tag.nondeterministic_seeded in function.tags, takes_generator


def _refuse_mixed(function: Any, args: Any, kwargs: Any) -> None:
    """Raise what CUDA raises where operands are on two devices. It takes numbers, and indices, from the CPU."""
    if function in _COPIES:
        return
    first, indices = (args[0] if args else None), ()
    if function in _INDEXED and isinstance(first, Elsewhere):
        indices = tuple(id(tensor) for tensor in _tensors(args[1]))
    tensors = list(_tensors((args, kwargs)))
    here = [tensor for tensor in tensors if not isinstance(tensor, Elsewhere) and id(tensor) not in indices]
    if not here or not any(isinstance(tensor, Elsewhere) for tensor in tensors):
        return
    numbers = torch.Tag.pointwise in function.tags or function in _TAKE_NUMBERS
    written = any(_traits(function)[0]) and (kwargs.get("out", first) is not None)
    target = kwargs.get("out", first) if written else None
    if not numbers or any(tensor.dim() for tensor in here) or any(tensor is target for tensor in here):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {NAME}:0 and cpu! "
            f"(when running {function})"
        )


def _generator(given: Any) -> torch.Generator:
    if given is None:
        return Backend.generator
    if given._cdata not in Generator.there:
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu'")
    return Generator.there[given._cdata]


@contextmanager
def _device_draws() -> Iterator[None]:
    """The CPU's random numbers are the device's for so long."""
    if Backend.generator is torch.default_generator:
        yield
        return
    before = torch.get_rng_state()
    torch.set_rng_state(Backend.generator.get_state())
    try:
        yield
    finally:
        Backend.generator.set_state(torch.get_rng_state())
        torch.set_rng_state(before)


def _narrow(function: Any, *args: Any, **kwargs: Any) -> Any:
    """What autocast does with products and convolutions."""
    dtype = torch.get_autocast_dtype(NAME)
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
    with torch._C._ExcludeDispatchKeyGuard(keys):
        return function(
            *(a.to(dtype) if isinstance(a, Tensor) and a.dtype == torch.float32 else a for a in args), **kwargs
        )


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _held(value: Any) -> Any:
    if isinstance(value, Elsewhere):
        return value.held
    if isinstance(value, (list, tuple)):
        return type(value)(map(_held, value))
    return {name: _held(part) for name, part in value.items()} if isinstance(value, dict) else value


def _wrapped(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Elsewhere(value)
    return type(value)(map(_wrapped, value)) if isinstance(value, (list, tuple)) else value


def _register() -> str:
    try:
        from torch.utils.backend_registration import _setup_privateuseone_for_python_backend as set_up

        set_up(NAME, backend_module=Backend())
        _ANY.fallback(_run, "PrivateUse1")
        for name in _MAKERS:
            packet, _, overload = name.partition(".")
            _ATEN.impl(name, partial(_run, getattr(getattr(aten, packet), overload or "default")), "PrivateUse1")
        _ANY.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
        for name in ("conv2d", "linear", "matmul"):
            _ATEN.impl(name, partial(_narrow, getattr(aten, name).default), "AutocastPrivateUse1")
        probe = Elsewhere(torch.ones(2)).requires_grad_()
        (gradient,) = torch.autograd.grad((probe * torch.arange(2, device=NAME)).sum(), probe)
    except Exception as error:
        return f"torch {torch.__version__} cannot have a device written in Python ({str(error).splitlines()[0][:200]})"
    return "" if gradient.tolist() == [0, 1] else f"torch {torch.__version__}: a device in Python has wrong gradients"


_ANY, _ATEN = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
MISSING = _register()
