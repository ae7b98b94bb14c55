r"""Models with their discrete latents summed out exactly, as programs that any objective takes.

A model is run once with every value of its discrete latents side by side (``summed_sites``). The
log-densities that depend on them become terms, which ``summation`` contracts; what comes out is put
back as the log-density of a site. Only tensor operations of fixed shape are used, so that the whole
becomes one graph.
"""

import weakref
from collections.abc import Hashable
from typing import Any

from pyro import poutine
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import nn

from pyro_models.infer.dry_run import dry_run, modules_of
from pyro_models.infer.summed_sites import Collector, Survey, is_summed
from pyro_models.infer.weights import Program, kind_of, remember


def marginal(model: Program) -> Program:
    r"""The model with its discrete latents summed out,

    .. math:: p(x, z) = \sum_k p(k)\, p(x, z \mid k) .

    The result is a Pyro program with the model's arguments and parameters. Summed out is every
    discrete latent that nobody outside gives a value: neither a guide that samples it nor
    ``poutine.condition``. No mark is needed; ``infer={"enumerate": ...}`` and the handlers of
    ``pyro.infer.config_enumerate`` change nothing. Sums run in parallel over plates, over chains
    (``pyro.markov`` too) variable by variable, in log space.

    Latents that are summed out vanish. Where one other site depends on a sum, it stays and its
    log-density is the sum's; where several do, or scales differ or are tensors, they stay with
    log-density zero, and a factor ``"marginal_<first latent>"`` in the plates that they share
    carries the sum. A plate's N/B and a scale common to all sites of a sum multiply outside its
    logarithm; scales that differ are powers of the densities inside. A mask drops a site's density
    from the sum, except that of a latent that is summed out: without anything that depends on it,
    it sums to one.

    The program conditions and does not simulate: run the model itself for that.

    Args:
        model: A Pyro program, with values that broadcast over dimensions on the left, as Pyro's
            parallel enumeration asks: index parameters by the latent and branch on none.

    Raises:
        SiteMismatchError: When it runs, if a discrete latent's values cannot be listed, if a site
            that depends on a sum has no value, or if plates are no tree.
        OptionError: When it runs, if a sum runs over a whole plate of which there is a minibatch.

    References:
        Obermeyer et al. 2019, "Tensor Variable Elimination for Plated Factor Graphs",
        https://arxiv.org/abs/1902.03210

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro_models.infer import log_likelihood
        >>> weights, means = torch.tensor([0.4, 0.6]), torch.tensor([-1.0, 2.0])
        >>> def mixture(x):
        ...     with pyro.plate("data", len(x)):
        ...         k = pyro.sample("k", dist.Categorical(weights))
        ...         pyro.sample("x", dist.Normal(means[k], 1.0), obs=x)
        >>> x = torch.tensor([0.0, 2.0])
        >>> log_likelihood(marginal(mixture), lambda x: None, x, num_samples=1).value.float()
        tensor([-2.0465, -1.4224])
        >>> densities = dist.Normal(means, 1.0).log_prob(x.unsqueeze(-1)) + weights.log()
        >>> densities.logsumexp(-1)
        tensor([-2.0465, -1.4224])
    """
    return _MarginalModule(model) if isinstance(model, nn.Module) else Marginal(model)


class Marginal:
    """A model with its discrete latents summed out; see ``marginal``.

    Args:
        model: The model, or a weak reference to it.
    """

    def __init__(self, model: Program | weakref.ref):
        self._held = model
        self._depths: dict[Hashable, int] = {}

    def _model(self) -> Program:
        return _kept(self._held, "model whose discrete latents are summed out")

    @property
    def __wrapped__(self) -> Program:
        """What has the signature."""
        return _signed(self._model())

    @property
    def __self__(self) -> nn.Module:
        """The modules that run, where dry runs look for the buffers that they put back."""
        return nn.ModuleList(modules_of(self._model()).values())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model."""
        model = self._model()
        outside = list(_PYRO_STACK)
        if any(isinstance(messenger, Survey | Collector) for messenger in outside):
            return model(*args, **kwargs)  # around this one is another, which does it all
        plates = [m.dim for m in outside if isinstance(m, IndepMessenger) and m.dim is not None]
        depth = max([self._depth(model, outside, args, kwargs), *(-dim for dim in plates)])
        collector = Collector(outside, -depth - 1)
        with poutine.block(hide_fn=is_summed), EnumMessenger(-depth - 1), collector:
            result = model(*args, **kwargs)
        collector.emit()
        return result

    def _depth(self, model: Program, outside: list[Messenger], args: tuple, kwargs: dict) -> int:
        """Dimensions of the model's plates, by one run that is remembered for such arguments."""
        kind = kind_of(args, kwargs)
        if kind not in self._depths:
            survey = Survey(outside)
            with dry_run(model, self, args, kwargs), survey:
                model(*args, **kwargs)
            remember(self._depths, kind, survey.depth)
        return self._depths[kind]


class _MarginalModule(nn.Module):
    """The same for a model that is a module, whose parameters are then this one's."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.forward = Marginal(model)


_cache: "weakref.WeakKeyDictionary[Any, Marginal]" = weakref.WeakKeyDictionary()


def remembered_marginal(model: Program) -> Program:
    """``marginal(model)``, the same one at each call while the model lives.

    It does not keep the model alive: whoever calls it must.
    """
    try:
        known = _cache.get(model)
        # A bound method equals another that may be gone before it.
        if known is None or known._held() is not model:
            known = _cache[model] = Marginal(weakref.ref(model))
        return known
    except TypeError:  # callables that cannot be keys
        return marginal(model)


class Hidden:
    """A guide whose draws at some sites nobody outside sees.

    Args:
        guide: The guide, or a weak reference to it.
        names: The sites.
    """

    def __init__(self, guide: Program | weakref.ref, names: tuple[str, ...]):
        self._held = guide
        self._names = names

    def _guide(self) -> Program:
        return _kept(self._held, "guide whose sites are hidden")

    @property
    def __wrapped__(self) -> Program:
        """What has the signature."""
        return _signed(self._guide())

    @property
    def __self__(self) -> nn.Module:
        """The modules that run, where dry runs look for the buffers that they put back."""
        return nn.ModuleList(modules_of(self._guide()).values())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the guide."""
        with poutine.block(hide=list(self._names)):
            return self._guide()(*args, **kwargs)


_hidden: "weakref.WeakKeyDictionary[Any, dict[tuple[str, ...], Hidden]]" = (
    weakref.WeakKeyDictionary()
)


def remembered_hidden(guide: Program, names: tuple[str, ...]) -> Program:
    """The guide with sites hidden, the same program at each call while the guide lives."""
    try:
        known = _hidden.setdefault(guide, {})
        if names not in known or known[names]._held() is not guide:
            known[names] = Hidden(weakref.ref(guide), names)
        return known[names]
    except TypeError:  # callables that cannot be keys
        return Hidden(guide, names)


def _kept(held: Any, what: str) -> Program:
    program = held() if isinstance(held, weakref.ref) else held
    if program is None:
        raise ReferenceError(f"the {what} is gone")
    return program


def _signed(program: Program) -> Program:
    return program.forward if isinstance(program, nn.Module) else program
