"""The operations a provable network is made of, each with what its bounds need.

Activations are (N, *shape). An :class:`Affine` operation maps one or more activations to W x + b; besides running
forward it gives |W| x (for intervals), W^T g (for linear bounds walked backward) and the number of products in one sum
(for rounding). :class:`Relu` and :class:`MaxPool` are what is not affine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

Shape = tuple[int, ...]
Pair = tuple[int, int]


class Affine(ABC):
    """W x + b. ``offset`` is b, of a shape that broadcasts over one activation, or None."""

    offset: Tensor | None = None

    @abstractmethod
    def linear(self, *inputs: Tensor) -> Tensor:
        """W x, without b."""

    @abstractmethod
    def absolute(self, *inputs: Tensor) -> Tensor:
        """|W| x, without b."""

    @abstractmethod
    def adjoint(self, gradient: Tensor, shapes: tuple[Shape, ...]) -> tuple[Tensor, ...]:
        """W^T g for g (N, *output shape): one (N, *shape) for each input."""

    def squared(self, inputs: Tensor) -> Tensor | None:
        """(W * W) x, with which l2 norms of rows are found; None where that is not at hand."""
        return None

    @property
    @abstractmethod
    def terms(self) -> Pair:
        """The most products that one sum has, forward and backward."""

    def forward(self, *inputs: Tensor) -> Tensor:
        result = self.linear(*inputs)
        return result if self.offset is None else result + self.offset

    def magnitude(self, *inputs: Tensor) -> Tensor:
        """|W| x + |b|: what rounding errors are relative to."""
        result = self.absolute(*inputs)
        return result if self.offset is None else result + self.offset.abs()


@dataclass(eq=False)
class Convolution(Affine):
    """Two-dimensional convolution, padded with zeros."""

    weight: Tensor
    bias: Tensor | None
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    def __post_init__(self) -> None:
        self.offset = None if self.bias is None else self.bias.view(-1, 1, 1)

    def _run(self, weight: Tensor, inputs: Tensor) -> Tensor:
        return F.conv2d(inputs, weight, None, self.stride, self.padding, self.dilation, self.groups)

    def linear(self, *inputs: Tensor) -> Tensor:
        return self._run(self.weight, inputs[0])

    def absolute(self, *inputs: Tensor) -> Tensor:
        return self._run(self.weight.abs(), inputs[0])

    def squared(self, inputs: Tensor) -> Tensor:
        return self._run(self.weight.square(), inputs)

    def adjoint(self, gradient: Tensor, shapes: tuple[Shape, ...]) -> tuple[Tensor, ...]:
        size = [len(gradient), *shapes[0]]
        settings = (self.stride, self.padding, self.dilation, self.groups)
        return (conv2d_input(size, self.weight, gradient, *settings),)  # type: ignore[no-untyped-call]

    @property
    def terms(self) -> Pair:
        outputs, inputs, height, width = self.weight.shape
        return inputs * height * width + 1, outputs // self.groups * height * width


@dataclass(eq=False)
class Dense(Affine):
    """A linear layer over vectors."""

    weight: Tensor
    bias: Tensor | None

    def __post_init__(self) -> None:
        self.offset = self.bias

    def linear(self, *inputs: Tensor) -> Tensor:
        return inputs[0] @ self.weight.T

    def absolute(self, *inputs: Tensor) -> Tensor:
        return inputs[0] @ self.weight.abs().T

    def squared(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight.square().T

    def adjoint(self, gradient: Tensor, shapes: tuple[Shape, ...]) -> tuple[Tensor, ...]:
        return (gradient @ self.weight,)

    @property
    def terms(self) -> Pair:
        outputs, inputs = self.weight.shape
        return inputs + 1, outputs


@dataclass(eq=False)
class Scale(Affine):
    """Each value times a constant plus a constant: normalization, batch normalization, arithmetic with numbers.

    ``roundings``: how many float32 roundings separate the model's own way of computing it from the exact result.
    """

    factor: Tensor
    shift: Tensor
    roundings: int = 3

    def __post_init__(self) -> None:
        self.offset = self.shift

    def linear(self, *inputs: Tensor) -> Tensor:
        return inputs[0] * self.factor

    def absolute(self, *inputs: Tensor) -> Tensor:
        return inputs[0] * self.factor.abs()

    def squared(self, inputs: Tensor) -> Tensor:
        return inputs * self.factor.square()

    def adjoint(self, gradient: Tensor, shapes: tuple[Shape, ...]) -> tuple[Tensor, ...]:
        return (gradient * self.factor,)

    @property
    def terms(self) -> Pair:
        return self.roundings, 1


@dataclass(eq=False)
class Total(Affine):
    """The sum of activations of one shape, each times a sign: residual sums and differences."""

    signs: tuple[int, ...]

    def linear(self, *inputs: Tensor) -> Tensor:
        result = inputs[0] * self.signs[0]
        for sign, value in zip(self.signs[1:], inputs[1:], strict=True):
            result = result + sign * value
        return result

    def absolute(self, *inputs: Tensor) -> Tensor:
        return torch.stack(inputs).sum(0)

    def adjoint(self, gradient: Tensor, shapes: tuple[Shape, ...]) -> tuple[Tensor, ...]:
        return tuple(gradient if sign > 0 else -gradient for sign in self.signs)

    @property
    def terms(self) -> Pair:
        return len(self.signs), 1


@dataclass(eq=False)
class Reshape(Affine):
    """The same values in another shape."""

    shape: Shape

    def linear(self, *inputs: Tensor) -> Tensor:
        return inputs[0].reshape(len(inputs[0]), *self.shape)

    def absolute(self, *inputs: Tensor) -> Tensor:
        return self.linear(*inputs)

    def adjoint(self, gradient: Tensor, shapes: tuple[Shape, ...]) -> tuple[Tensor, ...]:
        return (gradient.reshape(len(gradient), *shapes[0]),)

    @property
    def terms(self) -> Pair:
        return 0, 0


@dataclass(eq=False)
class Positive(Affine):
    """Any linear map without negative weights and without offset: averages, zero padding, slices, concatenation.

    ``function`` takes the inputs, of any N; its transpose comes from automatic differentiation. ``most`` bounds the
    products in one sum, forward and backward.
    """

    function: Callable[..., Tensor]
    most: Pair

    def linear(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)

    def absolute(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)

    def adjoint(self, gradient: Tensor, shapes: tuple[Shape, ...]) -> tuple[Tensor, ...]:
        zeros = tuple(gradient.new_zeros(len(gradient), *shape) for shape in shapes)
        with torch.enable_grad():
            zeros = tuple(zero.requires_grad_() for zero in zeros)
            result = self.function(*zeros)
        return torch.autograd.grad(result, zeros, gradient, create_graph=gradient.requires_grad)

    @property
    def terms(self) -> Pair:
        return self.most


@dataclass(eq=False)
class Relu:
    """max(x, 0)."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0].relu()


