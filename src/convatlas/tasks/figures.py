"""Pictures of predictions, drawn with matplotlib: they go to MLflow and into the report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray
from torch import Tensor, nn


def confusion_matrix(labels: Iterable[int], predictions: Iterable[int], classes: Sequence[str]) -> Figure:
    """Draw how often each class (rows) was taken for each class (columns), as a share of its images."""
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(counts, (np.asarray(list(labels)), np.asarray(list(predictions))), 1)
    share = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    side = min(14.0, 2.5 + 0.45 * len(classes))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    ticks, names = np.arange(len(classes)), [name if len(name) <= 40 else f"{name[:39]}…" for name in classes]
    axes.set_xticks(ticks, names, rotation=90 if max(map(len, names)) > 3 else 0)
    axes.set_yticks(ticks, names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(classes) <= 30:
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=8)
    return figure


def labelled_images(images: Tensor, titles: Sequence[str], right: Sequence[bool]) -> Figure:
    """Draw images `(N, C, H, W)` under a title each, green where right and red where wrong."""
    figure, axes = grid(len(titles))
    for axis, image, title, good in zip(axes, images, titles, right, strict=False):
        axis.imshow(displayable(image), cmap="gray")
        set_title(axis, title, color="#1a7f37" if good else "#cf222e")
    return figure


def mosaic(images: Tensor, columns: int = 8, side: float = 1.0) -> Figure:
    """Draw images `(N, C, H, W)` as one picture, each scaled to [0, 1] for itself."""
    from torchvision.utils import make_grid

    whole = make_grid(images.detach().float().cpu(), nrow=columns, padding=1, normalize=True, scale_each=True)
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(side * min(columns, len(images)), side * rows), layout="constrained")
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.imshow(whole.permute(1, 2, 0).numpy(), interpolation="nearest")
    return figure


def first_filters(net: nn.Module, at_most: int = 64) -> Tensor | None:
    """Return the kernels of a net's first layer that sees the image, `(N, C, k, k)`, of which a picture can be made.

    None where that is no convolution of 1 or 3 channels with kernels of 3 pixels or more.
    """
    first = next((module for module in net.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None or first.in_channels not in (1, 3) or first.groups > 1 or min(first.kernel_size) < 3:
        return None
    return first.weight[:at_most]


def grid(count: int, columns: int = 8, side: float = 1.3) -> tuple[Figure, list[Axes]]:
    """Make a figure of `count` square pictures without axes."""
    columns = min(columns, max(1, count))
    rows = max(1, -(-count // columns))
    figure = Figure(figsize=(columns * side, rows * (side + 0.25)), layout="constrained")
    axes = [figure.add_subplot(rows, columns, n + 1) for n in range(rows * columns)]
    for axis in axes:
        axis.set_axis_off()
    return figure, axes[:count]


def set_title(axis: Axes, title: str, **options: Any) -> None:
    """Set a title at its place: to look for one above ticks that are not there takes half of a figure's time."""
    axis.set_title(title, fontsize=9, y=1.0, **options)


def displayable(image: Tensor) -> NDArray[np.float32]:
    """Scale one image `(C, H, W)` to [0, 1] and put it in matplotlib's order; one channel becomes gray."""
    array: NDArray[np.float32] = image.detach().float().cpu().numpy()
    low, high = float(array.min()), float(array.max())
    array = (array - low) / (high - low) if high > low else np.zeros_like(array)
    return array[0] if array.shape[0] != 3 else array.transpose(1, 2, 0)


# ---- detection ------------------------------------------------------------------------------------------------------

Boxes = tuple[NDArray[np.float32], Sequence[str]]
"""Boxes `(n, 4)` as `x1, y1, x2, y2` in pixels, and what is written at each."""


class Judged(NamedTuple):
    """What is drawn of an image: its objects and its detections, each of these right or wrong, each of those missed."""

    true: Boxes
    found: Boxes
    right: Sequence[bool]
    missed: Sequence[bool]


