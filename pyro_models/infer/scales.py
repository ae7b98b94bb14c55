"""The scale that all sites of a run, or of a sum, share."""

from typing import Any

import torch
from torch import Tensor


def shared_scale(scales: list[Any]) -> float | Tensor | None:
    """The scale that all share.

    Args:
        scales: Numbers, or tensors.

    Returns:
        A number where all are numbers and equal. With tensors of one element among them, a 0-dim
        tensor: the scale, or 1 where they differ, for steps are traced to graphs that cannot branch
        on a value. ``None`` where a site has none, numbers differ, or a tensor has a scale for each
        element.

    Example:
        >>> half = torch.tensor(0.5)
        >>> shared_scale([0.5, 0.5]), shared_scale([0.5, 0.4]), shared_scale([1.0, half])
        (0.5, None, None)
        >>> shared_scale([0.5, half]), shared_scale([0.4, half])
        (tensor(0.5000), tensor(1.))
    """
    tensors = [scale for scale in scales if isinstance(scale, Tensor)]
    if not scales or any(tensor.numel() > 1 for tensor in tensors):
        return None
    numbers = [float(scale) for scale in scales if not isinstance(scale, Tensor)]
    if any(abs(number - numbers[0]) > 1e-12 * abs(numbers[0]) for number in numbers):
        return None
    if not tensors:
        return numbers[0]
    if any(abs(number - 1.0) <= 1e-12 for number in numbers):
        return None
    floating = [tensor for tensor in tensors if tensor.is_floating_point()]
    like = floating[0] if floating else tensors[0].to(torch.get_default_dtype())
    values = [
        s.reshape(()).to(like) if isinstance(s, Tensor) else like.new_full((), s) for s in scales
    ]
    # A plate's N / B was multiplied into each and divided out again.
    rounding = 8 * max(torch.finfo(tensor.dtype).eps for tensor in (like, *floating))
    one = torch.ones_like(values[0])
    # What is scaled by the common scale is divided by it: never by zero.
    same = values[0] != 0
    for value in values[1:]:
        same = same & ((value - values[0]).abs() <= rounding * values[0].abs())
    return torch.where(same, values[0], one)
