"""What a user may have in a package of their own: `tests/test_seam.py` names it in configurations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from timm.loss import LabelSmoothingCrossEntropy
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Metric

from convatlas.data.raw import RawDataset
from convatlas.tasks.classification import ClassificationTask


class Net(nn.Module):
    """One hidden layer."""

    def __init__(self, num_classes: int, in_channels: int, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.LazyLinear(width) if in_channels == 0 else nn.Linear(in_channels * 1024, width), nn.ReLU()
        )
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layers(images))


class Seen(pl.Callback):
    """Writes what it saw of every training step: optimiser, learning rate, loss and what timm's loss would be."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.steps: list[dict[str, Any]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        optimizer = trainer.optimizers[0]
        images = batch["images"] if isinstance(batch, dict) else batch[0]
        labels = batch["labels"] if isinstance(batch, dict) else batch[1]
        step = {
            "optimizer": f"{type(optimizer).__module__.partition('.')[0]} {type(optimizer).__name__}",
            "lr": optimizer.param_groups[0]["lr"],
            "images": float(images.float().sum()),
        }
        if hasattr(pl_module, "net"):
            step["net"] = type(pl_module.net).__name__
            with torch.no_grad():
                step["smoothed"] = float(LabelSmoothingCrossEntropy(0.3)(pl_module.net(images), labels))
        self.steps.append(step)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.steps[-1]["loss"] = float(outputs["loss"])

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        Path(self.path).write_text(json.dumps(self.steps))


class Raises(pl.Callback):
    """Raises in the hook of this name."""

    def __init__(self, hook: str) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise KeyError("what they looked up")

        self.fail = fail
        self.hook = hook

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._at("setup")

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._at("on_train_start")

    def on_train_batch_end(self, *_: Any) -> None:
        self._at("on_train_batch_end")

    def _at(self, hook: str) -> None:
        if hook == self.hook:
            self.fail()


class Images(Metric):
    """The number of images, of which more is neither better nor worse."""

    higher_is_better = None

    def __init__(self) -> None:
        super().__init__()
        self.add_state("images", torch.tensor(0.0))

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        self.images += len(targets)

    def compute(self) -> Tensor:
        return self.images


class LitModel(pl.LightningModule):
    """Lightning's own example, about."""

    def __init__(self, width: int = 16, lr: float = 0.01, fails: bool = False) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(1024, width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 10)
        )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.hparams["fails"] and self.current_epoch == 1:
            raise RuntimeError("their mistake")
        images, labels = batch
        loss = functional.cross_entropy(self.body(images), labels)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: Any, name: str) -> None:
        images, labels = batch
        logits = self.body(images)
        self.log(f"{name}_loss", functional.cross_entropy(logits, labels))
        self.log(f"{name}_accuracy", (logits.argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.hparams["lr"])


class NoTest(LitModel):
    """A module that cannot be tested."""

    test_step = pl.LightningModule.test_step


class LitData(pl.LightningDataModule):
    """Images with a bright row, whose number is the class."""

    classes = tuple("abcdefghij")

    def __init__(self, images: int = 96, batch_size: int = 16) -> None:
        super().__init__()
        self.images = images
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        labels = torch.arange(self.images) % 10
        images = 0.1 * torch.randn(self.images, 1, 32, 32, generator=torch.Generator().manual_seed(0))
        images[torch.arange(self.images), 0, labels] = 1
        self.data = TensorDataset(images, labels)

    def train_dataloader(self) -> Any:
        return DataLoader(self.data, self.batch_size, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.data, self.batch_size)

    def test_dataloader(self) -> Any:
        return DataLoader(self.data, self.batch_size)


class MarginTask(ClassificationTask):
    """Classification whose loss counts twice."""

    def losses(self, batch: Any) -> dict[str, Tensor]:
        terms = super().losses(batch)
        return {"loss": 2 * terms["loss"]}


def load_stripes(root: Path) -> RawDataset:
    """Make images with a bright row, whose number is the class."""
    labels = np.arange(400) % 10
    images = np.random.default_rng(0).integers(0, 50, (400, 1, 10, 10)).astype(np.uint8)
    images[np.arange(400), 0, labels] = 255
    return RawDataset(
        images, [str(n) for n in range(10)], "Stripes", "made", "free", made=True, labels=labels.astype(np.int64)
    )
