"""What torchvision's detectors do to images before the net: here, normalise them and nothing else."""

from collections.abc import Sequence

from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform


class FixedSizeTransform(GeneralizedRCNNTransform):
    """Takes square images of one size, `(C, image_size, image_size)` in [0, 1], to [-1, 1].

    In training other sizes are taken as well, for training at several scales; a batch has one.

    torchvision's own transform rescales any image to the size the net was made for. Resizing belongs to the data here,
    where the user sees it, so another size or another number of channels is an error.

    Args:
        size_divisible: pad with zeros to a multiple of this, at the right and at the bottom.
    """

    def __init__(self, image_size: int, in_channels: int, size_divisible: int) -> None:
        half = [0.5] * in_channels
        super().__init__(image_size, image_size, half, half, size_divisible=size_divisible)
        self.expected_shape = (in_channels, image_size, image_size)

    def forward(self, images: Sequence[Tensor], targets: list[dict[str, Tensor]] | None = None) -> tuple:
        """Normalise and stack; see torchvision's transform for what is returned.

        Raises:
            ValueError: an image has another shape than the net was made for.
        """
        for image in images:
            same_size = tuple(image.shape) == self.expected_shape
            square = len(image) == self.expected_shape[0] and image.shape[1] == image.shape[2]
            if not same_size and not (self.training and square):
                channels, height, width = image.shape
                raise ValueError(
                    f"model.image_size={self.expected_shape[1]} and model.in_channels={self.expected_shape[0]}, but an "
                    f"image has {channels} x {height} x {width}; set them to the data's image_size and in_channels."
                )
        return super().forward(list(images), targets)

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Leave the image as it is: its size was checked."""
        return image, target
