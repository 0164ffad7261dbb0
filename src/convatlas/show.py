"""`convatlas show model=fractalnet [depth=3] [part=column_3]`: a net's layers with shapes and counts.

The table is torchinfo's. It counts multiply-adds of every layer, batch normalisation as well; `convatlas profile`
counts as papers do, convolutions and linear layers alone. Of blocks whose parts take turns (the columns of a
FractalNet) a row at `depth` has only a part of them; the total is right, and a higher `depth` shows all.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from convatlas.core.cli import run_hydra
from convatlas.core.config import Positive
from convatlas.core.errors import UserError
from convatlas.core.imports import quick_imports
from convatlas.profile import SIZE, NetOptions, read

if TYPE_CHECKING:
    from omegaconf import DictConfig

COLUMNS = ("output_size", "num_params", "kernel_size", "mult_adds")


class Options(NetOptions):
    """What the command line may say beside the net."""

    depth: Positive


def main(config: DictConfig) -> None:
    """Print the layers of the net that the configuration names.

    Raises:
        UserError: an option is wrong, or the net does not take such images.
    """
    options, size, plain = read(config, Options)
    with quick_imports():
        import torch
        import torchinfo

        from convatlas.models.build import build_model, part_of
        from convatlas.models.costs import is_detector, on_meta_device

    whole = partial(build_model, plain["model"])
    detects = is_detector(on_meta_device(whole))
    device = "cpu" if detects else "meta"  # a detector chooses among boxes, whose values have to be there
    with torch.device(device):
        net = part_of(whole(), options.part).eval()
        images = torch.zeros(1, *size)
    inputs = [[images[0]]] if detects else [images]
    try:
        table = torchinfo.summary(
            net, input_data=inputs, depth=options.depth, col_names=COLUMNS, device=device, verbose=0
        )
    except RuntimeError as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise UserError(f"input_size={size}: the net takes no such images ({reason.rstrip('.')}); {SIZE}.") from error
    print(f"{plain['about']['title']}, images of {' x '.join(map(str, size))}\n{table}")


if __name__ == "__main__":
    run_hydra(main, "show")
