"""A trained run again: its configuration, its net with the best epoch's weights, its data."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as pillow  # noqa: N813 - the module, whose class is Image
from PIL.Image import Image
from torch import Tensor, nn

from convatlas.core.composing import read_run
from convatlas.core.config import RunConfig
from convatlas.core.errors import UserError
from convatlas.core.files import read_yaml
from convatlas.core.record import RunRecord
from convatlas.core.targets import check_trusted
from convatlas.data.card import Card
from convatlas.data.decoding import decode, decode_image
from convatlas.data.lightning_module import open_data
from convatlas.data.prepared import PreparedData
from convatlas.models.build import build_model
from convatlas.models.weights import load_net
from convatlas.tasks import new_task, task_class
from convatlas.tasks.base import Task
from convatlas.tasks.predicting import fitted_image, normalised
from convatlas.training.results import CARD


@dataclass(frozen=True)
class TrainedRun:
    """A finished run of one seed.

    Attributes:
        folder: where it lies, `runs/<study>/<variant>/seed=<n>`.
        config: the configuration it was trained with.
        net: the net, in evaluation mode, on the CPU.
    """

    folder: Path
    config: RunConfig
    net: nn.Module

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by class number; in detection and segmentation number 0 is the background."""
        return self.card.classes

    def transform(self, image: str | Path | Image | NDArray[np.uint8]) -> Tensor:
        """Bring a picture of any size to what the net takes, as the training's were: `(C, S, S)`.

        Args:
            image: a file, a picture of Pillow's, or `(H, W)` or `(H, W, 3)` uint8.

        Raises:
            BadImageError: it is no picture, or cannot be fitted.
        """
        config, card = self.config, self.card
        if isinstance(image, str | Path):
            found = decode_image(Path(image), card)
        else:
            file = io.BytesIO()
            (pillow.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, "PNG", compress_level=1)
            found = decode(file.getvalue(), card.image_shape[0], percentiles=card.percentiles)
        fitted, _ = fitted_image(found.pixels, config, card, found.spacing)
        return normalised(fitted, config.data, card)[0]

    @cached_property
    def card(self) -> Card:
        """The card of the data it was trained on, with their classes, mean and standard deviation.

        Runs of earlier versions have none of their own; theirs is that of the prepared data, if those are the same.

        Raises:
            UserError: it is missing or damaged, or other data were prepared since.
        """
        own = self.folder / CARD
        card = Card.read_file(own) if own.exists() else self.prepared().card
        if len(card.classes) != self.config.data.num_classes:
            raise UserError(
                f"{own} names {len(card.classes)} classes, and the net was trained for {self.config.data.num_classes}; "
                "train the run again."
            )
        return card

    def prepared(self) -> PreparedData:
        """Open the data it was trained on.

        Raises:
            UserError: they are not prepared, or others than it was trained on.
        """
        prepared = open_data(self.config.data)
        trained_on = RunRecord.read(self.folder).metrics.data_fingerprint
        if trained_on not in (None, prepared.card.fingerprint):
            raise UserError(
                f"{self.folder} was trained on other data than {self.config.data.prepared} holds now (fingerprint "
                f"{trained_on[:12]}, now {prepared.card.fingerprint[:12]}); prepare them as they were, or name the "
                "folder where they lie: data=FOLDER."
            )
        return prepared

    def task(self) -> Task:
        """Put its task around the net, in evaluation mode."""
        return new_task(self.net, self.config, list(self.card.classes), seed=0).eval()


def load_run(run: Path, checkpoint: Path | None = None, data: Path | None = None) -> TrainedRun:
    """Load a run from its folder.

    Args:
        run: folder of a seed, or of a run that has one.
        checkpoint: weights other than its `best.ckpt`.
        data: where its prepared data lie now, if they were moved.

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
    if data is not None:
        config = config.model_copy(update={"data": config.data.model_copy(update={"prepared": data})})
    task_class(config)  # says so where the net is that of another package's LightningModule
    net = build_model(config.model)
    load_net(net, checkpoint or folder / "best.ckpt")
    return TrainedRun(folder, config, net.eval())
