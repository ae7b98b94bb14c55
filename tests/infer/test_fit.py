"""``fit`` against exact posteriors; and its promises: isolation, repetition, records."""

import functools
import math
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_models.errors import DataError, OptionError, SupportError
from pyro_models.infer import ELBO, MonteCarloKL
from pyro_models.infer.history import Fit
from pyro_models.infer.run import EpochEnd
from pyro_models.infer.schedules import Cosine, InverseEpoch, LinearWarmup
from pyro_models.infer.stopping import EarlyStopping, StopFit, StopReason
from pyro_models.infer.validation import Validation
from tests.infer.fit_cases import (
    Decoder,
    fit,
    global_guide,
    global_model,
    local_guide,
    local_model,
    mean_model,
    network_pair,
    no_guide,
    normal_data,
)

fast = functools.partial(torch.optim.Adam, lr=0.2)


def value(result: Fit, name: str) -> float:
    """A parameter inside its constraint: scales are kept as logarithms."""
    raw = result.parameters[name].item()
    return math.exp(raw) if name == "scale" else raw


def same(one: Fit, other: Fit) -> bool:
    return all(torch.equal(one.parameters[n], other.parameters[n]) for n in one.parameters)


# --- oracles -------------------------------------------------------------------------------------


def test_local_latents_reach_the_exact_posterior_and_evidence() -> None:
    # At the optimum every draw has the same weight, p(x): no noise is left; tolerances are small.
    x = math.sqrt(2) * normal_data(200)
    result = fit(
        local_model,
        local_guide,
        x,
        epochs=75,
        batch_size=50,
        optimizer=fast,
        schedule=Cosine(),
        objective=ELBO(kl=MonteCarloKL()),
    )
    assert value(result, "slope") == pytest.approx(0.5, abs=0.03)
    assert value(result, "shift") == pytest.approx(0.0, abs=0.03)
    assert value(result, "scale") == pytest.approx(math.sqrt(0.5), abs=0.03)
    evidence = dist.Normal(0.0, math.sqrt(2)).log_prob(x).mean()
    assert result.elbo == pytest.approx(float(evidence), abs=2e-3)
    assert result.history[0].elbo < result.history[-1].elbo


@pytest.mark.parametrize(("batch_size", "epochs"), [(None, 300), (10, 60)])
def test_global_latents_reach_the_exact_posterior(batch_size: int | None, epochs: int) -> None:
    # A minibatch stands for N/B times itself: without the scale the posterior would be that of 10
    # data, more than twice as wide.
    x = 2.0 + normal_data(60)
    options = {"objective": ELBO(num_particles=16), "optimizer": fast, "schedule": Cosine()}
    result = fit(global_model, global_guide, x, epochs=epochs, batch_size=batch_size, **options)
    assert value(result, "loc") == pytest.approx(float(x.sum()) / 61, abs=0.03)
    assert value(result, "scale") == pytest.approx(61**-0.5, rel=0.1)


@pytest.mark.parametrize("autoguide", [AutoNormal, AutoMultivariateNormal])
def test_autoguides(autoguide: Callable[..., Any]) -> None:
    # Linear regression with known noise: the posterior is normal, cov = (I + X'X)^-1.
    inputs = normal_data(80, 2) @ torch.tensor([[1.0, 0.6], [0.0, 0.8]])
    y = inputs @ torch.tensor([1.0, -2.0]) + normal_data(80, seed=1)

    def model(inputs: Tensor, y: Tensor, num_data: int | None = None) -> None:
        weights = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", num_data or len(y), subsample=torch.arange(len(y))):
            # (K, 1, 2) particles of weights times (N, 2) inputs
            pyro.sample("y", dist.Normal((weights * inputs).sum(-1), 1.0), obs=y)

    guide = autoguide(model)
    options = {"objective": ELBO(num_particles=8), "optimizer": fast, "schedule": Cosine()}
    fit(model, guide, (inputs, y), epochs=75, batch_size=40, **options)
    precision = torch.eye(2) + inputs.T @ inputs
    mean = torch.linalg.solve(precision, inputs.T @ y)
    # Mean field keeps the diagonal of the precision, the full normal the whole covariance.
    exact = (
        precision.inverse().diagonal()
        if autoguide is AutoMultivariateNormal
        else (1 / precision.diagonal())
    )
    median, upper = guide.quantiles([0.5, 0.8413447])["w"]  # upper: one standard deviation above
    assert torch.allclose(median, mean, atol=0.4 * float(exact.max().sqrt()))
    assert torch.allclose(upper - median, exact.sqrt(), rtol=0.15)
    assert not list(pyro.get_param_store().keys())


