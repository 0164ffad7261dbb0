"""Small detectors learn eight scenes by heart: nothing between images, targets, losses and boxes is broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose
from omegaconf import OmegaConf
from torchmetrics.detection import MeanAveragePrecision

from convatlas.core.composing import hydra_ready
from convatlas.data.sources.digit_scenes import load
from convatlas.models.build import build_model

IMAGES = 8
STEPS = 150


def eight_scenes() -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Return images in [0, 1] and their targets."""
    scenes = load(Path(), scenes=25, image_size=96)
    assert scenes.boxes is not None
    assert scenes.box_labels is not None
    images = [torch.from_numpy(image).float() / 255 for image in scenes.images[:IMAGES]]
    targets = [
        {"boxes": torch.from_numpy(boxes), "labels": torch.from_numpy(labels)}
        for boxes, labels in zip(scenes.boxes[:IMAGES], scenes.box_labels[:IMAGES], strict=True)
    ]
    return images, targets


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "thundernet_small",
        "mobilenet_v1_ssdlite_small",
        "mobilenet_v2_ssdlite_small",
        "mobilenet_v3_ssdlite_small",
    ],
)
def test_a_small_detector_learns_eight_images_by_heart(name: str) -> None:
    torch.manual_seed(0)
    with hydra_ready():
        config: Any = OmegaConf.to_container(compose("profile", [f"model={name}"]).model, resolve=True)
    net = build_model(config).train()
    images, targets = eight_scenes()
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS, pct_start=0.1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        sum(net(images, targets).values()).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        optimizer.step()
        schedule.step()
    metric = MeanAveragePrecision(backend="faster_coco_eval")
    with torch.no_grad():
        metric.update(net.eval()(images), targets)
    assert metric.compute()["map_50"] >= 0.95
