"""How good a clustering is: clusters in use, and agreement with labels that it has not seen."""

import html
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch import Tensor

from pyro_models.errors import DataError

UNASSIGNED = -1


@dataclass(frozen=True)
class ClusteringReport:
    """How many clusters are used, and how they agree with labels; see :func:`report`."""

    num_data: int
    """N."""
    num_clusters: int
    """K."""
    sizes: tuple[float, ...]
    """Expected number of data in each cluster, the sum of their probabilities."""
    used_by_mass: int
    """Clusters that are expected to hold at least one datum."""
    used_by_argmax: int
    """Clusters that are the most probable one of some datum."""
    confidence: float
    """Mean probability of the most probable cluster."""
    confusion: tuple[tuple[int, ...], ...] | None = None
    """Data by most probable cluster (rows) and label (columns); None without labels."""
    assigned: tuple[int, ...] | None = None
    """Label of each cluster under the best assignment; -1 for one that is left over."""
    accuracy: float | None = None
    """Part of the data in the cluster that the best one-to-one assignment gives their label."""
    accuracy_confident: float | None = None
    """Part of the data with the label of the datum that is most probable in their cluster."""
    accuracy_majority: float | None = None
    """Part of the data with the most frequent label of their cluster."""
    normalized_mutual_information: float | None = None
    """Of clusters and labels, divided by the mean of their entropies: 0 to 1."""
    adjusted_rand_index: float | None = None
    """Pairs of data on which clusters and labels agree, less what chance gives: at most 1."""

    def rows(self) -> list[tuple[str, str]]:
        """The table: what, and its value."""
        found = [
            ("data", str(self.num_data)),
            ("clusters that hold data, by mass", f"{self.used_by_mass} of {self.num_clusters}"),
            (
                "clusters that hold data, by arg-max",
                f"{self.used_by_argmax} of {self.num_clusters}",
            ),
            ("mean probability of the best cluster", f"{self.confidence:.3f}"),
        ]
        scores = (
            ("accuracy by best assignment", self.accuracy),
            ("accuracy by most confident example", self.accuracy_confident),
            ("accuracy by majority", self.accuracy_majority),
            ("normalised mutual information", self.normalized_mutual_information),
            ("adjusted Rand index", self.adjusted_rand_index),
        )
        return found + [(name, f"{value:.3f}") for name, value in scores if value is not None]

    def __repr__(self) -> str:
        rows = self.rows()
        wide, narrow = (max(len(row[side]) for row in rows) for side in (0, 1))
        return "\n".join(f"{name:<{wide}}   {value:>{narrow}}" for name, value in rows)

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><td style='text-align:left'>{html.escape(name)}</td>"
            f"<td style='text-align:right'>{html.escape(value)}</td></tr>"
            for name, value in self.rows()
        )
        return f"<table>{cells}</table>"


def report(
    probabilities: Float[Tensor, "num_data clusters"],
    labels: Shaped[Tensor, "_"] | None = None,
) -> ClusteringReport:
    """Judge a clustering, with labels or without.

    A datum belongs to its most probable cluster. With labels there are three accuracies: under the
    one-to-one assignment of clusters to labels that is best (the Hungarian method; where there are
    more of one than of the other, some are left over, and data in clusters left over count as
    wrong); with each cluster labelled by the datum that is most probable in it, as the paper on
    the Gaussian-mixture VAE has it; and with each labelled by the majority of its data. Only the
    first cannot be raised by more clusters than there are classes.

    Args:
        probabilities: Of the clusters of each datum, ``(N, K)``, each row of sum 1; ``assign``
            gives them.
        labels: Class of each datum, whole numbers from 0, ``(N,)``.

    Raises:
        DataError: If probabilities are no probabilities, or labels do not go with them.

    References:
        Kuhn 1955, https://doi.org/10.1002/nav.3800020109
        Dilokthanakul et al. 2016, https://arxiv.org/abs/1611.02648
        Hubert and Arabie 1985, https://doi.org/10.1007/BF01908075

    Example:
        >>> import torch
        >>> shares = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.1, 0.9]])
        >>> report(shares, torch.tensor([1, 1, 0, 0]))
        data                                        4
        clusters that hold data, by mass       2 of 2
        clusters that hold data, by arg-max    2 of 2
        mean probability of the best cluster    0.800
        accuracy by best assignment             0.750
        accuracy by most confident example      0.750
        accuracy by majority                    0.750
        normalised mutual information           0.344
        adjusted Rand index                     0.000
    """
    shares = _checked(probabilities)
    best = shares.argmax(1)
    sizes = shares.sum(0)
    num_data, num_clusters = shares.shape
    usage = {
        "num_data": num_data,
        "num_clusters": num_clusters,
        "sizes": tuple(sizes.tolist()),
        "used_by_mass": int((sizes >= 1).sum()),
        "used_by_argmax": len(np.unique(best)),
        "confidence": float(shares.max(1).mean()),
    }
    if labels is None:
        return ClusteringReport(**usage)
    classes = _classes(labels, num_data)
    counts = np.zeros((num_clusters, int(classes.max()) + 1), dtype=np.int64)
    np.add.at(counts, (best, classes), 1)
    assigned = _assigned(counts)
    # Of a cluster, the label of the datum that is most probably in it.
    exemplars = classes[shares.argmax(0)]
    return ClusteringReport(
        **usage,
        confusion=tuple(tuple(row) for row in counts.tolist()),
        assigned=tuple(assigned.tolist()),
        accuracy=float((assigned[best] == classes).mean()),
        accuracy_confident=float((exemplars[best] == classes).mean()),
        accuracy_majority=float(counts.max(1).sum() / num_data),
        normalized_mutual_information=float(normalized_mutual_info_score(classes, best)),
        adjusted_rand_index=float(adjusted_rand_score(classes, best)),
    )


def _checked(probabilities: Tensor) -> NDArray[np.float64]:
    shares = np.asarray(probabilities.detach().cpu().double().numpy())
    if shares.ndim != 2 or shares.size == 0:
        raise DataError(
            f"probabilities have shape {shares.shape}; give those of at least one cluster for at "
            "least one datum, (N, K), as clustering.assign does"
        )
    if not np.isfinite(shares).all() or (shares < 0).any():
        raise DataError("probabilities hold negative numbers, NaN or infinity; give (N, K) of them")
    if (np.abs(shares.sum(1) - 1) > 1e-3).any():
        worst = int(np.abs(shares.sum(1) - 1).argmax())
        raise DataError(
            f"the probabilities of datum {worst} add up to {shares[worst].sum():.4g}, not to 1; "
            "give probabilities, not their logarithms"
        )
    return shares


def _classes(labels: Shaped[Tensor, "_"], num_data: int) -> NDArray[np.int64]:
    classes = np.asarray(labels.detach().cpu().numpy())
    if classes.shape != (num_data,):
        raise DataError(
            f"labels have shape {classes.shape} for {num_data} data; give one label a datum"
        )
    whole = classes.astype(np.int64)
    if (whole != classes).any() or (whole < 0).any():
        raise DataError("labels hold something else than whole numbers from 0; number the classes")
    return whole


def _assigned(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The label of each cluster, one to one, by which most data are right; -1 for none."""
    found = np.full(len(counts), UNASSIGNED)
    clusters, classes = linear_sum_assignment(-counts)
    found[clusters] = classes
    return found