def test_an_epoch_of_minibatches_averages_to_the_full_bound() -> None:
    # With a learning rate of zero the history holds the bound itself: an epoch of a pair without
    # latents covers every datum once, so that an odd last batch must count for what it is.
    x = normal_data(10)
    still = functools.partial(torch.optim.SGD, lr=0.0)
    full = fit(mean_model, no_guide, x, epochs=1, batch_size=None, optimizer=still)
    parts = fit(mean_model, no_guide, x, epochs=1, batch_size=4, optimizer=still)
    exact = float(dist.Normal(0.0, 1.0).log_prob(x).mean())
    assert full.elbo == pytest.approx(exact, rel=1e-6)
    assert parts.elbo == pytest.approx(exact, rel=1e-6)


def test_a_transform_is_seen_by_training_and_by_validation() -> None:
    x = normal_data(50)
    train = functools.partial(fit, mean_model, no_guide, epochs=150, batch_size=None)
    shift = functools.partial(
        train, validation=x[:10], optimizer=functools.partial(torch.optim.SGD, lr=0.2)
    )
    plain, moved = shift(x), shift(x, transform=lambda x: x + 5.0)
    assert value(moved, "loc") - value(plain, "loc") == pytest.approx(5.0, abs=1e-2)
    assert moved.validation == pytest.approx(plain.validation, abs=1e-2)


def test_kl_warmup_changes_training_and_not_what_is_reported() -> None:
    x = normal_data(40)
    still = functools.partial(torch.optim.SGD, lr=0.0)
    for warmup in (None, LinearWarmup(1000)):
        kept = fit(local_model, local_guide, x, epochs=3, optimizer=still, kl=warmup)
        # E log p(x|z) - KL at slope 0, shift 1, scale 1 is -log(2π)/2 - ((x-1)² + 1)/2 - 1/2.
        bound = -0.5 * math.log(2 * math.pi) - ((x - 1).square().mean() + 1) / 2 - 0.5
        noise = 5 * float((x - 1).std() / math.sqrt(40)) + 0.5
        assert kept.elbo == pytest.approx(float(bound), abs=noise)
    cold = fit(local_model, local_guide, x, epochs=5, kl=LinearWarmup(10))
    assert [e.kl_weight for e in cold.history] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert not same(cold, fit(local_model, local_guide, x, epochs=5))


def test_schedules_drive_the_learning_rate() -> None:
    result = fit(mean_model, no_guide, normal_data(10), epochs=3, schedule=InverseEpoch())
    assert [e.lr for e in result.history] == pytest.approx([0.05, 0.025, 0.05 / 3])


def test_float64() -> None:
    decoder, encoder = network_pair()
    result = fit(decoder, encoder, normal_data(20, 3), epochs=1, precision=torch.float64)
    assert {p.dtype for p in result.parameters.values()} == {torch.float64}
    programs = fit(local_model, local_guide, [0.5, 1.5], epochs=1, precision=torch.float64)
    assert {p.dtype for p in programs.parameters.values()} == {torch.float64}
    assert torch.get_default_dtype() == torch.float32


# --- isolation and repetition --------------------------------------------------------------------


def test_the_same_seed_repeats_a_fit_bit_for_bit_and_another_does_not() -> None:
    x = normal_data(30)
    one, two = (fit(local_model, local_guide, x, epochs=3, batch_size=7) for _ in range(2))
    assert same(one, two)
    assert [e.elbo for e in one.history] == [e.elbo for e in two.history]
    assert not same(one, fit(local_model, local_guide, x, epochs=3, batch_size=7, seed=1))


def test_a_drawn_seed_comes_from_the_global_generator_and_repeats_the_fit() -> None:
    x = normal_data(30)
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        one = fit(local_model, local_guide, x, epochs=2, seed=None)
        torch.manual_seed(3)
        two = fit(local_model, local_guide, x, epochs=2, seed=None)
        three = fit(local_model, local_guide, x, epochs=2, seed=None)
    assert one.seed == two.seed != three.seed
    assert same(one, fit(local_model, local_guide, x, epochs=2, seed=one.seed))


def test_global_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    handler = signal.getsignal(signal.SIGINT)
    fit(local_model, local_guide, normal_data(30), epochs=2, validation=normal_data(5))
    assert torch.equal(before, torch.get_rng_state())
    assert not list(pyro.get_param_store().keys())
    assert signal.getsignal(signal.SIGINT) is handler


