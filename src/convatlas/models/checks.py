"""What a user can get wrong about a net's numbers or an image's size, and the sentence that says what fits."""

from collections.abc import Iterable, Sequence

from torch import Tensor


def blocks_for_depth(depth: int, step: int, others: int) -> int:
    """Return the n >= 1 for which `depth` = `step` * n + `others`.

    Args:
        depth: layers with weights, as the papers count them.
        step: layers that one more block in every stage adds.
        others: layers outside the blocks.

    Raises:
        ValueError: there is no such n; the message names the nearest depths that fit.
    """
    blocks, rest = divmod(depth - others, step)
    if rest == 0 and blocks >= 1:
        return blocks
    if blocks < 1:
        remedy = f"the smallest that fits is {step + others}"
    else:
        below = step * blocks + others
        remedy = f"the nearest that fit are {below} and {below + step}"
    raise ValueError(f"model.depth={depth} is not {step}n+{others} for a whole n of at least 1; {remedy}.")


def require_choice(option: str, value: object, choices: Iterable[object]) -> None:
    """Raise a ValueError unless `value`, given as `model.<option>`, is one of `choices`."""
    known = list(choices)
    if value not in known:
        raise ValueError(f"model.{option}={value} is not known; choose one of {', '.join(map(str, known))}.")


def require_counts(option: str, values: Sequence[int], count: int) -> None:
    """Raise a ValueError unless `values`, given as `model.<option>`, are `count` numbers from 1."""
    if len(values) != count or min(values) < 1:
        raise ValueError(f"model.{option}={list(values)} must be {count} numbers, each at least 1.")


def require_exact_size(images: Tensor, image_size: int) -> None:
    """Raise ValueError unless `images` `(B, C, H, W)` are as large as the net was made for."""
    height, width = images.shape[-2:]
    if height != image_size or width != image_size:
        raise ValueError(
            f"model.image_size={image_size} does not fit images of {height}x{width} pixels: this net takes "
            f"{image_size}x{image_size} only. Set data.image_size={image_size}, or model.image_size={height}."
        )


def require_image_size(images: Tensor, minimum: int, net: str) -> None:
    """Raise a ValueError if `images: (B, C, H, W)` are lower or narrower than `minimum` pixels."""
    height, width = images.shape[-2:]
    if min(height, width) < minimum:
        raise ValueError(
            f"data.image_size: {net} takes images from {minimum}x{minimum} pixels; these have {height}x{width}. "
            f"Set data.image_size={minimum} or more: prepared images are resized."
        )


def require_object_classes(num_classes: int) -> None:
    """Raise a ValueError unless a detector has a class beside the background."""
    if num_classes < 2:
        raise ValueError(f"model.num_classes={num_classes} must be at least 2; the background counts as one.")


def require_positive(option: str, value: int) -> None:
    """Raise a ValueError unless `value`, given as `model.<option>`, is at least 1."""
    if value < 1:
        raise ValueError(f"model.{option}={value} must be at least 1.")


def require_above_zero(**options: float) -> None:
    """Raise a ValueError unless every option is above 0."""
    for option, value in options.items():
        if not value > 0:
            raise ValueError(f"model.{option}={value} must be above 0.")


def require_all_positive(**options: int) -> None:
    """Raise a ValueError unless every option is at least 1."""
    for option, value in options.items():
        require_positive(option, value)


def require_probability(option: str, value: float) -> None:
    """Raise a ValueError unless `value`, given as `model.<option>`, is a probability below 1."""
    if not 0 <= value < 1:
        raise ValueError(f"model.{option}={value} is a probability; choose from 0 up to, but not including, 1.")


def require_strides(strides: Sequence[int], count: int) -> None:
    """Raise a ValueError unless `model.strides` are `count` numbers, each 1 or 2."""
    if len(strides) != count or not set(strides) <= {1, 2}:
        raise ValueError(f"model.strides={list(strides)} must be {count} numbers, each 1 or 2.")


def require_width(width: float) -> None:
    """Raise ValueError unless the factor on the channels is positive."""
    if not width > 0:
        raise ValueError(f"model.width={width} must be above 0; 1 is the paper's width.")
