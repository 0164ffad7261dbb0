"""Nets: plain `torch.nn.Module`s with typed keyword arguments; they know nothing of Lightning, Hydra, DVC or MLflow."""
