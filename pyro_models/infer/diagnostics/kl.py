"""How much each latent dimension says of the data: its KL from the prior."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_models.infer.divergences import kl_per_datum
from pyro_models.infer.inspection import as_arguments, is_amortized
from pyro_models.infer.pair_checks import keywords
from pyro_models.infer.weights import Program, log_weights
from pyro_models.options import positive_int
from pyro_models.picture import Picture


@dataclass(frozen=True)
class LatentKL:
    """KL of guide from prior at one latent."""

    nats: tuple[float, ...]
    """Nats per datum by dimension; one value where the KL is not a sum over dimensions."""
    exact: bool
    """Whether they are closed forms, given what is drawn before; else estimated at the draws."""
    split: bool
    """Whether the values are the latent's dimensions; else there is one, for the whole."""

    @property
    def total(self) -> float:
        """Nats per datum of the latent as a whole."""
        return sum(self.nats)


@dataclass(frozen=True)
class KLByDimension:
    """KL of guide from prior by latent and dimension; shown as a table."""

    sites: dict[str, LatentKL]
    """By latent, in the order in which the model samples them."""

    @property
    def total(self) -> float:
        """Nats per datum over all latents."""
        return sum(kl.total for kl in self.sites.values())

    def table(self) -> str:
        """Total, and dimensions in falling order, by latent."""
        rows = [("latent", "nats per datum", "how", "dimensions, in falling order")]
        for name, kl in self.sites.items():
            order = sorted(range(len(kl.nats)), key=lambda j: -kl.nats[j])
            parts = ", ".join(f"[{j}] {kl.nats[j]:.3f}" for j in order) if kl.split else "whole"
            rows.append((name, f"{kl.total:.3f}", "exact" if kl.exact else "estimated", parts))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [
            "  ".join(f"{cell:<{w}}" for cell, w in zip(r, widths, strict=False)) for r in rows
        ]
        return "\n".join(f"{line}  {row[3]}" for line, row in zip(lines, rows, strict=True))

    def plot(self) -> Picture:
        """Bars of the KL of each dimension, a panel a latent.

        Returns:
            A figure of no window: a notebook shows it by itself, ``savefig`` writes it.
        """
        count = max(len(self.sites), 1)
        figure = Picture(figsize=(7.0, 0.6 + 1.9 * count), layout="constrained")
        panels = figure.subplots(count, 1, squeeze=False)[:, 0]
        for axes, (name, kl) in zip(panels, self.sites.items(), strict=False):
            axes.bar(range(len(kl.nats)), kl.nats, color="C0")
            axes.set_title(f"{name}: {kl.total:.2f} nats per datum", fontsize=9, loc="right")
            axes.set_ylabel("KL")
            axes.spines[["top", "right"]].set_visible(False)
        panels[-1].set_xlabel("dimension")
        return figure

    def __str__(self) -> str:
        return self.table()


def kl_by_dimension(
    model: Program,
    guide: Program,
    x: Any,
    *,
    num_particles: int = 1,
    batch_size: int = 1000,
) -> KLByDimension:
    r"""KL of guide from prior by latent dimension, averaged over data,

    .. math::
        KL_j = \frac1N \sum_i KL(q(z_j \mid x_i) \| p(z_j)), \qquad
        KL(q \| p) = \sum_j KL_j .

    A dimension whose KL is zero is the prior whatever the datum: it has collapsed, or is not
    needed. With a closed form that is used, given what the guide draws before; else
    :math:`\log q_j - \log p_j` at the guide's draws. Where guide and prior are no products of
    independent distributions, there is one value for the latent. A latent outside the data plate is
    charged a share of 1/N a datum, as in the bound. Latents at which the guide has a point mass (a
    ``Delta``, as autoguides make) have no KL of their own and are left out.

    Args:
        model: A Pyro program.
        guide: A Pyro program with the same arguments.
        x: Data ``(N, ...)``, or a tuple of several arguments of the programs, as for ``fit``.
        num_particles: K, draws a datum.
        batch_size: Data at a time, where the guide treats each datum by itself.

    Raises:
        DataError: If the data is empty or not finite.
        OptionError: If a number is less than 1.
        SiteMismatchError: If guide and model do not fit each other.

    References:
        Burda, Grosse and Salakhutdinov 2016, https://arxiv.org/abs/1509.00519; Sønderby et al.
        2016, https://arxiv.org/abs/1602.02282

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x, 1.0).to_event(1))
        >>> found = kl_by_dimension(model, guide, torch.tensor([[2.0, 0.0], [0.0, 0.0]]))
        >>> found.sites["z"].nats, found.sites["z"].exact  # the mean of x² / 2 over the data
        ((1.0, 0.0), True)
        >>> print(found.table())
        latent  nats per datum  how    dimensions, in falling order
        z       1.000           exact  [0] 1.000, [1] 0.000
    """
    args = as_arguments(x, guide, model)
    num_particles = positive_int("num_particles", num_particles)
    batch_size = positive_int("batch_size", batch_size)
    size = len(args[0])
    if size <= batch_size or not is_amortized(guide, args):
        batch_size = size
    kwargs = keywords(model, guide, size)
    totals: dict[str, Tensor] = {}
    exact: dict[str, bool] = {}
    split: dict[str, bool] = {}
    for start in range(0, size, batch_size):
        batch = tuple(arg[start : start + batch_size] for arg in args)
        with torch.no_grad():
            run = log_weights(model, guide, *batch, num_particles=num_particles, **kwargs)
            found = kl_per_datum(run)
        for name, kl in found.items():
            part = kl.terms.double() * (len(batch[0]) / size)
            totals[name] = totals[name] + part if name in totals else part
            exact[name], split[name] = kl.exact, kl.split
    return KLByDimension(
        {
            name: LatentKL(tuple(total.tolist()), exact[name], split[name])
            for name, total in totals.items()
        }
    )
