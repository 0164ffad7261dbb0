"""The data module under a real Lightning trainer: what it is fed when it starts, and when it resumes."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from small_sets import augmentation, data_config, raw_classification, raw_detection, raw_segmentation

from convatlas.core.config import Recipe
from convatlas.core.errors import UserError
from convatlas.data.batches import EvaluationBatches
from convatlas.data.module import DataModule, batches_done
from convatlas.data.prepared import PreparedData
from convatlas.data.raw import RawDataset

Preparer = Callable[..., PreparedData]

EPOCHS, STEPS = 3, 4


def recipe(**parts: Any) -> Recipe:
    schedule = {"_target_": "convatlas.tasks.optimisation.constant"}
    return Recipe(
        epochs=EPOCHS,
        batch_size=8,
        evaluation_batch_size=5,
        optimizer={"_target_": "torch.optim.SGD", "lr": 0.01},
        decay_norms_and_biases=True,
        schedule=schedule,
        loss={"_target_": "convatlas.tasks.losses.CrossEntropy"},
        augmentation=augmentation(**parts),
        ema_decay=None,
        gradient_clip_norm=None,
        gradient_norms=False,
        early_stopping_patience=None,
        monitor=None,
    )


@pytest.fixture
def data(prepare_raw: Preparer, tmp_path: Path) -> Callable[..., DataModule]:
    raw = raw_classification(60)
    prepared = prepare_raw(raw)

    def build(workers: int = 0, limit_batches: int | None = None, seed: int = 0) -> DataModule:
        settings = recipe(crop_padding=2, horizontal_flip=True)
        config = data_config(raw, tmp_path)
        return DataModule(prepared, config, settings, workers=workers, limit_batches=limit_batches, seed=seed)

    return build


class Recorder(pl.LightningModule):
    """Learns one number and writes down what it is fed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.trained: list[tuple[int, int, bool, list[int], float]] = []
        self.validated: list[int] = []

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        last = self.trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        row = (self.current_epoch, batch_idx, last, batch["indices"].tolist(), float(batch["images"].sum()))
        self.trained.append(row)
        return (self.weight * batch["images"].mean()).sum()

    def validation_step(self, batch: dict[str, torch.Tensor]) -> None:
        self.validated += batch["indices"].tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # Asking for the number of steps makes Lightning build the loader before it restores a checkpoint.
        assert self.trainer.estimated_stepping_batches == EPOCHS * STEPS
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(data: DataModule, folder: Path, checkpoint: Path | None = None) -> Recorder:
    recorder = Recorder()
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        callbacks=[ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=1)],
    )
    trainer.fit(recorder, datamodule=data, ckpt_path=checkpoint)
    return recorder


def test_lightning_is_fed_every_epoch_and_validation_in_order(data: Callable[..., DataModule], tmp_path: Path) -> None:
    module = data()
    recorder = fit(module, tmp_path / "run")
    assert module.batches_per_epoch == STEPS
    assert [row[:3] for row in recorder.trained] == [
        (epoch, batch, batch == STEPS - 1) for epoch in range(EPOCHS) for batch in range(STEPS)
    ]
    for epoch in range(EPOCHS):
        seen = [index for row in recorder.trained if row[0] == epoch for index in row[3]]
        assert len(set(seen)) == len(seen) == 8 * STEPS
    images = module.prepared.card.counts["validation"].images
    assert recorder.validated == list(range(images)) * EPOCHS


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.filterwarnings("error:.*resuming from a checkpoint that ended before")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_training_is_fed_exactly_the_rest(
    data: Callable[..., DataModule], tmp_path: Path, workers: int
) -> None:
    whole = fit(data(), tmp_path / "whole")
    for step in (1, STEPS, STEPS + 2):  # within the first epoch, at its end, within the second
        checkpoint = tmp_path / "whole" / f"step={step}.ckpt"
        resumed_data = data(workers)
        done = batches_done(torch.load(checkpoint, weights_only=False))
        assert done == (step - 1) % STEPS + 1
        resumed_data.start_batch = done
        resumed = fit(resumed_data, tmp_path / f"resumed from {step}", checkpoint)
        assert resumed.trained == whole.trained[step:]


