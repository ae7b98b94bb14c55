"""A network of the user's own in the place of the built-in perceptron: chosen, run, checked."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from pyro_models.errors import OptionError
from pyro_models.networks import MLP


def own_or_perceptron(
    role: str,
    own: nn.Module | None,
    sizes: tuple[int, int],
    hidden: Sequence[int] | None,
    activation: type[nn.Module] | None,
    usual: tuple[Sequence[int], type[nn.Module]] = ((200,), nn.Tanh),
) -> nn.Module:
    """The user's network, or a multilayer perceptron.

    Args:
        role: What the option is called, ``"encoder"`` or ``"decoder"``.
        own: The user's network; None for a perceptron.
        sizes: Numbers in and out of the perceptron.
        hidden: Widths of its hidden layers; None for the usual.
        activation: Class of its activation; None for the usual.
        usual: Widths and activation.

    Raises:
        OptionError: If there is a network and options of a perceptron, or a width is none.

    Example:
        >>> own_or_perceptron("decoder", None, (2, 3), (), None)
        MLP(
          (body): Sequential()
          (output): Linear(in_features=2, out_features=3, bias=True)
        )
    """
    if own is None:
        widths, kind = usual
        return MLP(sizes[0], widths if hidden is None else hidden, sizes[1], activation or kind)
    if hidden is not None or activation is not None:
        article = "an" if role[0] in "aeiou" else "a"
        raise OptionError(
            f"hidden and activation describe the built-in {role}; give them or {article} {role} of "
            "your own, not both"
        )
    return own


def outputs_of(
    role: str, network: nn.Module, x: Float[Tensor, "*lead inputs"], outputs: int, who: object
) -> Float[Tensor, "*lead outputs"]:
    """Run a network and see that it gives as many numbers as are expected.

    Args:
        role: What the option is called, ``"encoder"`` or ``"decoder"``.
        network: The network.
        x: Its input, ``(..., inputs)``.
        outputs: Numbers that are expected for each input.
        who: Who expects them, for the message.

    Raises:
        OptionError: If there are more or fewer.

    Example:
        >>> import torch
        >>> outputs_of("decoder", nn.Linear(2, 3), torch.zeros(5, 2), 3, "the likelihood").shape
        torch.Size([5, 3])
    """
    found = network(x)
    if found.shape != (expected := (*x.shape[:-1], outputs)):
        raise OptionError(
            f"the {role} turned {tuple(x.shape)} into {tuple(found.shape)}, but "
            f"{who} expects {expected}; change its output layer, or wrap it in "
            "pyro_models.networks.Folded if it knows one batch dimension only"
        )
    return found
