"""The gradient of a contrastive loss of a large batch, in the memory of a small one."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from wsss_blocks._validate import check_int, check_sequence, check_tensor

__all__ = ["cached_gradient_backward"]

Inputs = Tensor | Sequence[Tensor] | Mapping[str, Tensor]


def cached_gradient_backward(
    encoders: Sequence[Callable[..., Any]],
    inputs: Sequence[Inputs],
    loss_fn: Callable[..., Tensor],
    *,
    chunk_size: int,
    backward: Callable[[Tensor], object] | None = None,
) -> Tensor:
    r"""Add the gradients of ``loss_fn(encoder(x), ...)`` to ``.grad``, chunk by chunk.

    .. math::

        \frac{\partial L}{\partial \theta} = \sum_i
            \frac{\partial L}{\partial z_i} \frac{\partial z_i}{\partial \theta}, \qquad
        z = (E_\theta(x_1), \dots, E_\theta(x_n))

    All embeddings :math:`z` are made without a graph; the loss of all of them gives
    :math:`\partial L / \partial z` and the gradients of what ``loss_fn`` itself uses (a
    temperature); then each chunk is encoded again, with the same random numbers, and its share is
    sent back. One chunk of one encoder is alive at a time, for the price of one more forward pass.

    Reference:
        Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
        RepL4NLP 2021, section 3.2, https://arxiv.org/abs/2101.06983 (GradCache)

    Note:
        Equal to the plain batch where a row does not depend on the others of its batch: batch norm
        in training mode sees chunks, and updates its statistics once per chunk where the encoder is
        a module or a method of one (twice in a function).

        Autocast belongs into the encoders, as ``Accelerator.prepare`` puts it. A loss scale is
        applied once, in ``backward``. With DistributedDataParallel each encoder must be a wrapped
        module of its own: gradients are exchanged after its last chunk alone. One wrapped module
        may make all embeddings; what it returns without an axis (a scale) is sent back once. What
        is in no wrapped module has to be averaged by its owner. The loss gathers as ever.

    Args:
        encoders: called with a chunk; each returns a tensor with one row per row of its input, or
            a tuple or dictionary of such, where a scalar is the same for every chunk.
        inputs: for each encoder a tensor, or a tuple (positional) or dictionary (keyword
            arguments) of tensors, which are cut along axis 0. Encoders may differ in rows.
        loss_fn: from all embeddings, those of the first encoder first, to a scalar.
        chunk_size: rows of one forward pass.
        backward: sends the loss back; ``accelerator.backward``, or one that scales it for a
            ``GradScaler``. None: ``loss.backward()``.

    Returns:
        The loss, detached. The random state is as after one forward pass of each chunk and the
        loss.

    Raises:
        ValueError: numbers of encoders and inputs differ, inputs of one encoder differ in rows or
            have none, an encoder returns another number of rows, or the loss is no scalar.
        TypeError: an input is no tensor, or an encoder returns something else.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from wsss_blocks.losses import image_text_contrastive_loss
        >>> image, text = nn.Linear(6, 4), nn.Linear(5, 4)
        >>> scale = nn.Parameter(torch.tensor(2.0))
        >>> batch = torch.randn(8, 6), torch.randn(8, 5)
        >>> loss = cached_gradient_backward(
        ...     [image, text],
        ...     batch,
        ...     lambda z, t: image_text_contrastive_loss(z, t, scale.exp()),
        ...     chunk_size=3,
        ... )
        >>> plain = image_text_contrastive_loss(image(batch[0]), text(batch[1]), scale.exp())
        >>> (expected,) = torch.autograd.grad(plain, image.weight)
        >>> torch.allclose(loss, plain), torch.allclose(image.weight.grad, expected, atol=1e-6)
        (True, True)
    """
    check_int("chunk_size", chunk_size, least=1)
    check_sequence("encoders", encoders)
    check_sequence("inputs", inputs)
    if len(encoders) != len(inputs):
        raise ValueError(f"inputs must be one per encoder ({len(encoders)}), got {len(inputs)}.")
    towers = [
        _Tower(encoder, x, chunk_size, number)
        for number, (encoder, x) in enumerate(zip(encoders, inputs, strict=True))
    ]
    embeddings = [tower.embed() for tower in towers]
    torch.clear_autocast_cache()  # it holds copies of weights that have no gradient
    loss = loss_fn(*(z for group in embeddings for z in group))
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise ValueError("loss_fn must return a tensor with one value.")
    if backward is None:
        loss.backward()  # type: ignore[no-untyped-call]
    else:
        backward(loss)
    with torch.random.fork_rng(sorted({index for tower in towers for index in tower.devices})):
        for tower, group in zip(towers, embeddings, strict=True):
            tower.send_back([z.grad for z in group])
    return loss.detach()


class _Tower:
    """One encoder with its inputs and the random states that its chunks began with."""

    def __init__(
        self, encoder: Callable[..., Any], inputs: Inputs, chunk_size: int, number: int
    ) -> None:
        self.encoder, self.number = encoder, number
        # of a method, the module that it belongs to
        owner = getattr(encoder, "__self__", encoder)
        self.module = owner if isinstance(owner, nn.Module) else nn.Identity()
        self.inputs = _as_arguments(f"inputs[{number}]", inputs)
        tensors = list(self.inputs.values())
        self.rows = _slices(len(tensors[0]), chunk_size)
        places = {x.device for x in (*tensors, *self.module.parameters())}
        self.devices = sorted(place.index for place in places if place.type == "cuda")
        self.states: list[list[Tensor]] = []

    def embed(self) -> list[Tensor]:
        """Return the embeddings of all rows, as leaves that collect a gradient."""
        buffers = [(x, x.clone()) for x in self.module.buffers()]
        chunks = []
        with torch.no_grad(), self._unsynchronised():
            for rows in self.rows:
                self.states.append(_random_states(self.devices))
                chunks.append(self._encode(rows))
            for buffer, before in buffers:  # statistics, which the second pass updates
                if not torch.equal(buffer, before):
                    buffer.copy_(before)
            whole = [torch.cat(z) if z[0].ndim else z[0] for z in zip(*chunks, strict=True)]
        return [z.detach().requires_grad_(z.is_floating_point()) for z in whole]

    def send_back(self, grads: Sequence[Tensor | None]) -> None:
        """Encode each chunk again and send its share of the gradients back."""
        if all(grad is None for grad in grads):
            return  # not used by the loss
        for number, rows in enumerate(self.rows):
            last = number == len(self.rows) - 1
            with nullcontext() if last else self._unsynchronised():
                _set_random_states(self.states[number], self.devices)
                outputs = zip(self._encode(rows), grads, strict=True)
                wanted = [(z, g) for z, g in outputs if z.requires_grad and g is not None]
                if not wanted:
                    return  # a frozen encoder
                # a scalar is one for all chunks: its gradient goes back once
                pairs = [(z, g[rows] if z.ndim else g) for z, g in wanted if z.ndim or last]
                if pairs:
                    torch.autograd.backward([z for z, _ in pairs], [g for _, g in pairs])

    def _encode(self, rows: slice) -> list[Tensor]:
        positional = [x[rows] for key, x in self.inputs.items() if isinstance(key, int)]
        named = {key: x[rows] for key, x in self.inputs.items() if isinstance(key, str)}
        found = self.encoder(*positional, **named)
        return _checked_outputs(f"encoders[{self.number}]", found, rows.stop - rows.start)

    def _unsynchronised(self) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = getattr(self.encoder, "no_sync", nullcontext)()
        return context


def _slices(count: int, size: int) -> list[slice]:
    return [slice(i, min(i + size, count)) for i in range(0, count, size)]


def _as_arguments(name: str, inputs: Inputs) -> dict[int | str, Tensor]:
    """Return tensors by position or keyword."""
    if isinstance(inputs, Tensor):
        inputs = (inputs,)
    if not isinstance(inputs, Mapping):
        check_sequence(name, inputs)
    pairs = inputs.items() if isinstance(inputs, Mapping) else enumerate(inputs)
    found: dict[int | str, Tensor] = dict(pairs)
    for key, x in found.items():
        check_tensor(f"{name}[{key!r}]", x)
    rows = sorted({len(x) if x.ndim else 0 for x in found.values()})
    if len(rows) != 1 or rows == [0]:
        raise ValueError(f"{name} must have one number of rows, at least 1, got {rows}.")
    return found


def _checked_outputs(name: str, found: Any, rows: int) -> list[Tensor]:
    values = found.values() if isinstance(found, Mapping) else found
    values = (values,) if isinstance(values, Tensor) else values
    if not isinstance(values, Iterable) or not all(isinstance(z, Tensor) for z in (*values,)):
        raise TypeError(f"{name} must return tensors, got {type(found).__name__}.")
    for z in values:
        if z.ndim and len(z) != rows:
            raise ValueError(
                f"{name} must return one row per row of its input ({rows}), got {len(z)}."
            )
    return list(values)


def _random_states(devices: Sequence[int]) -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(index) for index in devices)]


def _set_random_states(states: Sequence[Tensor], devices: Sequence[int]) -> None:
    torch.set_rng_state(states[0])
    for state, index in zip(states[1:], devices, strict=True):
        torch.cuda.set_rng_state(state, index)
