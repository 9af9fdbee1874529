"""From a module to the network of operations that bounds are computed on, by torch.fx.

Every operation is run on example images as it is translated, and the finished network must give the model's own
logits; what cannot be translated is named in :class:`Unsupported`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from robust.copying import close, unfit
from robust.defenses.bounds.layers import LAYERS, adaptive_average_pool, average_pool, pair
from robust.defenses.bounds.operations import (
    Dense,
    Input,
    MaxPool,
    Network,
    Node,
    Operation,
    Positive,
    Relu,
    Reshape,
    Scale,
    Total,
)
from robust.defenses.bounds.unsupported import Unsupported
from robust.models import evaluating

_EXAMPLES = 3


@dataclass(frozen=True)
class _Value:
    """An activation: its node, and what it is for the example images."""

    index: int
    example: Tensor


def trace(model: nn.Module, images: Tensor) -> Network:
    """The network of ``model`` in eval mode, checked against it on the first of ``images`` (N, C, H, W).

    Raises :class:`Unsupported`, which names the layer or operation, where there is none.
    """
    reason = unfit(model)
    if reason:
        raise Unsupported(reason)
    examples = images[:_EXAMPLES]
    if len(examples) < _EXAMPLES:
        examples = examples.repeat(_EXAMPLES, 1, 1, 1)[:_EXAMPLES]
    with evaluating(model), torch.no_grad():
        try:
            graph = fx.Tracer().trace(model)
        except Exception as error:  # whatever a model's own code does with a proxy
            raise Unsupported(f"its code cannot be traced ({_first_line(error)})") from None
        network = _Translator(model, examples).run(graph)
        if not close(network.forward(examples), model(examples).float(), 1e-4):
            raise Unsupported("its traced operations give other logits than it does")
    return network


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:120]


class _Translator:
    def __init__(self, model: nn.Module, examples: Tensor) -> None:
        self.model, self.examples = model, examples
        self.nodes: list[Node] = []

    def run(self, graph: fx.Graph) -> Network:
        values: dict[fx.Node, Any] = {}
        for node in graph.nodes:
            if node.op == "output":
                result = self._look_up(node.args[0], values)
                if not isinstance(result, _Value) or result.example.dim() != 2:
                    raise Unsupported("its output is not one tensor of logits")
                if result.index != len(self.nodes) - 1:
                    result = self._add(Positive(torch.clone, (1, 1)), [result])
                return Network(tuple(self.nodes[: result.index + 1]))
            values[node] = self._translate(node, values)
        raise Unsupported("it has no output")

    def _translate(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        if node.op == "placeholder":
            if self.nodes:
                return node.args[0] if node.args else None
            self.nodes.append(Node(Input(), (), tuple(self.examples.shape[1:])))
            return _Value(0, self.examples)
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.model)
        arguments = [self._look_up(argument, values) for argument in node.args]
        keywords = {name: self._look_up(value, values) for name, value in node.kwargs.items()}
        if node.op == "call_module":
            return self._module(str(node.target), arguments, keywords)
        name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", str(node.target))
        if not any(isinstance(part, _Value) for part in _flat([*arguments, *keywords.values()])):
            return _run(node, arguments, keywords)
        return self._function(name, node, arguments, keywords)

    def _look_up(self, argument: Any, values: dict[fx.Node, Any]) -> Any:
        return fx.node.map_arg(argument, lambda found: values[found])

    def _add(self, operation: Operation, inputs: list[_Value]) -> _Value:
        """Append an operation and run it on the examples."""
        if isinstance(operation, Input):
            raise Unsupported("it has two inputs")
        example = operation.forward(*(value.example for value in inputs))
        if example.dim() < 2 or len(example) != _EXAMPLES:
            raise Unsupported("an operation mixes the images of a batch")
        self.nodes.append(Node(operation, tuple(value.index for value in inputs), tuple(example.shape[1:])))
        return _Value(len(self.nodes) - 1, example)

    def _module(self, target: str, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        module = self.model.get_submodule(target)
        kind = type(module)
        if len(arguments) != 1 or keywords or not isinstance(arguments[0], _Value):
            raise Unsupported(f"layer {target} ({kind.__name__}) does not take one activation")
        made = LAYERS.get(kind)
        if made is None:
            raise Unsupported(f"layer {target} ({kind.__name__})")
        operation = made(module, arguments[0].example)
        if isinstance(operation, str):
            raise Unsupported(f"layer {target} ({kind.__name__} {operation})")
        return arguments[0] if operation is None else self._add(operation, [arguments[0]])

    # Functions and methods

    def _function(self, name: str, node: fx.Node, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        name = name.strip("_")
        if name in _ARITHMETIC:
            return self._arithmetic(_ARITHMETIC[name], name, arguments, keywords)
        if name in _SHAPES:
            return _run(node, *_examples(arguments, keywords))
        values = [part for part in _flat([*arguments, *keywords.values()]) if isinstance(part, _Value)]
        if name in ("cat", "concat"):
            return self._add(Positive(lambda *parts: _cat(parts, arguments, keywords), (1, 1)), values)
        if len(values) != 1 or arguments[:1] != values:
            raise Unsupported(f"operation {name}")
        value, rest = values[0], arguments[1:]
        if name == "getattr":
            found = getattr(value.example, rest[0])
            return found if not isinstance(found, Tensor) else self._unknown(name)
        if name == "relu":
            return self._add(Relu(), [value])
        if name in ("contiguous", "clone", "float", "identity"):
            return value
        if name == "dropout":
            training = keywords.get("training", rest[1] if len(rest) > 1 else True)
            return value if not training else self._unknown("dropout that is on in eval mode")
        if name == "max_pool2d":
            return self._add(_max_pool(*rest, **keywords), [value])
        if name == "matmul" and isinstance(rest[0], Tensor) and rest[0].dim() == value.example.dim() == 2:
            return self._add(Dense(rest[0].detach().T, None), [value])
        if name in _RESHAPES:
            return self._reshape(name, node, arguments, keywords, value)
        if name in _POSITIVE:
            return self._positive(name, node, rest, keywords, value)
        return self._unknown(name)

    def _unknown(self, name: str) -> Any:
        raise Unsupported(f"operation {name}")

    def _arithmetic(
        self, rule: Callable[[Any, Any], tuple[Any, Any]], name: str, arguments: list[Any], keywords: dict[str, Any]
    ) -> _Value:
        if len(arguments) != 2 or keywords:
            raise Unsupported(f"operation {name} with other than two arguments")
        left, right = arguments
        if isinstance(left, _Value) and isinstance(right, _Value):
            if name not in _SIGNS or left.example.shape != right.example.shape:
                raise Unsupported(f"operation {name} of two activations")
            return self._add(Total((1, _SIGNS[name])), [left, right])
        value, constant = (left, right) if isinstance(left, _Value) else (right, left)
        factor, shift = rule(*(None if part is value else _constant(part, value) for part in (left, right)))
        if factor is None:
            raise Unsupported(f"operation {name} by an activation")
        if isinstance(constant, Tensor) and constant.dim() == value.example.dim() and len(constant) != 1:
            raise Unsupported(f"operation {name} with a constant for each image of a batch")
        return self._add(Scale(_inner(factor, value), _inner(shift, value)), [value])

    def _reshape(
        self, name: str, node: fx.Node, arguments: list[Any], keywords: dict[str, Any], value: _Value
    ) -> _Value:
        example = _run(node, *_examples(arguments, keywords))
        if len(example) != _EXAMPLES or example[0].numel() != value.example[0].numel():
            raise Unsupported(f"operation {name} over the batch")
        return self._add(Reshape(tuple(example.shape[1:])), [value])

    def _positive(self, name: str, node: fx.Node, rest: list[Any], keywords: dict[str, Any], value: _Value) -> _Value:
        def function(inputs: Tensor) -> Tensor:
            found: Tensor = _run(node, [inputs, *rest], keywords)
            return found

        if name == "getitem" and not _keeps_batch(rest[0]):
            raise Unsupported("operation getitem over the batch")
        if name == "pad":
            mode, filling = _argument(rest, keywords, 1, "mode"), _argument(rest, keywords, 2, "value")
            if mode not in (None, "constant") or filling not in (None, 0, 0.0) or min(rest[0]) < 0:
                raise Unsupported("operation pad other than by zeros")
        if name == "avg_pool2d":
            kernel, stride = (_argument(rest, keywords, *which) for which in ((0, "kernel_size"), (1, "stride")))
            return self._add(average_pool(function, kernel, stride), [value])
        if name == "adaptive_avg_pool2d":
            return self._add(adaptive_average_pool(function, value.example), [value])
        if name == "mean":
            dims = _argument(rest, keywords, 0, "dim")
            places = [dims] if isinstance(dims, int) else list(dims or [0])
            if any(place % value.example.dim() == 0 for place in places):
                raise Unsupported("operation mean over the batch")
        most = (value.example[0].numel(), value.example[0].numel()) if name == "mean" else (1, 1)
        return self._add(Positive(function, most), [value])


_SIGNS = {"add": 1, "iadd": 1, "sub": -1, "isub": -1}


def _plus(left: Any, right: Any) -> tuple[Any, Any]:
    return 1.0, right if left is None else left


def _minus(left: Any, right: Any) -> tuple[Any, Any]:
    return (1.0, -right) if left is None else (-1.0, left)


def _times(left: Any, right: Any) -> tuple[Any, Any]:
    return (right if left is None else left), 0.0


def _over(left: Any, right: Any) -> tuple[Any, Any]:
    return (1.0 / right, 0.0) if left is None else (None, None)


_ARITHMETIC: dict[str, Callable[[Any, Any], tuple[Any, Any]]] = {
    "add": _plus, "iadd": _plus, "sub": _minus, "isub": _minus, "subtract": _minus, "mul": _times, "imul": _times,
    "multiply": _times, "truediv": _over, "itruediv": _over, "div": _over, "divide": _over,
}  # fmt: skip
_SHAPES = ("size", "dim", "numel")
_RESHAPES = ("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze")
_POSITIVE = ("getitem", "pad", "avg_pool2d", "adaptive_avg_pool2d", "mean")


def _flat(parts: list[Any]) -> list[Any]:
    return [inner for part in parts for inner in (_flat(list(part)) if isinstance(part, (list, tuple)) else [part])]


def _argument(rest: list[Any], keywords: dict[str, Any], place: int, name: str) -> Any:
    return rest[place] if len(rest) > place else keywords.get(name)


def _run(node: fx.Node, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    if node.op == "call_method":
        return getattr(arguments[0], str(node.target))(*arguments[1:], **keywords)
    if not callable(node.target):
        raise Unsupported(f"operation {node.target}")
    return node.target(*arguments, **keywords)


def _examples(arguments: list[Any], keywords: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    def swap(part: Any) -> Any:
        return part.example if isinstance(part, _Value) else part

    return [swap(part) for part in arguments], {name: swap(part) for name, part in keywords.items()}


def _constant(part: Any, value: _Value) -> Tensor:
    """A number or tensor in float64, so that 1 / std and the like are not rounded twice."""
    if not isinstance(part, (int, float, Tensor)) or (isinstance(part, Tensor) and part.dim() > value.example.dim()):
        raise Unsupported(f"arithmetic with {type(part).__name__}")
    return torch.as_tensor(part, device=value.example.device).double()


def _inner(constant: float | Tensor, value: _Value) -> Tensor:
    """A constant that broadcasts over one activation, whose place for the batch is dropped."""
    tensor = torch.as_tensor(constant, dtype=torch.float64, device=value.example.device)
    tensor = tensor[0] if tensor.dim() == value.example.dim() else tensor
    return tensor.to(value.example.dtype)


def _keeps_batch(index: Any) -> bool:
    """Whether an index leaves the batch whole and takes plain slices of the rest."""
    parts = index if isinstance(index, tuple) else (index,)
    whole = parts[0] is Ellipsis or parts[0] == slice(None)
    return whole and all(isinstance(part, (slice, int)) or part is Ellipsis for part in parts)


def _cat(parts: tuple[Tensor, ...], arguments: list[Any], keywords: dict[str, Any]) -> Tensor:
    dim = arguments[1] if len(arguments) > 1 else keywords.get("dim", 0)
    if not isinstance(dim, int) or dim % parts[0].dim() == 0 or len(_flat([arguments[0]])) != len(parts):
        raise Unsupported("operation cat other than of activations, image by image")
    return torch.cat(parts, dim)


def _max_pool(
    kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
    return_indices: bool = False,
) -> MaxPool:  # fmt: skip
    if pair(dilation) != (1, 1) or ceil_mode or return_indices:
        raise Unsupported("operation max_pool2d with dilation, ceil_mode or indices")
    return MaxPool(pair(kernel_size), pair(stride or kernel_size), pair(padding))
