"""Small sets that come with scikit-learn: no files, no network."""

from typing import Any

from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine

from pyro_models.data.record import Data, from_array


def digits() -> Data:
    """Handwritten digits: 1797 pictures of 8 by 8 grey pixels.

    A pixel counts the ink in a block of 4 by 4, so that it takes the 17 values 0, 1, ..., 16; here
    they are divided by 16. For a Bernoulli likelihood binarise (``StaticBinarization``,
    ``DynamicBinarization``), for a density dequantise (``Dequantization(levels=17)``).

    Returns:
        ``x`` of shape ``(1797, 64)`` in [0, 1], labels 0 to 9, ``image_shape`` ``(1, 8, 8)``.

    References:
        Alpaydin and Kaynak (1998), Optical Recognition of Handwritten Digits,
        https://archive.ics.uci.edu/dataset/80

    Example:
        >>> digits()
        Data('digits', x=(1797, 64) float32, labels=10 classes, image_shape=(1, 8, 8))
    """
    bunch = load_digits()
    return from_array(
        bunch.data / 16,
        bunch.target,
        name="digits",
        image_shape=(1, 8, 8),
        feature_names=[*map(str, bunch.feature_names)],
        label_names=[*map(str, bunch.target_names)],
    )


def iris() -> Data:
    """Irises: 150 flowers of three species, by length and width of sepal and petal in cm.

    References:
        Fisher (1936), The use of multiple measurements in taxonomic problems,
        https://doi.org/10.1111/j.1469-1809.1936.tb02137.x

    Example:
        >>> iris().label_names
        ('setosa', 'versicolor', 'virginica')
    """
    return _table(load_iris(), "iris")


def wine() -> Data:
    """Wines: 178 wines from three growers, by 13 chemical measurements, each in its own unit.

    The columns differ in scale by a factor of a thousand: standardise them (``Standardization``).

    References:
        Aeberhard and Forina (1992), Wine, https://archive.ics.uci.edu/dataset/109

    Example:
        >>> wine()
        Data('wine', x=(178, 13) float32, labels=3 classes)
    """
    return _table(load_wine(), "wine")


def breast_cancer() -> Data:
    """Breast tumours: 569 of two kinds, by 30 measurements of cell nuclei in pixels.

    The columns differ in scale by a factor of 100,000: standardise them (``Standardization``).

    References:
        Wolberg, Mangasarian, Street and Street (1995), Breast Cancer Wisconsin (Diagnostic),
        https://archive.ics.uci.edu/dataset/17

    Example:
        >>> breast_cancer().label_names
        ('malignant', 'benign')
    """
    return _table(load_breast_cancer(), "breast_cancer")


def _table(bunch: Any, name: str) -> Data:
    return from_array(
        bunch.data,
        bunch.target,
        name=name,
        feature_names=[*map(str, bunch.feature_names)],
        label_names=[*map(str, bunch.target_names)],
    )
