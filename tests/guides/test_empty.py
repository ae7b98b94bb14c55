"""The guide without latents: the ELBO is the log-likelihood."""

import torch

from guides import Empty
from pyro_models.infer import ELBO
from pyro_models.regression import SupervisedRegression


def test_it_draws_nothing_and_the_bound_is_the_likelihood() -> None:
    model, guide = SupervisedRegression(3, 2), Empty()
    inputs, x = torch.randn(10, 3), torch.randn(10, 2)
    assert guide(inputs, x, num_data=20) is None
    loss = ELBO().differentiable_loss(model, guide, inputs, x, num_data=20)
    assert torch.allclose(loss, -2 * model.log_prob(inputs, x).sum())
    assert list(guide.parameters()) == []
