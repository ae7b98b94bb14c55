"""Kullback-Leibler divergences in closed form that torch and Pyro lack.

Importing this module makes ``torch.distributions.kl_divergence`` know them.
"""

from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal, register_kl


@register_kl(MultivariateNormal, Independent)
def kl_multivariate_normal_independent(p: MultivariateNormal, q: Independent) -> Tensor:
    r"""KL of a full-covariance normal from a product of normals.

    .. math::
        \mathrm{KL}\big(\mathcal N(\mu, LL^\top) \,\|\, \mathcal N(m, \mathrm{diag}(s^2))\big)
        = \tfrac12 \sum_i \Big[ \sum_j \frac{L_{ij}^2}{s_i^2} + \frac{(\mu_i - m_i)^2}{s_i^2}
          - 1 + 2\log s_i - 2\log L_{ii} \Big]

    Args:
        p: The full-covariance normal, batch shape ``(*batch,)`` and event shape ``(dim,)``.
        q: Normals made independent over one event dimension, broadcastable to ``p``.

    Returns:
        The divergence in nats, of the broadcast batch shape.

    Raises:
        NotImplementedError: If ``q`` is a product of anything else; it is what torch raises too,
            and what callers take as "no closed form".

    Example:
        >>> import torch
        >>> p = MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> q = Independent(Normal(torch.ones(2), torch.ones(2)), 1)
        >>> torch.distributions.kl_divergence(p, q)
        tensor(1.)
    """
    # torch and Pyro have no public common parent of their normals but torch's own.
    if not isinstance(q.base_dist, Normal) or q.reinterpreted_batch_ndims != 1:
        raise NotImplementedError(f"no closed-form KL of a multivariate normal from {q}")
    scale = q.base_dist.scale
    tril = p.scale_tril / scale.unsqueeze(-1)  # (*batch, dim, dim)
    shift = (p.loc - q.base_dist.loc) / scale  # (*batch, dim)
    log_ratio = tril.diagonal(dim1=-2, dim2=-1).log()  # log(L_ii / s_i)
    return 0.5 * (tril.square().sum(-1) + shift.square() - 1 - 2 * log_ratio).sum(-1)
