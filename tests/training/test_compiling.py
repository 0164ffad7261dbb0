"""Which nets `torch.compile` takes whole, and where the graphs of the others break."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
import torch
from test_fake_gpu import MODES, SMALL, batch_of, composed

from convatlas.core.errors import UserError
from convatlas.models.build import build_model
from convatlas.models.interfaces import FollowsTraining, is_reversible
from convatlas.training.machine import check_supported
from convatlas.training.strategies import start_autograd
from helpers import ROOT

QUICK = ["resnet_cifar", "csp_resnet50_small", "unet_small"]
BREAKS = {
    "csp_efm_yolo_small": 4,
    "csp_pan_yolo_small": 4,
    "mobilenet_v1_ssdlite_small": 6,
    "mobilenet_v2_ssdlite_small": 6,
    "mobilenet_v3_ssdlite_small": 6,
    "retinanet_small": 10,
    "spinenet_retinanet_small": 11,
    "thundernet_small": 19,
}
"""Graph breaks of a training step's forward pass, in detectors; every net that is not listed has none."""


@pytest.fixture(scope="module", autouse=True)
def _process_that_can_fork() -> None:
    """Leave the process as other tests need it, which train seeds side by side."""
    start_autograd()


def arguments_of(name: str) -> tuple[torch.nn.Module, tuple[Any, ...]]:
    config = composed(name, MODES["fp32"])
    net, batch = build_model(config.model).train(), batch_of(config, images=2)
    if config.data.task == "detection":
        return net, (list(batch["images"]), batch["targets"])
    return net, (batch["images"],)


def is_compiled(name: str) -> bool:
    """Say whether `trainer.compile` takes the net."""
    net = build_model(composed(name, MODES["fp32"]).model)
    return not (isinstance(net, FollowsTraining) or is_reversible(net))


def breaks_of(name: str) -> int:
    net, arguments = arguments_of(name)
    torch._dynamo.reset()
    return int(torch._dynamo.explain(net)(*arguments).graph_break_count)


@pytest.mark.parametrize("name", QUICK)
def test_a_net_is_one_graph(name: str) -> None:
    net, arguments = arguments_of(name)
    torch._dynamo.reset()
    torch.compile(net, fullgraph=True, backend="eager")(*arguments)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_graph_breaks_are_those_of_the_list(name: str) -> None:
    if not is_compiled(name):
        config = composed(name, MODES["fp32"], "trainer.compile=default")
        with pytest.raises(UserError, match=r"trainer\.compile"):
            check_supported(config, build_model(config.model))
        return
    assert breaks_of(name) == BREAKS.get(name, 0)


def test_the_page_has_the_list() -> None:
    page = (ROOT / "docs" / "scaling.md").read_text()
    assert dict(re.findall(r"^\| (\w+_small) \| (\d+) \|$", page, re.MULTILINE)) == {
        k: str(v) for k, v in BREAKS.items()
    }
    taken = sum(is_compiled(name) for name in SMALL)
    assert f"Of the {len(SMALL)} small nets" in page
    assert f"refuses {len(SMALL) - taken} for these reasons and makes one graph of {taken - len(BREAKS)}." in page


COMPILES_AND_FORKS = """
import os, sys, torch
from convatlas.core.composing import compose_run, hydra_ready
from convatlas.training.strategies import prepare_net

with hydra_ready():
    options = ["trainer=cpu", "trainer.compile=default", "model=lenet5_modern"]
    machine = compose_run(options, {"variant": "one", "output_dir": "runs/one"}).trainer
net = prepare_net(torch.nn.Linear(2, 2), machine)
torch._dynamo.optimize("eager")(net)(torch.ones(1, 2)).sum().backward()
child = os.fork()
if child == 0:
    torch.ones((), requires_grad=True).backward()
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_process_that_compiled_can_fork_seeds() -> None:
    """As a `--multirun` does; in a process of its own, whose first net is the compiled one."""
    done = subprocess.run([sys.executable, "-c", COMPILES_AND_FORKS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
