"""A trained net's test once more: the run's own data, metrics and machine, and any net in the place of its net."""

from __future__ import annotations

import pandas as pd
from torch import nn

from convatlas.data.lightning_module import ModuleData
from convatlas.data.module import DataModule
from convatlas.tasks import new_task
from convatlas.training.strategies import prepare_net
from convatlas.training.trained import TrainedRun
from convatlas.training.trainer import build_tester

__all__ = ["tested"]


def tested(trained: TrainedRun, net: nn.Module, split: str) -> tuple[dict[str, float], pd.DataFrame]:
    """Test a net on a split of its run's data; returns its metrics, and a row for each image."""
    config, prepared = trained.config, trained.prepared()
    machine = config.trainer
    task = new_task(prepare_net(net, machine), config, list(prepared.card.classes), seed=0)
    data: ModuleData | DataModule
    if config.data.module is not None:
        data = ModuleData(prepared, config.data, 0, None)
    else:
        data = DataModule(prepared, config.data, config.recipe, workers=machine.workers, limit_batches=None, seed=0)
    trainer = build_tester(machine)
    data.trainer = trainer
    data.setup("test" if split == "test" else "validate")
    loader = data.test_dataloader() if split == "test" else data.val_dataloader()
    trainer.test(task, loader, verbose=False)
    metrics = {k.removeprefix("test/"): float(v) for k, v in trainer.callback_metrics.items() if k.startswith("test/")}
    return metrics, prepared.with_files(task.predictions(), split)
