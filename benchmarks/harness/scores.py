"""Scores against labels, which no model here ever sees, and their mean with spread."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.neighbors import NearestNeighbors


def neighbour_errors(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    counts: Sequence[int] = (3, 5, 10),
) -> dict[int, float]:
    """Share of test data that the majority of their k nearest training data gets wrong, by k.

    Distances are Euclidean; of labels with as many votes the smallest wins, as in scikit-learn.
    """
    index = NearestNeighbors(n_neighbors=max(counts), algorithm="brute").fit(train)
    votes = train_labels[index.kneighbors(test, return_distance=False)]  # (test, k)
    classes = np.arange(train_labels.max() + 1)
    errors = {}
    for count in counts:
        tally = (votes[:, :count, None] == classes).sum(1)  # (test, classes)
        errors[count] = float((tally.argmax(1) != test_labels).mean())
    return errors


def cluster_scores(clusters: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """How clusters and labels agree: accuracy under the best one-to-one assignment, NMI, ARI."""
    table = np.zeros((clusters.max() + 1, labels.max() + 1), dtype=int)
    np.add.at(table, (clusters, labels), 1)
    rows, columns = linear_sum_assignment(-table)
    return {
        "accuracy": float(table[rows, columns].sum() / len(labels)),
        "nmi": float(normalized_mutual_info_score(labels, clusters)),
        "ari": float(adjusted_rand_score(labels, clusters)),
        "used": int((table.sum(1) > 0).sum()),
    }


def exemplar_accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy where each cluster has the label of its most confident datum, as GMVAE's paper."""
    name = labels[probabilities.argmax(0)]  # (clusters,)
    return float((name[probabilities.argmax(1)] == labels).mean())


def mean_and_spread(values: Sequence[float]) -> dict[str, float | None]:
    """Mean, standard deviation between runs (None of one), best and worst."""
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": spread, "min": min(values), "max": max(values)}


def summary(runs: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    """Mean and spread over runs of every score."""
    return {name: mean_and_spread([run[name] for run in runs]) for name in runs[0]}


def percent(score: Mapping[str, Any]) -> str:
    """Mean ± standard deviation of a share, in percent; of one run the share alone."""
    spread = "" if score["sd"] is None else f" ± {100 * score['sd']:.1f}"
    return f"{100 * score['mean']:.1f}{spread}"
