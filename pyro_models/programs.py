"""What every model and guide here shares: showing parameters to Pyro, and the data plate."""

import weakref

import pyro
import torch
from pyro.poutine.runtime import am_i_wrapped, effectful
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_models.errors import DataError

DATA_PLATE = "data"


def _value(value: Tensor, **_: object) -> Tensor:
    return value


_param_statement = effectful(_value, type="param")


def announce(module: nn.Module, name: str) -> None:
    """Show a module's trainable parameters to Pyro's handlers, without storing them anywhere.

    Stock ``pyro.infer.SVI`` trains the parameters that it sees in ``param`` statements.
    ``pyro.module`` makes such statements too, but copies each parameter into the global
    parameter store, where a second model of the same name meets the values of the first.
    Here the module stays the only owner of its parameters. Frozen ones stay frozen.

    Args:
        module: Owner of the parameters.
        name: Prefix of the statements' names.

    Example:
        >>> import pyro
        >>> layer = torch.nn.Linear(2, 1)
        >>> trace = pyro.poutine.trace(lambda: announce(layer, "layer")).get_trace()
        >>> sorted(name for name, site in trace.nodes.items() if site["type"] == "param")
        ['layer.bias', 'layer.weight']
        >>> list(pyro.get_param_store().keys())
        []
    """
    if not am_i_wrapped():
        return
    for path, parameter in module.named_parameters():
        if parameter.requires_grad:
            # Handlers may read the value but SVI needs `unconstrained`; an alias carries it, so
            # that the module's own parameter keeps no attribute that would break copy or pickle.
            alias = parameter.view_as(parameter)
            alias.unconstrained = weakref.ref(parameter)  # type: ignore[attr-defined]
            full = f"{name}.{path}"
            _param_statement(alias, name=full, constraint=constraints.real, event_dim=None)


def data_plate(batch: int, num_data: int | None, device: torch.device | None = None) -> pyro.plate:
    r"""The plate over data: the rightmost dimension, scaled by ``num_data / batch``.

    Args:
        batch: Data in this minibatch, :math:`B`.
        num_data: Data in the whole set, :math:`N`; ``None`` means that the batch is all of it.
        device: Where the plate's indices live.

    Raises:
        DataError: If the batch is empty or larger than ``num_data``.

    Example:
        >>> with data_plate(2, num_data=10) as index:
        ...     index
        tensor([0, 1])
    """
    if batch < 1:
        raise DataError("the minibatch is empty; give at least one datum")
    size = batch if num_data is None else num_data
    if size < batch:
        raise DataError(
            f"num_data={size} is smaller than the minibatch of {batch}; "
            "num_data is the size of the whole set"
        )
    # The subsample is given, so that no random permutation of num_data is ever drawn or traced.
    return pyro.plate(DATA_PLATE, size, subsample=torch.arange(batch, device=device), dim=-1)
