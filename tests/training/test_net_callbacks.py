"""What a net offers beside `forward` reaches the training, its files and the test."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch

from convatlas.training.run import train

QUICK = ("recipe.epochs=1", "recipe.batch_size=32", "trainer.limit_batches=4")


def trained(compose, *options: str):
    """Train a few batches; returns the metrics and the history."""
    (folder,) = train(compose(*QUICK, *options), strict=True)
    return json.loads((folder / "metrics.json").read_text()), pd.read_csv(folder / "history.csv")


def test_the_columns_of_a_fractalnet_are_tested_alone_and_its_paths_are_logged(compose):
    options = ("model=fractalnet_small", "model.columns=2", "model.widths=[4,4,8]", "model.drop_path=mixed")
    metrics, history = trained(compose, *options)
    assert list(metrics["parts"]) == ["column_1", "column_2"]
    assert all(set(tested) == set(metrics["test"]) for tested in metrics["parts"].values())
    assert 0 < history["net/convolutions_computed"][0] <= 1


def test_a_net_without_parts_has_none(compose):
    metrics, history = trained(compose)
    assert metrics["parts"] == {}
    assert not [name for name in history.columns if name.startswith(("net/", "gradient/"))]


def test_the_share_of_active_blocks_is_logged(compose):
    _, history = trained(compose, "model=stochastic_depth_resnet_small", "model.depth=14", "model.width=4")
    share = history["net/active_blocks"][0]
    assert share * 4 * 6 == pytest.approx(round(share * 4 * 6))  # 4 batches of 6 blocks
    assert 0 < share < 1


def test_the_rate_of_scheduled_drop_path_is_logged(compose):
    _, history = trained(compose, "model=nasnet_small", "model.drop_path_rate=0.4")
    assert 0 < history["net/drop_path_rate"][0] < 0.4


def test_the_stage_of_freeze_drop_path_is_logged(compose):
    options = ("model=fractal_of_fractalnet_small", "model.training=freeze_drop_path", "model.columns=1")
    metrics, history = trained(compose, *options, "model.freeze_schedule=deterministic", "model.freeze_cycle=4")
    assert history["net/stage"][0] == 0.75  # of 4 steps one in five parts for branch 0: the first
    assert list(metrics["parts"]) == ["branch_0"]


def test_the_decay_of_generated_kernels_is_part_of_the_loss(compose):
    _, history = trained(compose, "model=hyper_wide_resnet_small", "model.depth=10")
    assert history["train/kernel_decay"][0] > 0
    assert history["train/loss"][0] > history["train/kernel_decay"][0]


def test_the_gradients_of_all_layers_are_logged_on_request(compose):
    _, history = trained(compose, "model=resnet_cifar", "model.depth=8", "model.width=4", "recipe.gradient_norms=true")
    norms = history[[name for name in history.columns if name.startswith("gradient/")]]
    assert norms.shape == (1, 8)
    assert torch.isfinite(torch.tensor(norms.to_numpy())).all()
    assert (norms > 0).all(axis=None)


def test_every_test_image_is_rebuilt_from_an_invertible_nets_features(compose):
    metrics, _ = trained(compose, "model=irevnet_small", "model.blocks=[1,1,1]")
    assert 0 < metrics["test"]["reconstruction_error"] < 1e-3
