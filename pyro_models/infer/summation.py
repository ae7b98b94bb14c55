r"""Exact sums of products over discrete variables, in log space and by plates.

A term is a log-density along named dimensions: variables by their number (0 or more), everything
else (plates, particles) by its place in a batch shape (-1 or less). A sum of products over plates,

.. math:: \log \sum_a \prod_i \sum_{b_i} f(a)\, g(a, b_i),

is worked off from the innermost plates outward: variables of a plate are eliminated one by one,
then what is left is multiplied over the plate.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from math import prod
from operator import add
from typing import Any, TypeVar

from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from pyro_models.errors import SiteMismatchError

Frames = frozenset[CondIndepStackFrame]
T = TypeVar("T")


@dataclass(frozen=True)
class Variable:
    """A discrete latent that is summed out."""

    name: str
    """Its site."""
    frames: Frames
    """The plates that it lies in: it has a value of its own for each of their elements."""


@dataclass(frozen=True, eq=False)
class Term:
    """A log-density with named dimensions, sorted: variables, then places from left to right."""

    log: Tensor
    dims: tuple[int, ...]
    frames: Frames

    @staticmethod
    def make(
        log: Tensor,
        first: int,
        ids: dict[int, int],
        frames: Iterable[CondIndepStackFrame],
        name: str,
    ) -> "Term":
        """Name the dimensions of a log-density.

        Args:
            log: The log-density.
            first: The first dimension, from the right, that is no plate's.
            ids: Number of the variable along a place.
            frames: The plates.
            name: Site, for messages.

        Raises:
            SiteMismatchError: If a dimension beyond all plates belongs to no variable.
        """
        places = [d for d in range(-log.dim(), 0) if log.shape[d] > 1]
        strange = [d for d in places if d <= first and d not in ids]
        if strange:
            raise SiteMismatchError(
                f"site {name!r} has log-densities of shape {tuple(log.shape)}, whose dimension "
                f"{strange[0]} belongs to no plate and to no latent that is summed out; declare it "
                "with .to_event(...), or run the site inside pyro.plate"
            )
        names = [ids[d] if d <= first else d for d in places]
        order = sorted(range(len(names)), key=lambda i: (names[i] < 0, names[i]))
        packed = log.reshape([log.shape[d] for d in places]).permute(order)
        return Term(packed, tuple(names[i] for i in order), frozenset(frames))

    @property
    def variables(self) -> frozenset[int]:
        """The variables that it depends on."""
        return frozenset(d for d in self.dims if d >= 0)

    def power(self, exponent: Any, name: str) -> "Term":
        """The log-density of a power of the density.

        Args:
            exponent: A number, or a tensor of one.
            name: Site, for messages.

        Raises:
            SiteMismatchError: If the exponent has several elements.
        """
        if isinstance(exponent, Tensor):
            if exponent.numel() > 1:
                raise SiteMismatchError(
                    f"site {name!r} is part of a sum over discrete latents, and has a scale for "
                    f"each element, of shape {tuple(exponent.shape)}; scale the sites of a sum by "
                    "one number each, or sample the latents in the guide"
                )
            exponent = exponent.reshape(())
        return Term(self.log * exponent, self.dims, self.frames)

    def without(self, dim: int, reduced: Tensor) -> "Term":
        """The term after a reduction along a dimension."""
        return Term(reduced, tuple(d for d in self.dims if d != dim), self.frames)

    def unnamed(self) -> Tensor:
        """Back in the places of a batch shape; no variable may be left."""
        shape = [1] * -min(self.dims, default=0)
        for dim, size in zip(self.dims, self.log.shape, strict=True):
            shape[dim] = size
        return self.log.reshape(shape)


def connected(items: list[T], keys: Callable[[T], frozenset[int]]) -> list[list[T]]:
    """Split items into groups that share no key.

    Example:
        >>> connected([{1}, {2}, {2, 3}, {1, 4}], frozenset)
        [[{2}, {2, 3}], [{1}, {1, 4}]]
    """
    groups: list[list[T]] = []
    for item in items:
        own = keys(item)
        touched = [any(own & keys(other) for other in group) for group in groups]
        joined = [i for group, hit in zip(groups, touched, strict=True) if hit for i in group]
        groups = [group for group, hit in zip(groups, touched, strict=True) if not hit]
        groups.append([*joined, item])
    return groups


def sum_out(terms: list[Term], variables: dict[int, Variable]) -> Term:
    """Sum a connected product of terms over all its variables, in the plates that all share.

    Args:
        terms: The factors.
        variables: What their variables are.

    Raises:
        SiteMismatchError: If a term's variables lie in plates that are not nested.
    """
    root = frozenset.intersection(*(term.frames for term in terms))
    while True:
        leaf = max((term.frames for term in terms), key=len)
        inside = [term for term in terms if term.frames == leaf]
        terms = [term for term in terms if term.frames != leaf]
        own = {v for t in inside for v in t.variables if variables[v].frames == leaf}
        inside = _eliminate(inside, own)
        if leaf == root:
            return _product(inside)
        for term in inside:
            parent = root.union(*(variables[v].frames for v in term.variables))
            if parent == leaf:
                raise _not_nested(term, variables)
            terms.append(_over_plates(term, leaf - parent, parent))


def _eliminate(terms: list[Term], variables: set[int]) -> list[Term]:
    """Sum over variables, always the one whose product of terms is smallest."""
    left = set(variables)
    while left:
        variable = min(left, key=lambda v: (_size([t for t in terms if v in t.dims]), v))
        joint = _product([t for t in terms if variable in t.dims])
        summed = joint.without(variable, joint.log.logsumexp(joint.dims.index(variable)))
        terms = [*(t for t in terms if variable not in t.dims), summed]
        left.remove(variable)
    return terms


def _sizes(terms: list[Term]) -> dict[int, int]:
    return {d: n for t in terms for d, n in zip(t.dims, t.log.shape, strict=True)}


def _size(terms: list[Term]) -> int:
    return prod(_sizes(terms).values())


def _product(terms: list[Term]) -> Term:
    dims = tuple(sorted(_sizes(terms), key=lambda d: (d < 0, d)))
    logs = []
    for term in terms:
        sizes = dict(zip(term.dims, term.log.shape, strict=True))
        logs.append(term.log.reshape([sizes.get(d, 1) for d in dims]))
    return Term(reduce(add, logs), dims, terms[0].frames)


def _over_plates(term: Term, plates: Frames, parent: Frames) -> Term:
    """Multiply over plates."""
    for plate in plates:
        if plate.dim is None:
            continue
        if plate.dim in term.dims:
            term = term.without(plate.dim, term.log.sum(term.dims.index(plate.dim)))
        else:  # the same for each element
            term = Term(term.log * plate.size, term.dims, term.frames)
    return Term(term.log, term.dims, parent)


def _not_nested(term: Term, variables: dict[int, Variable]) -> SiteMismatchError:
    where = [
        f"{variables[v].name!r} in {sorted(f.name for f in variables[v].frames)}"
        for v in sorted(term.variables)
    ]
    return SiteMismatchError(
        f"latents in plates that cross cannot be summed out: {', '.join(where)}, on both of which "
        f"a site in {sorted(f.name for f in term.frames)} depends; sample one of them in the "
        "guide, or run one of the plates as a Python loop"
    )
