"""The semi-supervised autoencoder: its bound against quadrature and enumeration, its labels."""

import functools
import math
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from guides import AmortizedClassAndCode, BetaSticks, NormalCodePosterior, StickCodePosterior
from pyro_models import pairs
from pyro_models.codes import NormalCode, StickCode
from pyro_models.errors import DataError, OptionError
from pyro_models.infer import (
    ELBO,
    AnalyticKL,
    LeaveOneOut,
    MonteCarloKL,
    Objective,
    Pathwise,
    ScoreFunction,
    Supervised,
    fit,
)
from pyro_models.semi_supervised import LearnedWeights, SemiSupervisedVAE
from tests.unchecked import unchecked

CLASSES, DIM = 3, 4
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
X = torch.tensor(
    [[0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1], [1, 0, 1, 1], [1, 1, 1, 1.0]], dtype=torch.float64
)
Y = torch.tensor([2, -1, 0, -1, -1])
SUMMED = ELBO(summed=("y_unobserved",))


@pytest.fixture(autouse=True)
def double() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make(hidden: tuple[int, ...] = (5,)) -> tuple[SemiSupervisedVAE, AmortizedClassAndCode]:
    """A small pair whose code is one number, with random weights."""
    pyro.set_rng_seed(2)
    model = SemiSupervisedVAE(DIM, CLASSES, NormalCode(1), hidden, weights=WEIGHTS)
    guide = AmortizedClassAndCode(DIM, CLASSES, NormalCodePosterior(1), hidden)
    with torch.no_grad():
        for parameter in (*model.parameters(), *guide.parameters()):
            parameter.add_(0.5 * torch.randn_like(parameter))
    return model, guide


def make_plain() -> tuple[SemiSupervisedVAE, AmortizedClassAndCode]:
    """A pair whose decoder sees the class only, so that nothing in its bound is random."""
    model, guide = make(hidden=())
    with torch.no_grad():
        model.decoder.output.weight[:, 0] = 0.0
    return model, guide


def fits(model: SemiSupervisedVAE) -> Tensor:
    """log p(y) + log p(x | y) of a plain pair, ``(data, classes)``, written out."""
    logits = model.decoder.output.weight[:, 1:].T + model.decoder.output_bias
    log_p = X @ logits.T - nn.functional.softplus(logits).sum(-1)
    return WEIGHTS.log() + log_p


def known_of(values: Tensor) -> Tensor:
    """Of each labelled datum the value at its label, ``(labelled,)``."""
    return values[Y >= 0, Y[Y >= 0]]


def by_quadrature(model: SemiSupervisedVAE, guide: AmortizedClassAndCode) -> Tensor:
    """The bound of each datum: the class enumerated, the code on 80 Gauss-Hermite nodes."""
    nodes, shares = np.polynomial.hermite_e.hermegauss(80)
    e, share = torch.from_numpy(nodes), torch.from_numpy(shares / shares.sum())
    log_q = guide.classifier(X).log_softmax(-1)
    inner = []
    for k in range(CLASSES):
        hot = torch.eye(CLASSES)[k]
        q = guide.posterior(X, torch.full((len(X),), k))
        z = q.mean + q.stddev * e  # (data, nodes)
        seen = torch.cat([z[..., None], hot.expand(*z.shape, CLASSES)], -1)
        logits = model.decoder(seen)
        fit = (X[:, None] * logits - nn.functional.softplus(logits)).sum(-1)
        gap = -(z**2) / 2 + e**2 / 2 + q.stddev.log()  # log p(z) - log q(z)
        inner.append(WEIGHTS[k].log() + ((fit + gap) * share).sum(-1))
    each = torch.stack(inner, -1)
    bound = (log_q.exp() * (each - log_q)).sum(-1)
    bound[Y >= 0] = known_of(each)
    return bound.detach()