@dataclass(eq=False)
class MaxPool:
    """The maximum over windows."""

    kernel: Pair
    stride: Pair
    padding: Pair

    def forward(self, *inputs: Tensor) -> Tensor:
        return F.max_pool2d(inputs[0], self.kernel, self.stride, self.padding)

    @property
    def overlap(self) -> int:
        """In how many windows one value can lie."""
        return prod(-(-kernel // stride) for kernel, stride in zip(self.kernel, self.stride, strict=True))


@dataclass(eq=False)
class Input:
    """The image."""


Operation = Affine | Relu | MaxPool | Input


@dataclass(frozen=True, eq=False)
class Node:
    """One operation, the nodes it reads, and the shape of one of its activations."""

    operation: Operation
    inputs: tuple[int, ...]
    shape: Shape


@dataclass(frozen=True, eq=False)
class Network:
    """Operations in the order they run; the first is the image, the last the logits."""

    nodes: tuple[Node, ...]

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W)."""
        values: list[Tensor] = []
        for node in self.nodes:
            operation = node.operation
            inputs = [values[index] for index in node.inputs]
            values.append(images if isinstance(operation, Input) else operation.forward(*inputs))
        return values[-1]

    def shapes(self, index: int) -> tuple[Shape, ...]:
        """The shapes of the inputs of one node."""
        return tuple(self.nodes[source].shape for source in self.nodes[index].inputs)
