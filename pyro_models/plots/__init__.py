"""Pictures of a fit: its history, samples, latent space; of mixtures, factors and criteria.

Each function takes plain tensors, already in the units of the data, and returns a `Picture`: a
`matplotlib.figure.Figure` that notebooks show by themselves and that ``picture.savefig(path)``
writes. Nothing here touches pyplot or matplotlib's settings. Images are given flat, ``(N, D)``,
with their ``image_shape``; without one, data are taken for a table with named columns.
"""

from pyro_models.picture import Picture
from pyro_models.plots.clustering import confusion, samples_by_cluster
from pyro_models.plots.compare import reconstructions, samples, traversal
from pyro_models.plots.criteria import criteria
from pyro_models.plots.factors import loadings, scree
from pyro_models.plots.history import loss
from pyro_models.plots.latent import latent_space
from pyro_models.plots.mixtures import clusters, components, responsibilities
from pyro_models.plots.sticks import sticks

__all__ = [
    "Picture",
    "clusters",
    "components",
    "confusion",
    "criteria",
    "latent_space",
    "loadings",
    "loss",
    "reconstructions",
    "responsibilities",
    "samples",
    "samples_by_cluster",
    "scree",
    "sticks",
    "traversal",
]
