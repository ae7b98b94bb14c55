"""The figure that all pictures are drawn on."""

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


class Picture(Figure):
    """A matplotlib figure that a notebook shows without pyplot or ``%matplotlib``.

    Example:
        >>> picture = Picture(figsize=(2, 2))
        >>> picture.png()[1:4]
        b'PNG'
    """

    def png(self, dpi: float | None = None) -> bytes:
        """The picture as a PNG file's content.

        Args:
            dpi: Dots an inch; by default the figure's own.
        """
        buffer = io.BytesIO()
        FigureCanvasAgg(self).print_figure(buffer, format="png", dpi=dpi or self.dpi)
        return buffer.getvalue()

    def _repr_png_(self) -> bytes:
        return self.png()
