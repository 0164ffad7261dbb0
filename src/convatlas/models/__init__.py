"""Nets: plain `torch.nn.Module`s with typed keyword arguments; they know nothing of Lightning, Hydra, DVC or MLflow.

Every net takes `num_classes` and `in_channels`, the channels of its images. It raises a ValueError, which names the
values that fit, where an argument is outside its range, and in a call where it cannot take images of that size. A
classifier's `forward` returns logits, `(B, C, H, W) -> (B, num_classes)`; `forward_features` returns the last maps
before them. `width` multiplies the channels of all layers, 1 is the paper's; `dropout` is the probability of setting a
feature in front of the last layer to zero, where nothing else is said; `image_size` is the side of square images in
pixels. A detector's takes and returns what torchvision's do, see `convatlas.models.detection`. Docstrings do not
repeat this.
"""