def test_validation_and_callbacks_that_draw_leave_training_alone() -> None:
    x, held_out = normal_data(30), normal_data(11, seed=1)

    def draw(event: EpochEnd) -> None:
        torch.randn(5)

    def jitter(x: Tensor) -> Tensor:
        return x + torch.randn(x.shape)

    options: dict[str, Any] = {"epochs": 4, "batch_size": 8, "transform": jitter}
    plain = fit(local_model, local_guide, x, **options)
    often = fit(local_model, local_guide, x, validation=held_out, **options)
    rarely = fit(local_model, local_guide, x, validation=Validation(held_out, every=3), **options)
    loader = DataLoader(TensorDataset(held_out), batch_size=4, shuffle=True)
    loaded = fit(local_model, local_guide, x, validation=loader, **options)
    called = fit(local_model, local_guide, x, callbacks=[draw], **options)
    assert all(same(plain, other) for other in (often, rarely, loaded, called))
    assert [e.validation is not None for e in rarely.history] == [False, False, True, False]


def test_two_fits_with_the_same_names_do_not_meet_and_a_cell_run_again_trains_afresh() -> None:
    low = fit(mean_model, no_guide, torch.full((5,), -1.0), epochs=200)
    high = fit(mean_model, no_guide, torch.full((5,), 1.0), epochs=1)
    assert value(low, "loc") == pytest.approx(-1.0, abs=0.02)
    assert value(high, "loc") == pytest.approx(0.05, abs=1e-4)  # one step of Adam from 0
    again = fit(mean_model, no_guide, torch.full((5,), 1.0), epochs=1)
    assert again.parameters["loc"] == high.parameters["loc"]
    assert again.history[0].elbo == high.history[0].elbo


def test_the_fitted_programs_work_outside() -> None:
    result = fit(mean_model, no_guide, torch.full((5,), 3.0), epochs=300)
    draws = torch.cat([pyro.poutine.uncondition(result.model)(torch.zeros(100)) for _ in range(20)])
    assert draws.mean().item() == pytest.approx(3.0, abs=5 / math.sqrt(2000))


# --- data ----------------------------------------------------------------------------------------


def test_kinds_of_data_give_the_same_fit() -> None:
    x = normal_data(20)
    kinds = [x, x.numpy(), x.tolist(), (x,), TensorDataset(x), x.double()]
    fits = [fit(mean_model, no_guide, kind, epochs=2, batch_size=6) for kind in kinds]
    assert all(same(fits[0], other) for other in fits[1:])
    assert fits[0].num_data == 20
    assert fits[0].steps == 8


def test_a_loader() -> None:
    x = normal_data(20)
    loader = DataLoader(TensorDataset(x), batch_size=6, shuffle=True)
    one, two = (fit(global_model, global_guide, loader, epochs=3) for _ in range(2))
    assert one.steps == 12
    assert one.num_data == 20
    assert same(one, two)


def test_labels_beside_the_data_are_refused_where_the_model_does_not_take_them() -> None:
    data = (normal_data(20, 3), torch.arange(20))
    with pytest.raises(DataError, match=r"2 tensor\(s\)"):
        fit(*network_pair(), data, epochs=1)
    with pytest.raises(DataError, match=r"2 tensor\(s\)"):
        fit(mean_model, no_guide, data, epochs=1)


def test_num_data_goes_to_both_programs() -> None:
    seen = []

    def model(x: Tensor, num_data: int) -> None:
        seen.append(num_data)
        global_model(x, num_data)

    fit(pyro.poutine.scale(model, 1.0), global_guide, normal_data(20), epochs=1, batch_size=8)
    assert set(seen) == {20}
    with pytest.raises(OptionError, match="add num_data=None to the guide"):
        fit(model, lambda x: None, normal_data(20), epochs=1)


def test_unscaled_global_latents_are_refused_in_minibatches() -> None:
    def model(x: Tensor) -> None:
        global_model(x)

    with pytest.raises(OptionError, match="num_data"):
        fit(model, global_guide, normal_data(20), epochs=1, batch_size=8)
    fit(model, global_guide, normal_data(20), epochs=1, batch_size=None)


