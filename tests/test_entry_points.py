"""Every file under conf/ goes through the real entry point: one training step, one plan, one profile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from helpers import ROOT, TASKS_DATA, source_options

CONF = ROOT / "conf"
STEP = ("tracking=none", "trainer=debug", "trainer.limit_batches=1", "trainer.threads=2", "recipe.epochs=1")
LARGE = 1500  # million multiply-adds an image; a step of such a net belongs to the slow tests


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


@pytest.mark.parametrize("recipe", choices("recipe"))
def test_every_recipe(step, recipe):
    task = "detection" if "detect" in recipe else "segmentation" if "segment" in recipe else "classification"
    model = {"classification": "lenet5_modern", "detection": "retinanet_small", "segmentation": "unet_small"}[task]
    step(TASKS_DATA[task], f"model={model}", f"recipe={recipe}", "recipe.batch_size=4")


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


@pytest.mark.parametrize("scale", choices("scale"))
@pytest.mark.parametrize("study", choices("study"))
def test_every_study_plans_at_every_scale(enter, monkeypatch, tmp_path, study, scale):
    if not (set(yaml.safe_load((CONF / "study" / f"{study}.yaml").read_text())["overrides"]) & {scale}):
        pytest.skip(f"{study} has no scale {scale}")
    (tmp_path / "conf").symlink_to(CONF)
    monkeypatch.chdir(tmp_path)
    assert enter("plan", f"study={study}", f"scale={scale}").status == 0
    assert enter("resolve").status == 0
    params = yaml.safe_load((tmp_path / "params.yaml").read_text())
    planned = {
        p.relative_to(tmp_path / "plan").with_suffix("").as_posix() for p in (tmp_path / "plan").glob("*/*.yaml")
    }
    assert planned == set(params["runs"])


def models_by_size() -> tuple[list[str], list[str]]:
    """Divide the models into those whose step takes a second and the others, by their golden costs."""
    import json

    golden = json.loads((Path(__file__).parent / "models" / "golden_costs.json").read_text())
    names = choices("model")
    large = [n for n in names if (golden.get(n, {}).get("macs") or 0) > LARGE * 1e6]
    return [n for n in names if n not in large], large


SMALL_MODELS, LARGE_MODELS = models_by_size()


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


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_every_model_trains_a_step(step, name):
    train_one_step_of(step, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE_MODELS)
def test_every_large_model_trains_a_step(step, name):
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
    assert printed["recipe"]["optimizer"]["name"] == "sgd"


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
