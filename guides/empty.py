"""A guide without latents."""

from typing import Any, final

from torch import nn

from pyro_models.programs import announce


@final
class Empty(nn.Module):
    r"""The guide of a model without latents: it draws nothing, whatever it is given.

    The ELBO is then the log-likelihood itself, and fitting is maximum likelihood.

    Example:
        >>> import pyro, torch
        >>> trace = pyro.poutine.trace(Empty()).get_trace(torch.zeros(3, 2), num_data=10)
        >>> [name for name, site in trace.nodes.items() if site["type"] == "sample"]
        []
    """

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """The Pyro program: nothing.

        Args:
            *args: What the model is given.
            **kwargs: What the model is given.
        """
        announce(self, "guide")
