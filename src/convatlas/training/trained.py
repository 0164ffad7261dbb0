"""A trained run again: its configuration, its net with the best epoch's weights, its data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from convatlas.core.composing import read_run
from convatlas.core.config import RunConfig
from convatlas.core.errors import UserError
from convatlas.core.files import read_yaml
from convatlas.core.targets import check_trusted
from convatlas.data.lightning_module import open_data
from convatlas.data.prepared import PreparedData
from convatlas.models.build import build_model
from convatlas.models.weights import load_net
from convatlas.tasks import task_class


@dataclass(frozen=True)
class TrainedRun:
    """A finished run of one seed.

    Attributes:
        folder: where it lies, `runs/<study>/<variant>/seed=<n>`.
        config: the configuration it was trained with.
        net: the net, in evaluation mode, on the processor.
    """

    folder: Path
    config: RunConfig
    net: nn.Module

    def prepared(self) -> PreparedData:
        """Open the data it was trained on.

        Raises:
            UserError: they are not prepared, or do not fit the configuration.
        """
        return open_data(self.config.data)


def load_run(run: Path, checkpoint: Path | None = None) -> TrainedRun:
    """Load a run from its folder, with `best.ckpt` or another checkpoint of it.

    Raises:
        UserError: there is no finished run, its configuration is from another version, or the weights do not fit.
    """
    folder = run
    if not (folder / "config.yaml").exists():
        seeds = sorted(run.glob("seed=*"))
        if len(seeds) != 1:
            hint = f"name one of its seeds, for example run={seeds[0]}" if seeds else "train first, or correct the path"
            raise UserError(f"run={run}: there is no config.yaml of a finished run; {hint}.")
        folder = seeds[0]
    file = folder / "config.yaml"
    values = read_yaml(file, "name the folder of a finished run.")
    check_trusted(values, str(file))
    config = read_run(values, str(file))
    task_class(config)  # says so where the net is that of another package's LightningModule
    net = build_model(config.model)
    load_net(net, checkpoint or folder / "best.ckpt")
    return TrainedRun(folder, config, net.eval())
