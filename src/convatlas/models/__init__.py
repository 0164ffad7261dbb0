"""Nets: plain `torch.nn.Module`s with typed keyword arguments; they know nothing of Lightning, Hydra, DVC or MLflow.

Every net takes `num_classes` and `in_channels`, the channels of its images, and raises a ValueError, which names the
values that fit, where an argument is outside its range. Docstrings do not repeat this.
"""
