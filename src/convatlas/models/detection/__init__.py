"""Detectors, which follow torchvision's convention.

In training `net(images, targets)` returns losses by name; in evaluation `net(images)` returns boxes, scores and labels
of each image, the top-scoring first. Images are a list, or a batch, of tensors `(in_channels, image_size, image_size)`
in [0, 1], which are not rescaled; targets hold boxes `(n, 4)` as `x1, y1, x2, y2` in pixels and labels `(n,)` from 1,
and an image may have no object. `num_classes` counts the background, class 0.
"""
