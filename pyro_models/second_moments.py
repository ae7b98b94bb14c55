"""Data reduced to what a linear Gaussian model needs of them, and leading eigenpairs."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_models.errors import DataError, NonFiniteError

# Up to this many multiplications rows are reduced by QR, which keeps all digits; beyond, by their
# second moments, which keep half of them and take a fraction of the time.
_EXACT_WORK = 2_000_000_000
# Numbers in a chunk of the data, as they are converted to double precision.
_CHUNK = 2**21
_BLOCK = 128
# Matrices of this size and less have all of their eigenpairs computed.
_DENSE = 512


@dataclass(frozen=True, eq=False)
class Moments:
    r"""Few rows in the place of many data, with the same first and second moments.

    With X the data and 1 a column of ones, :math:`[V, o]^\top [V, o] = [X, 1]^\top [X, 1]` for the
    rows V and the numbers o. Every step of a linear Gaussian model is linear in a datum and its
    one, so that E- and M-steps on these rows are those on the data, and rounding is as small.

    Example:
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 0.0], [1.0, 1.0]])
        >>> reduced = condense(x)
        >>> reduced.values.shape, reduced.num_data
        (torch.Size([3, 2]), 4)
        >>> torch.allclose(reduced.values.T @ reduced.values, (x.T @ x).double())
        True
    """

    values: Float[Tensor, "rows data_dim"]
    """V, double precision; NaN is missing."""
    ones: Float[Tensor, " rows"]
    """o."""
    num_data: int
    """N."""
    complete: bool
    """Whether no value is missing."""

    @property
    def mean(self) -> Float[Tensor, " data_dim"]:
        """The mean of complete data."""
        return self.ones @ self.values / self.num_data

    @property
    def deviations(self) -> Float[Tensor, "rows data_dim"]:
        """Rows whose second moments, over N, are the data's covariance; complete data."""
        return self.values - self.ones[:, None] * self.mean


@torch.no_grad()
def condense(x: Float[Tensor, "num_data data_dim"]) -> Moments:
    """Reduce N data of dimension D to min(N, D) + 1 rows with the same moments.

    Where values are missing there is no such reduction: what is left out then are data of which
    nothing was seen.

    Args:
        x: Data; NaN is missing.

    Raises:
        DataError: If there are no data.

    Example:
        >>> condense(torch.tensor([[1.0, torch.nan], [2.0, 3.0]])).complete
        False
    """
    if len(x) == 0:
        raise DataError("x holds no data; give at least one datum")
    mean = x.mean(0, dtype=torch.float64)
    if bool(mean.isnan().any()):  # as it is wherever a value is
        rows = x[~x.isnan().all(1)].double()
        return Moments(rows, rows.new_ones(len(rows)), len(x), complete=False)
    rows, shift = _root(x, mean)
    mean = mean + shift
    size = math.sqrt(len(x))
    values = torch.cat([rows, size * mean[None]])
    ones = torch.zeros(len(values), dtype=torch.float64, device=x.device)
    ones[-1] = size
    return Moments(values, ones, len(x), complete=True)


