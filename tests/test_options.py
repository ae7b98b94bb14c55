from typing import Any

import pytest

from pyro_models.errors import OptionError
from pyro_models.options import positive_float, positive_int, widths


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "3", None])
def test_what_is_no_count_is_refused(value: Any) -> None:
    with pytest.raises(OptionError, match="latent_dim="):
        positive_int("latent_dim", value)


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), True, "3", None])
def test_what_is_no_positive_number_is_refused(value: Any) -> None:
    with pytest.raises(OptionError, match="scale="):
        positive_float("scale", value)


@pytest.mark.parametrize("values", [(0,), (3, 2.5), 200, "200"])
def test_what_is_no_sequence_of_widths_is_refused(values: Any) -> None:
    with pytest.raises(OptionError, match="hidden"):
        widths("hidden", values)


def test_good_values_pass() -> None:
    assert positive_int("n", 3) == 3
    assert positive_float("s", 2) == 2.0
    assert widths("hidden", []) == ()
