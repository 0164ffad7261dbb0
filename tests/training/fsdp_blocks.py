"""Counts, in two processes, how much of a net is gathered at a time: run by test_fsdp.py under torchrun."""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from convatlas.core.composing import compose_run, hydra_ready
from convatlas.models.blocks import blocks_of
from convatlas.models.build import build_model
from convatlas.tasks import new_task


def gathered(net: nn.Module) -> int:
    """Count the values of the parameters that lie whole in this process now."""
    return sum(p.numel() for p in net.parameters() if not isinstance(p, DTensor))


def main() -> None:
    """Print the units, the parameters, and the most that were gathered within one unit's forward and backward pass."""
    dist.init_process_group("gloo")
    with hydra_ready():
        options = [f"model={sys.argv[1]}", *sys.argv[2:], "tracking=none"]
        config = compose_run(options, {"variant": "fsdp", "seeds": [0], "output_dir": "unused"})
    torch.manual_seed(0)
    net = build_model(config.model)
    whole = sum(p.numel() for p in net.parameters())
    blocks = blocks_of(net)
    task = new_task(net, config, [str(number) for number in range(config.data.num_classes)], seed=0)
    task._device_mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("data_parallel",))
    task.configure_model()
    held: list[int] = []
    for block in blocks:
        block.register_forward_hook(lambda *_: held.append(gathered(net)))
        block.register_full_backward_pre_hook(lambda *_: held.append(gathered(net)))
    images = torch.randn(2, config.data.in_channels, config.data.image_size, config.data.image_size)
    net.train()(images).sum().backward()
    units = sum(isinstance(module, FSDPModule) for module in net.modules())
    if os.environ["RANK"] == "0":
        print("found", units, len(blocks), whole, max(held), gathered(net), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
