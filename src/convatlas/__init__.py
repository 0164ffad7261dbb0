"""convatlas: the convolutional architectures of a lecture course, trained and compared, each beside its paper."""

__version__ = "0.1.0"