def test_the_models_own_check_is_asked_about_all_data_before_any_step() -> None:
    class Picky(Decoder):
        def check(self, x: Tensor) -> None:
            if bool((x > 90).any()):
                raise SupportError("too large; divide by 100")

    x = normal_data(5000, 3)
    x[4999, 0] = 99.0
    model, (_, encoder) = Picky(), network_pair()
    with pytest.raises(SupportError, match="divide"):
        fit(model, encoder, x, epochs=1)
    with pytest.raises(SupportError, match="divide"):
        fit(model, encoder, x[:10], epochs=1, validation=x)
    fit(model, encoder, x, epochs=1, batch_size=None, transform=lambda x: x / 100)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"precision": torch.bfloat16}, "float32 or torch.float64"),
        ({"device": "cuda:99"}, "CUDA devices"),
        ({"device": "nowhere"}, "give 'cpu'"),
        ({"device": "meta"}, "run on 'cpu' and 'cuda'"),
        ({"early_stopping": EarlyStopping(2)}, "held-out"),
        ({"resume": True}, "checkpoint"),
        ({"optimizer": lambda parameters: None}, "torch.optim.Optimizer"),
        ({"objective": pyro.infer.Trace_ELBO()}, "objective"),
    ],
)
def test_options_that_cannot_work(options: dict[str, Any], words: str) -> None:
    from tests.unchecked import unchecked

    with unchecked(), pytest.raises(OptionError, match=words):
        fit(mean_model, no_guide, normal_data(5), **{"epochs": 1, **options})


# --- validation, stopping, callbacks -------------------------------------------------------------


def test_the_held_out_bound_counts_every_datum_once() -> None:
    # 1500 data are two batches of unequal size; without latents the bound is exact.
    held_out = normal_data(1500, seed=5)
    still = functools.partial(torch.optim.SGD, lr=0.0)
    x = normal_data(2000)
    result = fit(mean_model, no_guide, x, epochs=1, optimizer=still, validation=held_out)
    exact = float(dist.Normal(0.0, 1.0).log_prob(held_out).mean())
    assert result.validation == pytest.approx(exact, rel=1e-6)


def test_modules_are_in_evaluation_mode_while_validated_and_in_their_own_after() -> None:
    decoder, encoder = network_pair()
    encoder.centre.eval()
    modes = []
    decoder.net[2].register_forward_hook(lambda module, *_: modes.append(module.training))
    fit(decoder, encoder, normal_data(8, 3), epochs=1, validation=normal_data(8, 3))
    assert {True, False} == set(modes)
    assert modes[-1] is False
    assert decoder.net[2].training
    assert not encoder.centre.training


def test_early_stopping_goes_back_to_the_best() -> None:
    # The optimum on the training data is 3, on the held-out data 1: the bound rises, then falls.
    slow = functools.partial(torch.optim.SGD, lr=0.05)
    states = {}

    def remember(event: EpochEnd) -> None:
        states[event.record.step] = float(event.step.parameters()["loc"].detach())

    result = fit(
        mean_model,
        no_guide,
        torch.full((10,), 3.0),
        epochs=100,
        optimizer=slow,
        validation=torch.full((4,), 1.0),
        early_stopping=EarlyStopping(patience=4),
        callbacks=[remember],
    )
    values = [e.validation for e in result.history]
    best = int(np.argmax(np.array(values, dtype=float)))
    assert result.stop_reason is StopReason.EARLY_STOPPING
    assert result.best_step == best + 1
    assert result.best_validation == values[best]
    assert len(values) == best + 1 + 4
    assert float(result.parameters["loc"]) == states[best + 1]
    assert result.restored_best


def test_early_stopping_wants_more_than_min_delta() -> None:
    slow = functools.partial(torch.optim.SGD, lr=1e-4)
    result = fit(
        mean_model,
        no_guide,
        torch.full((10,), 3.0),
        epochs=50,
        optimizer=slow,
        validation=torch.full((10,), 3.0),
        early_stopping=EarlyStopping(patience=3, min_delta=0.5),
    )
    assert result.steps == 4
    assert result.best_step == 4  # it did improve, if by little


def test_a_callback_can_stop_the_fit() -> None:
    def stop(event: EpochEnd) -> None:
        if event.record.epoch == 3:
            raise StopFit("enough")

    result = fit(mean_model, no_guide, normal_data(5), epochs=10, callbacks=[stop])
    assert (result.stop_reason, result.stop_message) == (StopReason.CALLBACK, "enough")
    assert len(result.history) == 3


def test_the_first_ctrl_c_returns_the_fit_so_far() -> None:
    steps = []

    def model(x: Tensor) -> None:
        steps.append(len(x))
        if len(steps) == 20:
            signal.raise_signal(signal.SIGINT)  # in the middle of a step
        mean_model(x)

    result = fit(model, no_guide, normal_data(30), epochs=50, batch_size=10)
    assert result.stop_reason is StopReason.INTERRUPTED
    assert 0 < result.steps < 20
    plain = fit(mean_model, no_guide, normal_data(30), epochs=50, batch_size=10)
    assert result.history[0].elbo == plain.history[0].elbo
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_raises() -> None:
    def impatient(event: EpochEnd) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(mean_model, no_guide, normal_data(5), epochs=3, callbacks=[impatient])


