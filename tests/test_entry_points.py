"""Every file under conf/ goes through the real entry point: one training step, one plan, one profile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache, partial
from itertools import pairwise
from typing import Any

import pytest
import torch
import yaml

from convatlas.core.composing import hydra_ready
from convatlas.core.config import RunConfig
from convatlas.core.errors import UserError
from convatlas.data.augmentation import Augmenter
from convatlas.models.build import build_model
from convatlas.models.costs import on_meta_device
from convatlas.models.freezing import freeze
from convatlas.models.weights import take_weights
from convatlas.studies.planning import check_costs, load_study, planned_runs
from convatlas.tasks import new_task
from helpers import ROOT, TASKS_DATA, source_options

CONF = ROOT / "conf"
STEP = ("tracking=none", "trainer=debug", "trainer.limit_batches=1", "trainer.threads=2", "recipe.epochs=1")


def choices(group: str) -> list[str]:
    """Return the files of a group."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.fixture
def step(enter, prepared, tmp_path):
    """Train one step with these choices."""

    def step(data: str, *choices: str) -> None:
        options = [*STEP, f"data={data}", f"data.prepared={prepared[data]}", f"output_dir={tmp_path / 'run'}"]
        options += source_options(prepared[data])
        entered = enter("train", *options, *choices)
        assert entered.status == 0, entered.err
        assert (tmp_path / "run" / "seed=0" / "metrics.json").exists()

    return step


def test_a_training_in_double_precision_ends_with_its_test(step) -> None:
    step("digits", "model=resnet_cifar", "model.depth=8", "trainer.precision=64-true", "recipe.ema_decay=0.9")


def recipes() -> list[Any]:
    """List the recipes; but for some of each task they belong to the slow tests."""
    fast = {"laptop", "cifar", "imagenet", "imagenet_efficientnet", "fine_tune_all", "detection", "segmentation"}
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in choices("recipe")]


@pytest.mark.parametrize("recipe", recipes())
def test_every_recipe(step, recipe):
    task = "detection" if "detect" in recipe else "segmentation" if "segment" in recipe else "classification"
    model = {"classification": "lenet5_modern", "detection": "retinanet_small", "segmentation": "unet_small"}[task]
    grey = "recipe.augmentation.saturation=0"  # as the images of all three tasks are here
    own = "recipe.no_decay=[]"  # names parameters of the paper's net
    step(TASKS_DATA[task], f"model={model}", f"recipe={recipe}", grey, own, "recipe.batch_size=4")


@pytest.mark.parametrize("optimizer", choices("recipe/optimizer"))
def test_every_optimiser(step, optimizer):
    step("digits", "model=lenet5_modern", f"recipe/optimizer={optimizer}")


@pytest.mark.parametrize("schedule", choices("recipe/schedule"))
def test_every_schedule(step, schedule):
    step("digits", "model=lenet5_modern", f"recipe/schedule={schedule}")


@pytest.mark.parametrize("trainer", ["cpu", "debug"])
def test_every_trainer_of_one_process(step, trainer):
    # Those of several processes leave a process group behind: tests/training starts them as commands.
    step("digits", "model=lenet5_modern", f"trainer={trainer}")


def test_every_study_has_every_scale():
    with hydra_ready():
        studies = [load_study(study, "paper")[0] for study in choices("study")]
    assert {study.name: set(study.overrides) for study in studies} == {
        study: set(choices("scale")) for study in choices("study")
    }


@cache
def variants(study: str, scale: str) -> dict[str, RunConfig]:
    """Compose every variant of a study at a scale."""
    with hydra_ready():
        runs = planned_runs(*load_study(study, scale), seeds=[0], more=[])
    return {run.config.variant: run.config for run in runs}


def different_nets(study: str, scale: str) -> dict[str, RunConfig]:
    """Return the variants of a study but for those whose net gets what an earlier one's gets."""
    first: dict[str, str] = {}
    for variant, config in variants(study, scale).items():
        sizes = [config.data.in_channels, config.data.image_size, config.recipe.augmentation.image_sizes]
        first.setdefault(json.dumps([config.model, sizes, config.recipe.test_views]), variant)
    return {variant: variants(study, scale)[variant] for variant in first.values()}


@pytest.mark.parametrize(
    "scale", ["laptop", *(pytest.param(s, marks=pytest.mark.slow) for s in ("workstation", "paper"))]
)
@pytest.mark.parametrize("study", choices("study"))
def test_every_study_has_different_variants_at_every_scale(study, scale):
    identities = sorted(json.dumps({**c.identity, "variant": None}) for c in variants(study, scale).values())
    assert [this for this, other in pairwise(identities) if this == other] == []


@pytest.mark.parametrize(
    "scale", ["laptop", *(pytest.param(s, marks=pytest.mark.slow) for s in ("workstation", "paper"))]
)
@pytest.mark.parametrize("study", choices("study"))
def test_what_a_study_says_to_cost_the_same_does_so_at_every_scale(study, scale):
    with hydra_ready():
        check_costs(*load_study(study, scale), variants(study, scale))


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["workstation", "paper"])
@pytest.mark.parametrize("study", choices("study"))
def test_every_net_of_a_study_takes_its_images(study, scale):
    refused = {}
    for variant, config in different_nets(study, scale).items():
        try:
            Augmenter(config.recipe.augmentation, config.data.task, config.data.image_size, config.data.in_channels)
            net = on_meta_device(partial(build_model, config.model)).eval()
            if config.data.task != "detection":  # what a detector computes depends on what it sees
                for side in {config.data.image_size, *config.recipe.augmentation.image_sizes}:
                    net(torch.zeros(1, config.data.in_channels, side, side, device="meta"))
        except (UserError, ValueError, RuntimeError) as error:
            refused[variant] = str(error)
    assert refused == {}


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["workstation", "paper"])
@pytest.mark.parametrize(
    "study", [s for s in choices("study") if "detection" in (CONF / "study" / f"{s}.yaml").read_text()]
)
def test_every_detector_of_a_study_takes_its_images(study, scale):
    detectors = {v: c for v, c in different_nets(study, scale).items() if c.data.task == "detection"}
    for config in detectors.values():
        classes = [str(number) for number in range(config.data.num_classes)]
        new_task(build_model(config.model), config, classes, seed=0).dry_run()
    assert detectors


