"""What a model makes, set beside data: samples, reconstructions, walks through latent space."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from pyro_models.errors import DataError
from pyro_models.picture import Picture
from pyro_models.plots import images, tables
from pyro_models.plots.canvas import feature_names, table


def samples(
    x: Float[Tensor, "n data_dim"],
    data: Float[Tensor, "m _"],
    *,
    image_shape: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    title: str = "Samples from the model",
) -> Picture:
    """Draw samples beside data: two grids of images, or their distributions feature by feature.

    Args:
        x: What the model made.
        data: Data to compare with.
        image_shape: ``(height, width)`` or ``(channels, height, width)``; None for a table.
        names: Names of a table's columns.
        title: What ``x`` is.

    Raises:
        DataError: If ``x`` and ``data`` differ in width, or do not fit ``image_shape``.
        OptionError: If ``image_shape`` is no image's, or there is not one name a feature.

    Example:
        >>> import torch
        >>> picture = samples(torch.rand(9, 4), torch.rand(9, 4), image_shape=(2, 2))
        >>> [axes.get_title() for axes in picture.axes]
        ['data', 'samples']
    """
    drawn, real = table(x, "x"), table(data, "data")
    if drawn.shape[1] != real.shape[1]:
        raise DataError(
            f"samples have {drawn.shape[1]} features and data {real.shape[1]}; "
            "give both in the same space"
        )
    if image_shape is not None:
        return images.samples(drawn, real, image_shape, title)
    return tables.samples(drawn, real, feature_names(names, real.shape[1]), title)


def reconstructions(
    x: Float[Tensor, "n data_dim"],
    reconstruction: Float[Tensor, "_ _"],
    *,
    image_shape: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
) -> Picture:
    """Draw data beside what the pair makes of them.

    Images stand in pairs of rows, each original above its reconstruction. For a table, each
    panel sets a column's reconstructed values against the original ones; on the line they agree.

    Args:
        x: Data.
        reconstruction: Their reconstructions, in the same order.
        image_shape: ``(height, width)`` or ``(channels, height, width)``; None for a table.
        names: Names of a table's columns.

    Raises:
        DataError: If the two differ in shape, or do not fit ``image_shape``.
        OptionError: If ``image_shape`` is no image's, or there is not one name a feature.

    Example:
        >>> import torch
        >>> x = torch.rand(20, 2)
        >>> [axes.get_title() for axes in reconstructions(x, x).axes]
        ['feature 1: R² = 1.00', 'feature 2: R² = 1.00']
    """
    real, made = table(x, "x"), table(reconstruction, "reconstruction")
    if real.shape != made.shape:
        raise DataError(
            f"x has shape {real.shape} and its reconstruction {made.shape}; give one "
            "reconstruction for each datum"
        )
    if image_shape is not None:
        return images.reconstructions(real, made, image_shape)
    return tables.reconstructions(real, made, feature_names(names, real.shape[1]))


def traversal(
    path: Float[Tensor, "..."],
    data: Float[Tensor, "rows data_dim"],
    *,
    image_shape: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
) -> Picture:
    r"""Draw walks from the prior to the posterior.

    A row starts at a draw :math:`z_0 \sim p(z)`, ends at the posterior mean :math:`z_1` of a
    datum, and shows what is decoded along :math:`z_t = (1 - t) z_0 + t z_1`.

    Args:
        path: What was decoded, ``(rows, steps, data_dim)``, for values of :math:`t` evenly from
            0 to 1.
        data: The datum at the end of each row.
        image_shape: ``(height, width)`` or ``(channels, height, width)``; None for a table.
        names: Names of a table's columns.

    Raises:
        DataError: If there is not one datum a row, fewer than two steps, or they do not fit
            ``image_shape``.
        OptionError: If ``image_shape`` is no image's, or there is not one name a feature.

    Example:
        >>> import torch
        >>> picture = traversal(torch.rand(3, 5, 4), torch.rand(3, 4), image_shape=(2, 2))
        >>> [text.get_text() for text in picture.axes[0].get_xticklabels()]
        ['prior draw', 'posterior mean', 'datum']
    """
    if path.ndim != 3 or path.shape[1] < 2 or path[:, 0].shape != data.shape:
        raise DataError(
            "a traversal has shape (rows, steps >= 2, data_dim) and its data (rows, data_dim); "
            f"got {tuple(path.shape)} and {tuple(data.shape)}"
        )
    real = table(data, "data")
    walk = table(path, "path").reshape(*path.shape)
    if image_shape is not None:
        return images.traversal(walk, real, image_shape)
    return tables.traversal(walk, real, feature_names(names, real.shape[1]))
