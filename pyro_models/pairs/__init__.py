"""Ready pairs: a model, its guide and an objective, by name and for given data."""

from pyro_models.pairs.classical import (
    bayesian_gaussian_mixture,
    dirichlet_process_mixture,
    factor_analysis,
    gaussian,
    gaussian_mixture,
    ppca,
    regression,
    with_belief,
)
from pyro_models.pairs.cluster_fit import ClusterRecipe, fit_clusters
from pyro_models.pairs.clustered import gmvae, vade
from pyro_models.pairs.deep import belief_network, vae
from pyro_models.pairs.latent_start import LatentStart, start_clusters
from pyro_models.pairs.registry import Pair, build, names, options
from pyro_models.pairs.semi_supervised import (
    classify,
    semi_supervised_stick_breaking_vae,
    semi_supervised_vae,
)
from pyro_models.pairs.sticks import stick_breaking_vae
from pyro_models.pairs.suited import default_likelihood

__all__ = [
    "ClusterRecipe",
    "LatentStart",
    "Pair",
    "bayesian_gaussian_mixture",
    "belief_network",
    "build",
    "classify",
    "default_likelihood",
    "dirichlet_process_mixture",
    "factor_analysis",
    "fit_clusters",
    "gaussian",
    "gaussian_mixture",
    "gmvae",
    "names",
    "options",
    "ppca",
    "regression",
    "semi_supervised_stick_breaking_vae",
    "semi_supervised_vae",
    "start_clusters",
    "stick_breaking_vae",
    "vade",
    "vae",
    "with_belief",
]