def test_a_handler_of_the_users_own_is_kept() -> None:
    heard = []
    before = signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    try:

        def press(event: EpochEnd) -> None:
            signal.raise_signal(signal.SIGINT)

        result = fit(mean_model, no_guide, normal_data(5), epochs=2, callbacks=[press])
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.stop_reason is StopReason.EPOCHS
    assert len(heard) == 2


# --- the compiled step ---------------------------------------------------------------------------


def test_whether_to_compile_depends_on_the_number_of_steps_alone() -> None:
    def decided(epochs: int, compiled: bool | None) -> tuple[bool, bool]:
        decisions = []

        def look(event: EpochEnd) -> None:
            decisions.append(event.step.compiled)
            raise StopFit

        result = fit(
            mean_model,
            no_guide,
            normal_data(10),
            epochs=epochs,
            batch_size=4,
            compiled=compiled,
            callbacks=[look],
            optimizer=functools.partial(torch.optim.SGD, lr=0.1),
        )
        return result.compiled, decisions[0]

    assert decided(3333, None) == (False, False)
    assert decided(3333, True) == (True, False)  # the last batch, of 2, is not worth a graph


@pytest.mark.filterwarnings("ignore")  # what the compiler says is not ours
def test_a_compiled_fit_reaches_the_exact_posterior_and_repeats() -> None:
    x = math.sqrt(2) * normal_data(100)
    options: dict[str, Any] = {
        "epochs": 250,
        "batch_size": 30,
        "schedule": Cosine(),
        "objective": ELBO(kl=MonteCarloKL()),
        "compiled": True,
    }
    one, two = (fit(local_model, local_guide, x, **options) for _ in range(2))
    assert one.fallback_reason is None
    assert one.compiled
    assert value(one, "slope") == pytest.approx(0.5, abs=0.02)
    assert value(one, "scale") == pytest.approx(math.sqrt(0.5), abs=0.02)
    assert same(one, two)


# --- the record ----------------------------------------------------------------------------------


@pytest.mark.parametrize("validation", [None, normal_data(5)], ids=["alone", "with held-out"])
@pytest.mark.parametrize("epochs", [1, 30])
def test_the_record_shows_itself(validation: Tensor | None, epochs: int) -> None:
    result = fit(mean_model, no_guide, normal_data(9), epochs=epochs, validation=validation)
    assert "nats per datum" in repr(result)
    assert ("held-out" in repr(result)) == (validation is not None)
    assert "data:image/png;base64," in result._repr_html_()
    bound, rate = result.plot().axes  # without latents, no panel for them
    (training,) = (line for line in bound.lines if line.get_label() == "training")
    assert np.size(training.get_xdata()) == epochs
    assert bound.get_ylabel() == "ELBO (nats per datum)"
    assert rate.get_xlabel() == "step"


def test_html_is_escaped() -> None:
    def stop(event: EpochEnd) -> None:
        raise StopFit("<b>&")

    result = fit(mean_model, no_guide, normal_data(9), epochs=2, callbacks=[stop])
    assert "&lt;b&gt;&amp;" in result._repr_html_()


def test_history_tells_each_epoch() -> None:
    result = fit(mean_model, no_guide, normal_data(10), epochs=3, batch_size=4)
    assert [(e.epoch, e.step) for e in result.history] == [(1, 3), (2, 6), (3, 9)]
    seconds = [e.seconds for e in result.history]
    assert seconds == sorted(seconds)
    assert seconds[-1] <= result.wall_time


def test_progress_writes_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    fit(mean_model, no_guide, normal_data(10), epochs=3, validation=normal_data(4))
    assert capsys.readouterr() == ("", "")
    fit(mean_model, no_guide, normal_data(10), epochs=3, validation=normal_data(4), progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "epoch 3/3, step 3/3: elbo -" in err
    assert "held-out -" in err
    assert "data/s" in err


def test_a_bar_in_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    fit(mean_model, no_guide, normal_data(10), epochs=3, batch_size=4, progress=True)
    err = capsys.readouterr().err
    assert "epoch 3/3: 100%" in err
    assert "9/9" in err
    assert "elbo -" in err


def test_methods_of_a_module_are_moved_with_it() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(()))

        def model(self, x: Tensor) -> None:
            loc = pyro.param("loc", self.loc)
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

        def guide(self, x: Tensor) -> None:
            pass

    pair = Pair()
    fit(pair.model, pair.guide, normal_data(5), epochs=1, precision=torch.float64)
    assert pair.loc.dtype == torch.float64