class TestBound:
    @pytest.mark.parametrize(
        "objective",
        [
            ELBO(10, summed=("y_unobserved",)),
            ELBO(10, MonteCarloKL(), summed=("y_unobserved",)),
            ELBO(10),
            ScoreFunction(10, LeaveOneOut(), {"z": Pathwise()}),
            Supervised(ELBO(10, summed=("y_unobserved",)), weight=7.0),
            Trace_ELBO(10, vectorize_particles=True, max_plate_nesting=1),
        ],
        ids=["summed", "Monte Carlo", "drawn", "score", "supervised", "stock"],
    )
    def test_it_is_that_of_quadrature(self, objective: Any) -> None:
        model, guide = make()
        exact = by_quadrature(model, guide).sum().item()
        draws = torch.tensor([-objective.loss(model, guide, X, Y) for _ in range(300)])
        assert abs(draws.mean().item() - exact) < 4 * draws.std().item() / math.sqrt(len(draws))

    def test_terms_add_up(self) -> None:
        model, guide = make()
        terms = SUMMED.terms(model, guide, X, Y)
        assert set(terms.kl) == {"y_unobserved", "z"}
        assert terms.analytic == ("z",)
        log_q = guide.classifier(X[Y < 0]).log_softmax(-1)
        kl = (log_q.exp() * (log_q - WEIGHTS.log())).sum() / len(X)
        torch.testing.assert_close(terms.kl["y_unobserved"], kl.detach())
        torch.testing.assert_close(terms.elbo, terms.reconstruction - sum(terms.kl.values()))

    def test_labelled_and_unlabelled_in_one_batch_are_the_two_apart(self) -> None:
        model, guide = make_plain()
        known = Y >= 0
        whole = SUMMED.loss(model, guide, X, Y)
        parts = [SUMMED.loss(model, guide, X[part], Y[part]) for part in (known, ~known)]
        assert whole == pytest.approx(sum(parts), rel=1e-12)
        assert SUMMED.loss(model, guide, X[~known]) == pytest.approx(parts[1], rel=1e-12)

    def test_a_minibatch_counts_for_all_data(self) -> None:
        model, guide = make_plain()
        objective = Supervised(SUMMED, weight=3.0)
        losses = [objective.differentiable_loss(model, guide, X, Y, n) for n in (None, 50)]
        torch.testing.assert_close(losses[1], 10 * losses[0])
        one, ten = (torch.autograd.grad(loss, guide.classifier.output_bias)[0] for loss in losses)
        torch.testing.assert_close(ten, 10 * one)

    def test_a_guide_that_is_exact_has_the_evidence_as_its_bound(self) -> None:
        """log p(x) where the class is unknown, log p(x, y) where it is known."""
        model, guide = make_plain()
        joint = fits(model)
        with torch.no_grad():
            logits = model.decoder.output.weight[:, 1:].T + model.decoder.output_bias
            guide.classifier.output.weight.copy_(logits)
            bias = WEIGHTS.log() - nn.functional.softplus(logits).sum(-1)
            guide.classifier.output_bias.copy_(bias)
            guide.encoder.output.weight.zero_()
            # The prior: mean 0 and standard deviation 1, by softplus and above its floor.
            ones = torch.tensor(1.0 - 1e-4)
            guide.encoder.output_bias.copy_(torch.stack([0 * ones, (ones.exp() - 1).log()]))
        evidence = joint.logsumexp(-1)[Y < 0].sum() + known_of(joint).sum()
        # A softplus held under a ceiling of 10,000 misses 1 by 1e-4: KL about its square.
        assert -SUMMED.loss(model, guide, X, Y) == pytest.approx(evidence.item(), abs=1e-6)
        posterior = (joint - joint.logsumexp(-1, keepdim=True)).exp()
        torch.testing.assert_close(guide.classify(X), posterior)


def test_a_broken_stick_for_a_code_has_the_bound_of_quadrature() -> None:
    """Two pieces: one fraction v, integrated over its log-odds t by the trapezoid rule."""
    pyro.set_rng_seed(2)
    code, family = StickCode(2, 3.0), BetaSticks(3.0)
    model = SemiSupervisedVAE(DIM, CLASSES, code, (5,), weights=WEIGHTS)
    guide = AmortizedClassAndCode(DIM, CLASSES, StickCodePosterior(2, family), (5,))
    with torch.no_grad():
        for parameter in (*model.parameters(), *guide.parameters()):
            parameter.add_(0.5 * torch.randn_like(parameter))
    t = torch.linspace(-20, 20, 4001)
    v, log_jacobian = t.sigmoid(), nn.functional.logsigmoid(t) + nn.functional.logsigmoid(-t)
    log_prior = math.log(3.0) + 2.0 * (1 - v).log()
    log_class = guide.classifier(X).log_softmax(-1)
    inner = []
    for k in range(CLASSES):
        seen = torch.cat([torch.stack([v, 1 - v], -1), torch.eye(CLASSES)[k].expand(4001, -1)], -1)
        logits = model.decoder(seen)
        fit_ = X @ logits.T - nn.functional.softplus(logits).sum(-1)
        q = guide.posterior(X, torch.full((len(X),), k))
        log_q = q.log_prob(v[:, None, None]).T
        share = (log_q + log_jacobian).exp() * (t[1] - t[0])
        torch.testing.assert_close(share.sum(-1), torch.ones(len(X)), rtol=1e-6, atol=1e-6)
        inner.append(WEIGHTS[k].log() + (share * (fit_ + log_prior - log_q)).sum(-1))
    each = torch.stack(inner, -1)
    bound = (log_class.exp() * (each - log_class)).sum(-1)
    exact = (bound[Y < 0].sum() + known_of(each).sum()).item()
    for kl in (AnalyticKL(), MonteCarloKL()):
        objective = ELBO(10, kl, summed=("y_unobserved",))
        draws = torch.tensor([-objective.loss(model, guide, X, Y) for _ in range(300)])
        assert abs(draws.mean().item() - exact) < 4 * draws.std().item() / math.sqrt(len(draws))


