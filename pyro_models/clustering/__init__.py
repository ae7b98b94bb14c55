"""Clusters that a fitted pair has found: whose each datum is, how good that is, how they look.

- `assign`: probabilities of the clusters of each datum, for any pair with a discrete local latent.
- `report`: how many clusters are used, and how well they agree with labels.
- `terms`: the bound of a pair with clusters, by the names of the paper.
- `cluster_means`: what the model makes in each cluster.
"""

from pyro_models.clustering.assignment import assign
from pyro_models.clustering.draws import cluster_means
from pyro_models.clustering.report import ClusteringReport, report
from pyro_models.clustering.terms import ClusterTerms, terms

__all__ = ["ClusterTerms", "ClusteringReport", "assign", "cluster_means", "report", "terms"]