@pytest.mark.parametrize(
    "raw", [raw_classification(60), raw_detection(30), raw_segmentation(30)], ids=lambda raw: raw.task
)
def test_the_last_epoch_trains_on_the_images_of_both_splits(
    prepare_raw: Preparer, tmp_path: Path, raw: RawDataset
) -> None:
    prepared = prepare_raw(raw)
    both = prepared.split("train+validation")
    parts = [prepared.split(name) for name in ("train", "validation")]
    assert len(both) == sum(map(len, parts))
    read = [EvaluationBatches(split, image_size=8, batch_size=len(split))[0] for split in (both, *parts)]
    assert torch.equal(read[0]["images"], torch.cat([each["images"] for each in read[1:]]))
    for key in {"labels", "masks"} & read[0].keys():
        assert torch.equal(read[0][key], torch.cat([each[key] for each in read[1:]]))
    for one, other in zip(
        read[0].get("targets", []), [t for each in read[1:] for t in each.get("targets", [])], strict=True
    ):
        assert all(torch.equal(one[key], other[key]) for key in one)
    settings = recipe().model_copy(update={"protocol": "last_epoch"})
    module = DataModule(prepared, data_config(raw, tmp_path), settings, workers=0, limit_batches=None, seed=0)
    assert module.batches_per_epoch == len(both) // 8
    assert max(index for batch in module.train_dataloader() for index in batch["indices"].tolist()) >= len(parts[0])
    assert pickle.loads(pickle.dumps(both)).name == both.name


def test_a_limit_shortens_every_loader(data: Callable[..., DataModule]) -> None:
    module = data(limit_batches=2)
    assert module.batches_per_epoch == 2
    for limited, full in (
        (module.train_dataloader(), data().train_dataloader()),
        (module.val_dataloader(), data().val_dataloader()),
        (module.test_dataloader(), data().test_dataloader()),
    ):
        assert len(limited) == len(list(limited)) == 2
        assert [b["indices"].tolist() for b in limited] == [b["indices"].tolist() for b in list(full)[:2]]


def test_the_seed_orders_training_and_leaves_evaluation_alone(data: Callable[..., DataModule]) -> None:
    def order(loader: Any) -> list[list[int]]:
        return [batch["indices"].tolist() for batch in loader]

    one, other = data(seed=1), data(seed=2)
    assert order(one.train_dataloader()) != order(other.train_dataloader())
    assert order(one.test_dataloader()) == order(other.test_dataloader())


def test_data_of_another_configuration_are_refused(prepare_raw: Preparer, tmp_path: Path) -> None:
    raw = raw_classification(60)
    prepared = prepare_raw(raw)
    config = data_config(raw, tmp_path, num_classes=5)
    with pytest.raises(UserError, match=r"data\.num_classes=5"):
        DataModule(prepared, config, recipe(), workers=0, limit_batches=None, seed=0)


def test_augmentation_that_spoils_boxes_is_refused_before_training(prepare_raw: Preparer, tmp_path: Path) -> None:
    raw = raw_detection(60)
    prepared = prepare_raw(raw)
    with pytest.raises(UserError, match=r"recipe\.augmentation\.cutout"):
        DataModule(prepared, data_config(raw, tmp_path), recipe(cutout=4), workers=0, limit_batches=None, seed=0)


def test_one_channel_more_than_the_images_have_brings_their_canny_edges(prepare_raw: Preparer, tmp_path: Path) -> None:
    raw = raw_segmentation(60)
    prepared = prepare_raw(raw)
    modules = [
        DataModule(prepared, data_config(raw, tmp_path, in_channels=c), recipe(), workers=0, limit_batches=None, seed=0)
        for c in (1, 2)
    ]
    for plain, with_edges in zip(*(list(module.test_dataloader()) for module in modules), strict=True):
        assert torch.equal(with_edges["images"][:, :1], plain["images"])
        canny = torch.from_numpy(prepared.split("test").canny[plain["indices"].numpy()])
        assert torch.equal(with_edges["images"][:, 1], canny.float())
    assert modules[1].sample_batch([0, 1])["images"].shape[1] == 2
    with pytest.raises(UserError, match=r"data\.in_channels=3, but .* have in_channels=1"):
        DataModule(prepared, data_config(raw, tmp_path, in_channels=3), recipe(), workers=0, limit_batches=None, seed=0)