class TestGradients:
    def test_the_score_function_has_the_sum_as_its_mean(self) -> None:
        model, guide = make_plain()
        parameters = [guide.classifier.output_bias, model.decoder.output_bias]

        def gradient(objective: Objective) -> Tensor:
            loss = objective.differentiable_loss(model, guide, X, Y)
            return torch.cat(torch.autograd.grad(loss, parameters))

        exact = gradient(SUMMED)
        for objective in (ELBO(20), ScoreFunction(20, LeaveOneOut(), {"z": Pathwise()})):
            draws = torch.stack([gradient(objective) for _ in range(300)])
            error = draws.std(0) / math.sqrt(len(draws))
            assert ((draws.mean(0) - exact).abs() < 4.5 * error).all()

    @pytest.mark.parametrize("inner", [SUMMED, ELBO(3), ScoreFunction(3, LeaveOneOut())])
    def test_the_supervised_term_adds_the_classifier_s(self, inner: Objective) -> None:
        model, guide = make()
        supervised = Supervised(inner, "y", 7.0)
        parameters = [*model.parameters(), *guide.parameters()]
        found = []
        for objective in (inner, supervised):
            pyro.set_rng_seed(4)
            loss = objective.differentiable_loss(model, guide, X, Y)
            found.append((loss, torch.autograd.grad(loss, parameters)))
        (before, plain), (after, more) = found
        assert torch.equal(before, after)  # the bound stays a bound
        term = 7.0 * known_of(guide.classifier(X).log_softmax(-1)).sum()
        by_hand = torch.autograd.grad(-term, parameters, materialize_grads=True)
        assert by_hand[-1] is not None
        for one, other, added in zip(plain, more, by_hand, strict=True):
            torch.testing.assert_close(other - one, added)
        assert any(added.abs().max() > 0.1 for added in by_hand)

    def test_no_labels_are_no_supervision(self) -> None:
        model, guide = make()
        results = []
        for objective, y in (
            (SUMMED, None),
            (SUMMED, torch.full((len(X),), -1)),
            (Supervised(SUMMED, weight=7.0), torch.full((len(X),), -1)),
        ):
            pyro.set_rng_seed(4)
            loss = objective.differentiable_loss(model, guide, X, y)
            parameters = [*model.parameters(), *guide.parameters()]
            results.append((loss, *torch.autograd.grad(loss, parameters)))
        for other in results[1:]:
            for one, two in zip(results[0], other, strict=True):
                assert torch.equal(one, two)