@pytest.mark.parametrize("scale", choices("scale"))
def test_studies_are_planned_and_resolved_at_every_scale(enter, monkeypatch, tmp_path, scale):
    (tmp_path / "conf").symlink_to(CONF)
    monkeypatch.chdir(tmp_path)
    assert enter("plan", "study=transfer_learning", f"scale={scale}").status == 0
    assert enter("resolve").status == 0
    params = yaml.safe_load((tmp_path / "stages.yaml").read_text())
    files = (tmp_path / "plan" / "transfer_learning").glob("*.yaml")
    assert {p.relative_to(tmp_path / "plan").with_suffix("").as_posix() for p in files} == set(params["runs"])
    after_the_first = [
        key for key, run in params["runs"].items() if run["after"] == "runs/transfer_learning/pretrained"
    ]
    assert after_the_first == [f"transfer_learning/{variant}" for variant in TRANSFERRED]


TRANSFERRED = ["frozen_features", "fine_tune_last_stage", "fine_tune_all"]


@pytest.mark.parametrize("scale", choices("scale"))
@pytest.mark.parametrize("variant", TRANSFERRED)
def test_a_net_takes_the_weights_of_the_first_training(scale, variant):
    first, config = (variants("transfer_learning", scale)[name] for name in ("pretrained", variant))
    classes, side = config.data.num_classes, config.data.image_size
    with torch.device("meta"):
        net = build_model(config.model)
        left_out = take_weights(net, build_model(first.model).state_dict(), classes, "pretrained")
        trained = freeze(net, config.recipe.trainable, classes, torch.zeros(1, config.data.in_channels, side, side))
    head = trained[-1]
    assert left_out == ([f"{head}.weight", f"{head}.bias"] if classes != first.data.num_classes else [])
    assert (len(trained) == 1) == (variant == "frozen_features")
    assert first.data.name != config.data.name


FAST_MODELS = [
    "csp_pan_yolo_small", "fractalnet_small", "googlenet_small", "hyper_convnet", "mobilenet_v2_small", "revnet_small",
    "saunet_small", "searched", "thundernet_small", "timm",
]  # fmt: skip
"""One net of each kind of head, loss and mechanism; the recorded runs have others."""


def train_one_step_of(step, name: str) -> None:
    """Train a model for one step on images of its paper's size."""
    about = yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text())["about"]
    data = TASKS_DATA[about["task"]]
    side = max(about["input_size"][1:])
    recipe = {"classification": "laptop"}.get(about["task"], about["task"])
    step(
        data,
        f"recipe={recipe}",
        f"model={name}",
        f"data.image_size={side}",
        *(["data.in_channels=2"] if name.startswith("saunet") else []),  # the image and its Canny edges
        "recipe.batch_size=2",
        "recipe.evaluation_batch_size=2",
    )


@pytest.mark.parametrize(
    "name", [name if name in FAST_MODELS else pytest.param(name, marks=pytest.mark.slow) for name in choices("model")]
)
def test_every_model_trains_a_step(step, name):
    train_one_step_of(step, name)


def test_multirun_trains_every_combination(enter, prepared, monkeypatch, tmp_path):
    (tmp_path / "conf").symlink_to(CONF)
    monkeypatch.chdir(tmp_path)
    options = [*STEP, f"data.prepared={prepared['digits']}"]
    entered = enter("train", "--multirun", "model=lenet5,lenet5_modern", "seed=0,1", *options)
    assert entered.status == 0, entered.err
    finished = sorted(path.relative_to(tmp_path / "runs" / "adhoc") for path in tmp_path.rglob("metrics.json"))
    models = [str(path).split("-")[0] for path in finished]
    seeds = [path.parent.name for path in finished]
    assert models == ["lenet5", "lenet5", "lenet5_modern", "lenet5_modern"]
    assert seeds == ["seed=0", "seed=1"] * 2
    assert {path.name for path in tmp_path.iterdir()} == {"conf", "runs", ".work"}


def test_the_configuration_is_printed(enter):
    entered = enter("train", "--cfg", "job", "model=resnet_cifar", "model.depth=32")
    printed = yaml.safe_load(entered.out)
    assert printed["model"]["depth"] == 32
    assert printed["recipe"]["optimizer"]["_target_"] == "torch.optim.SGD"


def test_a_shell_completes_the_names_of_nets():
    line = "convatlas-train model=nasnet_c"
    environment = {**os.environ, "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_CWORD": "1"}
    command = [sys.executable, "-m", "convatlas.train", "-sc", "query=bash"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["model=nasnet_cifar"]


def test_a_part_of_a_net_is_profiled_alone(enter):
    whole, part = (enter("profile", "model=fractalnet", f"part={part}", "format=json") for part in ("null", "column_1"))
    figures = [json.loads(entered.out) for entered in (whole, part)]
    assert figures[0]["parameters"] > 5 * figures[1]["parameters"]
    assert figures[1]["parameters"] == sum(9 * a * b + 2 * b for a, b in pairwise((3, 64, 128, 256, 512, 512))) + 5130