def chunks(
    x: Float[Tensor, "num_data data_dim"], numbers: int = _CHUNK
) -> tuple[Float[Tensor, "chunk data_dim"], ...]:
    """Data in parts of some rows, as views.

    Args:
        x: Data.
        numbers: About how many numbers a part has.

    Example:
        >>> [len(part) for part in chunks(torch.zeros(5, 2), numbers=4)]
        [2, 2, 1]
    """
    return x.split(max(1, numbers // x.shape[1]))


def _root(
    x: Float[Tensor, "num_data data_dim"], mean: Float[Tensor, " data_dim"]
) -> tuple[Float[Tensor, "rows data_dim"], Float[Tensor, " data_dim"]]:
    """Rows R with R'R the scatter of the data about their mean, and by how much ``mean`` misses it.

    The first mean of numbers far from 0 is rounded; what is left of the differences from it is not.
    """
    num_data, dim = x.shape
    if num_data * min(num_data, dim) ** 2 <= _EXACT_WORK or num_data <= dim:
        rows = x.double() - mean
        shift = rows.mean(0)
        rows -= shift
        return (rows if num_data <= dim else torch.linalg.qr(rows, mode="r").R), shift
    scatter = torch.zeros(dim, dim, dtype=torch.float64, device=x.device)
    total = torch.zeros_like(mean)
    for part in chunks(x):
        rows = part.double() - mean
        total += rows.sum(0)
        for at in range(0, dim, _BLOCK):  # the lower half, a block of columns at a time
            block = rows[:, at : at + _BLOCK]
            scatter[at:, at : at + _BLOCK] += rows[:, at:].T @ block
    shift = total / num_data
    return _cholesky(scatter - num_data * shift.outer(shift)), shift


def _cholesky(scatter: Float[Tensor, "dim dim"]) -> Float[Tensor, "dim dim"]:
    """An upper R with R'R = scatter, of which only the lower half is read."""
    size = scatter.diagonal().clamp_min(0).sqrt()
    inverse = torch.where(size > 0, 1 / size, 0)
    correlation = inverse[:, None] * scatter * inverse
    identity = torch.eye(len(size), dtype=size.dtype, device=size.device)
    jitter = 1e-14
    while jitter < 1e-6:  # rank may be missing; rounding then makes a small pivot negative
        tril, info = torch.linalg.cholesky_ex(correlation + jitter * identity)
        if not bool(info):
            return tril.mT * size
        jitter *= 10
    raise NonFiniteError(
        "the data's covariance overflows; look for values of very different sizes, or scale them"
    )


def leading_eigenpairs(
    rows: Float[Tensor, "rows dim"], count: int
) -> tuple[Float[Tensor, " count"], Float[Tensor, "dim count"]]:
    r"""The largest eigenvalues of :math:`R^\top R`, descending, and their vectors.

    Small problems by a singular value decomposition of R. Large ones, where few pairs are wanted,
    by a restarted block Krylov iteration, until the eigenvalues that are left out are known to
    within a millionth of their sum: no decomposition of the whole matrix.

    Args:
        rows: R, double precision.
        count: How many; if there are fewer, the others are zero.

    References:
        Musco and Musco 2015, https://arxiv.org/abs/1504.05477

    Example:
        >>> values, vectors = leading_eigenpairs(torch.diag(torch.tensor([1.0, 3.0, 2.0])), 2)
        >>> values, vectors.abs()
        (tensor([9., 4.]), tensor([[0., 0.],
                [1., 0.],
                [0., 1.]]))
    """
    smaller = min(rows.shape)
    if smaller <= _DENSE or 8 * count > smaller:
        return _dense(rows, count)
    found = _krylov(lambda block: rows.mT @ (rows @ block), rows, count)
    return _dense(rows, count) if found is None else found


def _dense(
    rows: Float[Tensor, "rows dim"], count: int
) -> tuple[Float[Tensor, " count"], Float[Tensor, "dim count"]]:
    _, sizes, vectors = torch.linalg.svd(rows, full_matrices=len(rows) < count)
    lacking = max(0, count - len(sizes))
    values = torch.cat([sizes.square(), sizes.new_zeros(lacking)])
    return values[:count], vectors[:count].mT


def _krylov(
    apply: Callable[[Tensor], Tensor], rows: Float[Tensor, "rows dim"], count: int
) -> tuple[Float[Tensor, " count"], Float[Tensor, "dim count"]] | None:
    """Block Krylov iteration; ``None`` if it does not converge."""
    dim, width, total = rows.shape[1], count + max(8, count // 4), rows.square().sum()
    generator = torch.Generator().manual_seed(0)  # a start, not a draw: results must not vary
    start = torch.randn(dim, width, generator=generator, dtype=torch.float64)
    block = torch.linalg.qr(start.to(rows.device)).Q
    for _ in range(30):
        basis = block
        for _ in range(2):
            block = apply(block)
            for _ in range(2):  # once is not enough for orthogonality
                block = block - basis @ (basis.mT @ block)
                block = torch.linalg.qr(block).Q
            basis = torch.cat([basis, block], 1)
        image = apply(basis)
        values, mixing = torch.linalg.eigh(basis.mT @ image)
        values, mixing = values.flip(0)[:width], mixing.flip(1)[:, :width]
        block = basis @ mixing
        residuals = (image @ mixing - block * values)[:, :count].norm(dim=0)
        left_out = (total - values[:count].sum()).clamp_min(0)
        if bool(residuals.sum() <= torch.maximum(1e-6 * left_out, 1e-12 * total)):
            return values[:count].clamp_min(0), block[:, :count]
        block = torch.linalg.qr(block).Q
    return None