class TestProgram:
    @pytest.mark.parametrize(("x", "y"), [(X, Y), (X, None), (None, Y), (None, None)])
    def test_its_sites_are_the_same_whatever_is_known(self, x: Any, y: Any) -> None:
        model, _ = make()
        nodes: Any = poutine.trace(model).get_trace(x, y).nodes
        drawn = [n for n, node in nodes.items() if node["type"] == "sample" and n != "data"]
        assert drawn == ["y_observed", "y_unobserved", "y", "z", "x"]
        assert nodes["y_observed"]["is_observed"]
        assert not nodes["y_unobserved"]["is_observed"]
        if y is not None:
            assert torch.equal(nodes["y"]["value"][Y >= 0], Y[Y >= 0])

    def test_it_simulates_by_class(self) -> None:
        model, _ = make_plain()
        pyro.set_rng_seed(5)
        for k in range(CLASSES):
            x = model(y=torch.full((4000,), k))
            mean = model.decode(torch.zeros(1), torch.tensor(k)).mean
            error = (mean * (1 - mean) / len(x)).sqrt()
            assert ((x.mean(0) - mean).abs() < 4 * error).all()

    def test_class_probabilities_are_given_or_learned(self) -> None:
        torch.testing.assert_close(make()[0].weights, WEIGHTS)
        assert "class_logits" not in dict(make()[0].named_parameters())
        model = SemiSupervisedVAE(DIM, CLASSES, weights=LearnedWeights())
        torch.testing.assert_close(model.weights, torch.full((CLASSES,), 1 / CLASSES))
        assert "class_logits" in dict(model.named_parameters())

    def test_refusals(self) -> None:
        model, guide = make()
        with pytest.raises(DataError, match="y\\[1\\] is 3, and the classes are 0 to 2"):
            model.check(X[:2], torch.tensor([0, 3]))
        with pytest.raises(DataError, match="y\\[0\\] is -2"):
            model.check(X[:1], torch.tensor([-2]))
        with unchecked(), pytest.raises(DataError, match="one label for each"):
            model(X, Y[:2])
        with pytest.raises(DataError, match="got none; give x"):
            guide()
        with pytest.raises(OptionError, match="no probabilities of 3 classes"):
            SemiSupervisedVAE(DIM, CLASSES, weights=torch.ones(2))
        with pytest.raises(OptionError, match="at least 2"):
            SemiSupervisedVAE(DIM, 1)
        with pytest.raises(OptionError, match="no partly observed site 'label'"):
            Supervised(SUMMED, "label").loss(model, guide, X, Y)
        with pytest.raises(OptionError, match="weight is -1"):
            Supervised(SUMMED, weight=-1.0)


def two_groups(labelled: int) -> tuple[Tensor, Tensor, Tensor]:
    """Data in two groups, what is told of their classes, and the truth."""
    truth = torch.arange(200) % 2
    x = torch.where(truth[:, None] == 1, 1.5, -1.5) + torch.randn(200, DIM)
    y = truth.clone()
    y[labelled:] = -1
    return x, y, truth


class TestPair:
    def test_it_is_made_for_data_and_labels(self) -> None:
        x, y, _ = two_groups(10)
        pair = pairs.build("semi_supervised_vae", (x, y), latent_dim=1)
        assert isinstance(pair.model, SemiSupervisedVAE)
        assert pair.model.num_classes == 2
        # 10 N, spread over the ten that are labelled.
        assert repr(pair.objective).endswith("summed=('y_unobserved',)), 'y', 200.0)")
        with pytest.raises(DataError, match="write \\(x, y\\)"):
            pairs.build("semi_supervised_vae", x)
        with pytest.raises(OptionError, match="give num_classes"):
            pairs.build("semi_supervised_vae", (x, torch.full((200,), -1)))
        with pytest.raises(DataError, match="y is torch\\.float64"):
            pairs.build("semi_supervised_vae", (x, y.double()))

    def test_a_fit_learns_classes_from_few_labels(self) -> None:
        torch.set_default_dtype(torch.float32)
        pyro.set_rng_seed(1)
        x, y, truth = two_groups(6)
        pair = pairs.build("semi_supervised_vae", (x, y), latent_dim=1, hidden=(8,))
        adam = functools.partial(torch.optim.Adam, lr=0.02)
        fit(
            pair.model, pair.guide, (x, y), objective=pair.objective, optimizer=adam,
            epochs=30, batch_size=50, progress=False,
        )  # fmt: skip
        probs = pairs.classify(pair, x)
        torch.testing.assert_close(probs.sum(-1), torch.ones(200))
        assert torch.equal(probs, pairs.classify(pair.guide, x, batch_size=7))
        assert (probs.argmax(-1) == truth).float().mean() > 0.95
        wrong = torch.where(torch.arange(200) == 150, 2, y)
        with pytest.raises(DataError, match="y\\[150\\] is 2"):
            fit(pair.model, pair.guide, (x, wrong), optimizer=adam, epochs=1, progress=False)

    def test_only_a_classifier_classifies(self) -> None:
        with pytest.raises(OptionError, match="which is no classifier"):
            pairs.classify(pairs.vae(DIM), X)
