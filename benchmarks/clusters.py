"""Clusters inside a VAE beside k-means on pixels and a Gaussian mixture on principal components.

    python benchmarks/clusters.py digits      # GMVAE and VaDE, 5 seeds
    python benchmarks/clusters.py fashion     # GMVAE, 1 seed

K = 10 clusters for all. A model is first fitted as an autoencoder (its KL weighs little), then its
components start where k-means finds clusters among the codes, then the ELBO is raised, the KL of
the components and codes annealed. Labels choose nothing: they only score the end, on the data that
were clustered, by the best one-to-one assignment, by the label of each cluster's most confident
datum (GMVAE's paper), by normalised mutual information and the adjusted Rand index.

Adds to benchmarks/results/clusters-cpu.json, one entry at a time.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
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

from pyro_models import data, pairs
from pyro_models.infer import Beta, LinearWarmup, embed, fit
from pyro_models.likelihoods import Bernoulli

CPU = torch.device("cpu")
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
CLUSTERS = 10
KINDS = {"digits": ("gmvae", "vade"), "fashion": ("gmvae",)}
SEEDS = {"digits": 5, "fashion": 1}
EPOCHS = {"digits": (200, 300), "fashion": (20, 30)}
PCA_DIM = {"digits": 20, "fashion": 50}


def read(name: str, args: argparse.Namespace) -> data.Data:
    """All the digits; Fashion-MNIST's training part."""
    found = data.digits() if name == "digits" else data.fashion_mnist(args.data)
    return found if args.limit is None else found.subset(slice(0, args.limit))


def start_components(pair: pairs.Pair, x: Tensor, seed: int) -> None:
    """Put the components where k-means finds clusters among the posterior means of z."""
    codes = embed(pair.guide, x, num_samples=2)["z"].mean.double().numpy()
    found = KMeans(CLUSTERS, n_init=10, random_state=seed).fit(codes)
    spreads = np.stack(
        [codes[found.labels_ == k].std(0).clip(0.05) for k in range(CLUSTERS)]
    )  # (K, latent_dim)
    means = torch.from_numpy(found.cluster_centers_).float()
    pair.model.set(means=means, scales=torch.from_numpy(spreads).float())


def cluster(
    kind: str, x: Tensor, labels: np.ndarray, epochs: tuple[int, int], seed: int,
    args: argparse.Namespace,
) -> dict[str, Any]:  # fmt: skip
    """One model with one seed, scored."""
    torch.manual_seed(seed)
    pair = pairs.build(
        kind, x, latent_dim=10, num_components=CLUSTERS, hidden=(args.hidden, args.hidden),
        activation=nn.ReLU, likelihood=Bernoulli(),
    )  # fmt: skip
    stage = partial(
        fit, pair.model, pair.guide, x, objective=pair.objective, batch_size=args.batch_size,
        optimizer=partial(torch.optim.Adam, lr=args.rate), progress=False,
        transform=data.DynamicBinarization(), seed=seed, compiled=args.compiled,
    )  # fmt: skip
    first = stage(epochs=epochs[0], kl=Beta(args.first_weight))
    start_components(pair, x, seed)
    steps = epochs[1] * -(-len(x) // args.batch_size)
    last = stage(epochs=epochs[1], kl=LinearWarmup(steps // 2, start=args.first_weight))
    shares = embed(pair.guide, x, num_samples=args.num_samples)["component"].mean.numpy()
    return {
        "seed": seed,
        "elbo": last.history[-1].elbo,
        "seconds": first.wall_time + last.wall_time,
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
        "first_weight": args.first_weight,
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
    parser.add_argument("--hidden", type=int, default=200, help="width of two layers (200)")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--rate", type=float, default=1e-3, help="of Adam (1e-3)")
    parser.add_argument("--first-weight", type=float, default=0.01, help="of the KL at first")
    parser.add_argument("--num-samples", type=int, default=100, help="of the guide, to assign")
    parser.add_argument("--limit", type=int, help="take the first so many data only")
    parser.add_argument("--data", type=Path, default=DATA, help=f"folder ({DATA})")
    parser.add_argument("--eager", dest="compiled", action="store_false")
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