def boxed_images(images: Tensor, judged: Sequence[Judged], at_most: int = 8) -> Figure:
    """Draw images `(N, C, H, W)` twice: above with the true boxes, below with right, wrong and missed ones."""
    shown = min(at_most, len(images))
    columns = min(4, shown)
    figure = Figure(figsize=(2.6 * columns, 5.4 * -(-shown // columns) + 0.3), layout="constrained")
    axes = figure.subplots(2 * -(-shown // columns), columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for number in range(shown):
        above, below = (axes[2 * (number // columns) + row, number % columns] for row in (0, 1))
        for axis, title in ((above, "true"), (below, "found")):
            axis.imshow(displayable(images[number]), cmap="gray")
            set_title(axis, title)
        boxes, names = judged[number].true
        _draw(above, boxes, names, ["#0969da"] * len(names))
        _draw(below, *judged[number].found, ["#1a7f37" if hit else "#cf222e" for hit in judged[number].right])
        left = [place for place, miss in enumerate(judged[number].missed) if miss]
        _draw(below, boxes[left], [names[place] for place in left], ["#bf8700"] * len(left), style="--")
    kinds = {"#1a7f37": "right", "#cf222e": "wrong", "#bf8700": "missed"}
    handles = [Patch(color=colour, label=name) for colour, name in kinds.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    return figure


def _draw(
    axis: Axes, boxes: NDArray[np.float32], names: Sequence[str], colours: Sequence[str], style: str = "-"
) -> None:
    for (x1, y1, x2, y2), name, colour in zip(boxes, names, colours, strict=True):
        # imshow puts the middle of the first pixel at 0, a box its left edge
        place, size = (x1 - 0.5, y1 - 0.5), (x2 - x1, y2 - y1)
        axis.add_patch(Rectangle(place, *size, fill=False, edgecolor=colour, linestyle=style, linewidth=1.4))
        under = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6}
        axis.text(x1, y1 - 1, name, color=colour, fontsize=7, va="bottom", clip_on=True, bbox=under)


Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Precision and recall, `(n,)` each."""


def precision_recall(pooled: Curve, by_class: Mapping[str, Curve], title: str) -> Figure:
    """Draw precision over recall, one point for each number of detections that are taken.

    The curve of all classes pooled is black. Up to ten classes have a colour each and stand in a legend beside; more
    are thin and grey, as no one could tell so many colours apart.
    """
    figure = Figure(figsize=(5.6, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(pooled[1], pooled[0], color="black", linewidth=2, zorder=3, label="all pooled")
    few = len(by_class) <= 10
    colours = colormaps["tab10"](np.arange(10))
    for number, (name, (precision, recall)) in enumerate(by_class.items()):
        if few:
            axes.plot(recall, precision, color=colours[number], linewidth=1.2, label=name)
        else:
            label = f"each of {len(by_class)} classes" if number == 0 else None
            axes.plot(recall, precision, color="#8c959f", linewidth=0.7, alpha=0.7, label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision", title=title)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


# ---- segmentation ---------------------------------------------------------------------------------------------------


def masked_images(images: Tensor, true: Tensor, predicted: Tensor, classes: Sequence[str], at_most: int = 8) -> Figure:
    """Draw images `(N, C, H, W)` three times: alone, and under the true and the predicted classes, `(N, H, W)` each."""
    shown = min(at_most, len(images))
    figure, axes = grid(3 * shown, columns=shown, side=1.6)
    colours = colormaps["tab10"](np.arange(len(classes) - 1) % 10)
    for number in range(shown):
        for row, (mask, title) in enumerate(((None, "image"), (true, "true"), (predicted, "predicted"))):
            axis = axes[row * shown + number]
            axis.imshow(displayable(images[number]), cmap="gray")
            set_title(axis, title)
            if mask is not None:
                axis.imshow(overlay(mask[number].cpu().numpy(), colours))
    handles = [Patch(color=colour, label=name) for colour, name in zip(colours, classes[1:], strict=True)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)
    return figure


def picture_channels(images: Tensor) -> Tensor:
    """Return what can be shown of `(N, C, H, W)`: the first channel, or the first three as colours."""
    return images[:, : 3 if images.shape[1] >= 3 else 1]


def inspected_images(
    images: Tensor, edges: tuple[Tensor, Tensor] | None, attention: Sequence[Tensor], at_most: int = 6
) -> Figure:
    """Draw images `(N, C, H, W)`, a column each, under what a net shows of them.

    Args:
        images: the images.
        edges: the true and the predicted edges of the classes, `(N, 1, H, W)` each, from 0 to 1.
        attention: maps `(N, 1, h, w)` from 0 to 1, the coarsest first; each is drawn over the whole image, in colours
            from 0, dark, to 1, bright.
        at_most: images that are drawn.
    """
    shown = min(at_most, len(images))
    rows: list[tuple[str, Tensor | None, str]] = [("image", None, "")]
    if edges is not None:
        rows += [("true edges", edges[0], "gray"), ("predicted edges", edges[1], "gray")]
    rows += [(f"attention {maps.shape[-2]} x {maps.shape[-1]}", maps, "magma") for maps in attention]
    figure, axes = grid(len(rows) * shown, columns=shown, side=1.6)
    height, width = images.shape[-2:]
    whole = (-0.5, width - 0.5, height - 0.5, -0.5)
    for row, (title, maps, colours) in enumerate(rows):
        for number in range(shown):
            axis = axes[row * shown + number]
            set_title(axis, title)
            axis.imshow(displayable(images[number]), cmap="gray", extent=whole)
            if maps is not None:
                values = maps[number, 0].detach().float().cpu().numpy()
                opacity = 0.55 if colours == "magma" else 1.0
                axis.imshow(values, cmap=colours, vmin=0, vmax=1, alpha=opacity, extent=whole)
    return figure


def overlay(mask: NDArray[np.int64], colours: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return `(H, W, 4)`: each class in its colour, half transparent, and the background (class 0) not at all."""
    painted = np.zeros((*mask.shape, 4))
    painted[mask > 0] = colours[mask[mask > 0] - 1]
    painted[mask > 0, 3] = 0.5
    return painted


def spreads(columns: Mapping[str, Iterable[float]], label: str) -> Figure:
    """Draw how the values of each column spread: a box from quartile to quartile, whiskers, and outliers as points."""
    figure = Figure(figsize=(1.5 + 1.2 * len(columns), 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.boxplot([list(values) for values in columns.values()], tick_labels=list(columns))
    axes.set_ylabel(label)
    axes.grid(axis="y", alpha=0.3)
    return figure
