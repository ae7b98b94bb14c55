"""Clusters inside a VAE beside k-means on pixels and a Gaussian mixture on principal components.

    python benchmarks/clusters.py digits      # GMVAE and VaDE, 5 seeds
    python benchmarks/clusters.py fashion     # GMVAE, 1 seed

K = 10 clusters for all. ``pairs.fit_clusters`` first fits a model as a VAE, starts its components
where k-means finds clusters among the codes, and raises the ELBO from there, for the digits in as
many epochs as the recipe has by default. Labels choose nothing: they only score the end, on the
data that were clustered, by the best one-to-one assignment, by the label of each cluster's most
confident datum (GMVAE's paper), by normalised mutual information and the adjusted Rand index.

Adds to benchmarks/results/clusters-cpu.json, one entry at a time.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from harness import machine, report
from harness.scores import cluster_scores, exemplar_accuracy, percent, summary
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

from pyro_models import clustering, data, pairs
from pyro_models.likelihoods import LearnedScale, Normal

CPU = torch.device("cpu")
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
CLUSTERS = 10
KINDS = {"digits": ("gmvae", "vade"), "fashion": ("gmvae",)}
SEEDS = {"digits": 5, "fashion": 1}
EPOCHS = {"digits": (100, 200), "fashion": (20, 30)}
PCA_DIM = {"digits": 20, "fashion": 50}


def read(name: str, args: argparse.Namespace) -> data.Data:
    """All the digits; Fashion-MNIST's training part."""
    found = data.digits() if name == "digits" else data.fashion_mnist(args.data)
    return found if args.limit is None else found.subset(slice(0, args.limit))


def cluster(
    kind: str, x: Tensor, labels: np.ndarray, epochs: tuple[int, int], seed: int,
    args: argparse.Namespace,
) -> dict[str, Any]:  # fmt: skip
    """One model with one seed, scored."""
    start = time.perf_counter()
    recipe = pairs.ClusterRecipe(
        pairs.LatentStart(epochs=epochs[0], batch_size=args.batch_size, learning_rate=args.rate),
        epochs=epochs[1],
        batch_size=args.batch_size,
        learning_rate=args.rate,
    )
    pair, found = pairs.fit_clusters(
        kind, x, recipe, seed=seed, progress=False, compiled=args.compiled, latent_dim=10,
        num_components=CLUSTERS, hidden=(args.hidden,), activation=nn.ReLU,
        likelihood=Normal(LearnedScale(0.2)),
    )  # fmt: skip
    torch.manual_seed(seed)
    shares = clustering.assign(pair.model, pair.guide, x, num_samples=args.num_samples).numpy()
    return {
        "seed": seed,
        "elbo": found.history[-1].elbo,
        "seconds": time.perf_counter() - start,
        **cluster_scores(shares.argmax(1), labels),
        "exemplar_accuracy": exemplar_accuracy(shares, labels),
    }


def beside(
    name: str, x: np.ndarray, labels: np.ndarray, seeds: Sequence[int]
) -> dict[str, list[dict[str, float]]]:
    """The two that know no networks."""
    runs: dict[str, list[dict[str, float]]] = {"k-means, pixels": [], "mixture, PCA": []}
    size = min(PCA_DIM[name], len(x))
    features = PCA(size, random_state=0).fit_transform(x)
    for seed in seeds:
        found = KMeans(CLUSTERS, n_init=10, random_state=seed).fit_predict(x)
        runs["k-means, pixels"].append({"seed": seed, **cluster_scores(found, labels)})
        mixture = GaussianMixture(CLUSTERS, reg_covar=1e-3, n_init=3, random_state=seed)
        shares = mixture.fit(features).predict_proba(features)
        scores = cluster_scores(shares.argmax(1), labels)
        scores["exemplar_accuracy"] = exemplar_accuracy(shares, labels)
        runs["mixture, PCA"].append({"seed": seed, **scores})
    return runs


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """All models on one set."""
    found = read(name, args)
    x, labels = found.x, found.labels.numpy()
    seeds = range(args.seeds or SEEDS[name])
    epochs = tuple(args.epochs or EPOCHS[name])
    runs: dict[str, list[dict[str, float]]] = beside(name, x.double().numpy(), labels, seeds)
    for kind in KINDS[name]:
        runs[kind] = []
        for seed in seeds:
            runs[kind].append(cluster(kind, x, labels, epochs, seed, args))
            print(f"{name}, {kind}, seed {seed}: {runs[kind][-1]}", flush=True)
    return {
        "num_data": len(x),
        "clusters": CLUSTERS,
        "epochs": epochs,
        "hidden": args.hidden,
        "rate": args.rate,
        "pca_dim": PCA_DIM[name],
        "runs": runs,
        "summary": {key: summary(one) for key, one in runs.items()},
    }


def show(name: str, entry: dict[str, Any]) -> None:
    print(
        f"\n| {name}, %, mean ± sd over seeds | accuracy | best | most confident | NMI | ARI "
        "| used |\n|---|---|---|---|---|---|---|"
    )
    for key, scores in entry["summary"].items():
        exemplar = percent(scores["exemplar_accuracy"]) if "exemplar_accuracy" in scores else ""
        print(
            f"| {key} | {percent(scores['accuracy'])} | {100 * scores['accuracy']['max']:.1f} "
            f"| {exemplar} | {percent(scores['nmi'])} | {percent(scores['ari'])} "
            f"| {scores['used']['mean']:.1f} |"
        )


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", nargs="+", choices=list(KINDS))
    parser.add_argument("--seeds", type=int, help="how many (5 for digits, 1 for fashion)")
    parser.add_argument(
        "--epochs", type=int, nargs=2, metavar=("FIRST", "THEN"), help="before and after k-means"
    )
    parser.add_argument("--hidden", type=int, default=200, help="width of the hidden layer (200)")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rate", type=float, default=1e-3, help="of Adam (1e-3)")
    parser.add_argument("--num-samples", type=int, default=100, help="of the guide, to assign")
    parser.add_argument("--limit", type=int, help="take the first so many data only")
    parser.add_argument("--data", type=Path, default=DATA, help=f"folder ({DATA})")
    parser.add_argument("--eager", dest="compiled", action="store_const", const=False)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="folder for results")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    torch.set_num_threads(args.threads)
    path = args.out / "clusters-cpu.json"
    with pyro.validation_enabled(False):
        for name in args.sets:
            entry = measure(name, args)
            report.enter(path, "clusters", (name,), entry, machine.facts(CPU))
            show(name, entry)
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
