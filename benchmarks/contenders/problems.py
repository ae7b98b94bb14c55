"""What every contender gets: the same data, the same initial values, the same learning rate."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

Layer = tuple[Tensor, Tensor]
"""Weight ``(out, in)`` and bias ``(out,)``."""


@dataclass(frozen=True)
class VAEProblem:
    """A variational autoencoder: tanh, Bernoulli likelihood, standard normal prior, Adam.

    Args:
        encoder: Layers from data to (location, raw scale) of z, ``2 latent_dim`` outputs.
        decoder: Layers from z to logits of the pixels.
        batches: Minibatches, each ``(batch, data_dim)``, of zeros and ones.
        lr: Learning rate.
    """

    encoder: tuple[Layer, ...]
    decoder: tuple[Layer, ...]
    batches: tuple[Tensor, ...]
    lr: float

    @property
    def latent_dim(self) -> int:
        """Dimension of z."""
        return self.decoder[0][0].shape[1]

    @property
    def hidden(self) -> tuple[int, ...]:
        """Widths of the encoder's hidden layers; the decoder's are the reverse."""
        return tuple(len(bias) for _, bias in self.encoder[:-1])

    @property
    def batch_size(self) -> int:
        """Data in a minibatch."""
        return len(self.batches[0])


@dataclass(frozen=True)
class MixtureProblem:
    """A mixture of Gaussians with diagonal covariances, by maximum likelihood with Adam.

    Args:
        logits: Initial logits of the weights, ``(components,)``.
        locs: Initial locations, ``(components, data_dim)``.
        log_scales: Initial log standard deviations, ``(components, data_dim)``.
        x: All data, ``(num_data, data_dim)``.
        lr: Learning rate.
    """

    logits: Tensor
    locs: Tensor
    log_scales: Tensor
    x: Tensor
    lr: float


def layers(widths: tuple[int, ...], generator: torch.Generator) -> tuple[Layer, ...]:
    """Glorot weights, zero biases."""
    made = []
    for fan_in, fan_out in pairwise(widths):
        limit = math.sqrt(6 / (fan_in + fan_out))
        weight = (2 * torch.rand(fan_out, fan_in, generator=generator) - 1) * limit
        made.append((weight, torch.zeros(fan_out)))
    return tuple(made)


def pictures(
    num_batches: int,
    batch_size: int,
    data_dim: int,
    generator: torch.Generator,
    device: torch.device,
) -> tuple[Tensor, ...]:
    """Minibatches of random pictures of which a tenth of the pixels is on.

    What the pixels show has no influence on the time of a step.
    """
    pixels = torch.rand(num_batches, batch_size, data_dim, generator=generator) < 0.1
    return tuple(pixels.float().to(device))


def vae_problem(
    data_dim: int,
    hidden: tuple[int, ...],
    latent_dim: int,
    batch_size: int,
    *,
    device: torch.device,
    num_batches: int = 50,
    lr: float = 1e-3,
) -> VAEProblem:
    """Random weights and random pictures."""
    generator = torch.Generator().manual_seed(0)
    encoder = layers((data_dim, *hidden, 2 * latent_dim), generator)
    decoder = layers((latent_dim, *reversed(hidden), data_dim), generator)
    return VAEProblem(
        encoder=to_device(encoder, device),
        decoder=to_device(decoder, device),
        batches=pictures(num_batches, batch_size, data_dim, generator, device),
        lr=lr,
    )


def mixture_problem(
    num_data: int = 1000,
    components: int = 8,
    *,
    device: torch.device,
    lr: float = 1e-2,
) -> MixtureProblem:
    """Clusters on a circle; the locations start at data points."""
    generator = torch.Generator().manual_seed(0)
    angle = torch.arange(components) * (2 * math.pi / components)
    centres = 4 * torch.stack([angle.cos(), angle.sin()], -1)
    label = torch.randint(components, (num_data,), generator=generator)
    x = centres[label] + 0.5 * torch.randn(num_data, 2, generator=generator)
    return MixtureProblem(
        logits=torch.zeros(components, device=device),
        locs=x[:components].clone().to(device),
        log_scales=torch.zeros(components, 2, device=device),
        x=x.to(device),
        lr=lr,
    )


def to_device(values: tuple[Layer, ...], device: torch.device) -> tuple[Layer, ...]:
    """The same values on a device."""
    return tuple((weight.to(device), bias.to(device)) for weight, bias in values)


def network(values: tuple[Layer, ...], activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    """A perceptron of ordinary torch modules with these values, copied."""
    modules: list[nn.Module] = []
    for weight, bias in values:
        linear = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device)
        linear.load_state_dict({"weight": weight, "bias": bias})
        modules += [linear, activation()]
    return nn.Sequential(*modules[:-1])
