"""A new image is made square as the training's images were, and boxes come back in its own pixels."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from convatlas.core.composing import compose_run, hydra_ready
from convatlas.tasks import new_task


class Net(nn.Module):
    """A net that answers with what a function says."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: torch.Tensor) -> Any:
        return self.answer(images)


def predicted(answer: Any, pixels: np.ndarray, card: Any, *overrides: str) -> dict[str, Any]:
    with hydra_ready():
        config = compose_run(["tracking=none", *overrides], {"variant": "test", "output_dir": "nowhere"})
    row, _ = new_task(Net(answer), config, list(card.classes), seed=0).predict(pixels, card)
    return row


def boxes_of(card: dict[str, Any]) -> list[list[float]]:
    """Return what is listed for an image of 100 x 200 pixels when a net finds the lower half of the 50 x 50 it sees."""
    shown = []

    def net(images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        shown.extend(image.shape for image in images)
        box = torch.tensor([[0.0, 25.0, 50.0, 50.0]])
        return [{"boxes": box, "labels": torch.tensor([1]), "scores": torch.tensor([0.9])}]

    fields = {"classes": ("background", "cell"), "fitted": None, "storage": "arrays", "image_shape": (3, 50, 50)} | card
    row = predicted(
        net,
        np.zeros((3, 100, 200), dtype=np.uint8),
        SimpleNamespace(**fields),
        "data=digit_scenes",
        "data.image_size=50",
        "model=retinanet_small",
    )
    assert shown == [(3, 50, 50)]
    return [each["box"] for each in row["objects"]]


@pytest.mark.parametrize(
    ("card", "box"),
    [
        ({}, [0.0, 50.0, 200.0, 100.0]),
        # 12 of 50 rows are black above, 13 below: the lower half of the square begins at row (25 - 12) * 4 of the image
        ({"fitted": "letterbox"}, [0.0, 52.0, 200.0, 100.0]),
        ({"fitted": "stretch"}, [0.0, 50.0, 200.0, 100.0]),
    ],
    ids=["one size", "letterbox", "stretch"],
)
def test_boxes_are_in_pixels_of_the_image_as_given(card, box):
    assert boxes_of(card) == [box]


def test_the_class_is_that_of_the_centre_where_the_training_saw_centres():
    pixels = np.zeros((1, 4, 8), dtype=np.uint8)
    pixels[:, :, 2:6] = 255
    seen = []

    def net(images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return torch.tensor([[0.0, 1.0]])

    card: Any = SimpleNamespace(
        classes=("a", "b"),
        fitted="centre",
        storage="arrays",
        image_shape=(1, 4, 4),
        normalisation=lambda _: ((0.0,), (1.0,)),
        has_canny=lambda _: False,
    )
    row = predicted(net, pixels, card, "data=digits", "data.image_size=4")
    assert row["prediction"] == "b"
    assert torch.equal(seen[0], torch.ones(1, 1, 4, 4))
