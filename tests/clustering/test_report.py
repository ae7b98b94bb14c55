"""The clustering report against brute force, scikit-learn and small cases by hand."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_models.clustering import report
from pyro_models.errors import DataError

GENERATOR = torch.Generator().manual_seed(0)


def random_case(num_clusters: int, num_classes: int) -> tuple[Tensor, Tensor]:
    shares = torch.randn(40, num_clusters, generator=GENERATOR).mul(2).softmax(-1)
    labels = torch.randint(num_classes, (40,), generator=GENERATOR)
    labels[0] = num_classes - 1
    return shares, labels


@pytest.mark.parametrize(("clusters", "classes"), [(3, 3), (4, 3), (3, 5)])
def test_the_best_assignment_is_that_of_all_assignments(clusters: int, classes: int) -> None:
    shares, labels = random_case(clusters, classes)
    best = shares.argmax(-1)
    wide = max(clusters, classes)
    wanted = max(
        sum(int(order[k] == c) for k, c in zip(best.tolist(), labels.tolist(), strict=True))
        for order in permutations(range(wide))
    )
    found = report(shares, labels)
    assert found.accuracy == pytest.approx(wanted / 40)
    given = [label for label in found.assigned or () if label >= 0]
    assert len(given) == len(set(given)) == min(clusters, classes)
    counted = np.array(found.confusion)
    assert counted.sum() == 40
    for k in range(clusters):
        for c in range(classes):
            assert counted[k, c] == ((best == k) & (labels == c)).sum()


def test_the_most_confident_example_labels_its_cluster() -> None:
    # Cluster 0 holds data 0 to 2, of labels 0, 0, 1, and is most sure of the last.
    shares = torch.tensor([[0.6, 0.4], [0.7, 0.3], [0.9, 0.1], [0.2, 0.8]])
    found = report(shares, torch.tensor([0, 0, 1, 1]))
    assert found.accuracy_confident == pytest.approx(2 / 4)
    assert found.accuracy == pytest.approx(3 / 4)
    assert found.accuracy_majority == pytest.approx(3 / 4)


def test_mutual_information_and_pairs_by_their_formulas() -> None:
    shares, labels = random_case(4, 3)
    found = report(shares, labels)
    joint = np.array(found.confusion) / 40
    rows, columns = joint.sum(1), joint.sum(0)
    information = sum(
        p * math.log(p / (rows[k] * columns[c])) for (k, c), p in np.ndenumerate(joint) if p > 0
    )
    entropies = [-sum(p * math.log(p) for p in side if p > 0) for side in (rows, columns)]
    wanted = information / (sum(entropies) / 2)
    assert found.normalized_mutual_information == pytest.approx(wanted)
    best = shares.argmax(-1)
    both = same_cluster = same_label = total = 0
    for i in range(40):
        for j in range(i):
            cluster, label = bool(best[i] == best[j]), bool(labels[i] == labels[j])
            both += cluster and label
            same_cluster += cluster
            same_label += label
            total += 1
    chance = same_cluster * same_label / total
    index = (both - chance) / ((same_cluster + same_label) / 2 - chance)
    assert found.adjusted_rand_index == pytest.approx(index)


def test_a_perfect_clustering_scores_one_whatever_its_order() -> None:
    labels = torch.tensor([0, 1, 2, 2, 1])
    found = report(torch.eye(3)[[2, 0, 1, 1, 0]], labels)
    assert found.accuracy == found.accuracy_confident == found.accuracy_majority == 1
    assert found.normalized_mutual_information == pytest.approx(1)
    assert found.adjusted_rand_index == pytest.approx(1)
    assert found.assigned == (1, 2, 0)


def test_without_labels_it_tells_how_many_clusters_are_used() -> None:
    shares = torch.tensor([[0.5, 0.3, 0.2, 0.0]] * 4 + [[0.1, 0.9, 0.0, 0.0]])
    found = report(shares)
    assert (found.used_by_mass, found.used_by_argmax) == (2, 2)
    assert found.sizes == pytest.approx((2.1, 2.1, 0.8, 0.0))
    assert found.confidence == pytest.approx((4 * 0.5 + 0.9) / 5)
    assert found.accuracy is None
    assert "accuracy" not in repr(found)


def test_the_table_escapes_and_shows_each_row() -> None:
    found = report(*random_case(3, 3))
    assert len(repr(found).splitlines()) == len(found.rows()) == 9
    assert found._repr_html_().count("<tr>") == 9


@pytest.mark.parametrize(
    ("shares", "labels", "words"),
    [
        (torch.ones(0, 3), None, "at least one datum"),
        (torch.tensor([[0.5, 0.6]]), None, "datum 0 add up to 1.1"),
        (torch.tensor([[1.5, -0.5]]), None, "negative"),
        (torch.tensor([[torch.nan, 1.0]]), None, "NaN"),
        (torch.ones(2, 1), torch.tensor([0]), "one label a datum"),
        (torch.ones(2, 1), torch.tensor([0, -1]), "whole numbers from 0"),
        (torch.ones(2, 1), torch.tensor([0, 0.5]), "whole numbers from 0"),
    ],
)
def test_what_is_no_clustering_is_refused(
    shares: Tensor, labels: Tensor | None, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        report(shares, labels)
