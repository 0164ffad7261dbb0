"""What a user adds by a YAML file in a folder of their own, through the real command line; and what is refused."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from sklearn.metrics import cohen_kappa_score
from timm.scheduler import CosineLRScheduler
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau

from convatlas.core.errors import UserError
from convatlas.core.processes import rank
from convatlas.core.targets import check_trusted
from convatlas.training.run import train
from helpers import ROOT, assert_one_sentence, source_options

EPOCHS, STEPS = 3, 3
QUICK = ("tracking=none", "trainer.threads=1", f"trainer.limit_batches={STEPS}", "recipe.batch_size=32")

THEIRS = {
    "recipe/optimizer/nadam": "_target_: torch.optim.NAdam",
    "recipe/optimizer/lamb": "_target_: timm.optim.Lamb\nlr: 0.02",
    "recipe/schedule/one_cycle": "_target_: torch.optim.lr_scheduler.OneCycleLR\nmax_lr: 0.1",
    "recipe/schedule/annealing": (
        f"_target_: torch.optim.lr_scheduler.CosineAnnealingLR\nT_max: {EPOCHS}\ninterval: epoch"
    ),
    "recipe/schedule/plateau": (
        "_target_: torch.optim.lr_scheduler.ReduceLROnPlateau\nmode: max\npatience: 0\nthreshold: 9"
    ),
    "recipe/schedule/timm_cosine": f"_target_: timm.scheduler.CosineLRScheduler\nt_initial: {EPOCHS}\ninterval: epoch",
    "recipe/loss/smoothed": "_target_: timm.loss.LabelSmoothingCrossEntropy\nsmoothing: 0.3",
    "callbacks/seen": "seen: {_target_: their_pkg.Seen, path: '???'}",
    "callbacks/timer": "timer: {_target_: pytorch_lightning.callbacks.Timer}",
    "metrics/kappa": (
        "kappa: {_target_: torchmetrics.classification.MulticlassCohenKappa, num_classes: '${data.num_classes}'}"
    ),
    "model/net": (
        "about: {title: Theirs, task: classification}\n_target_: their_pkg.Net\nnum_classes: 10\nin_channels: 1"
    ),
    "callbacks/broken": "broken: {_target_",
    "task/lit": "_target_: their_pkg.LitModel\nwidth: 12",
    "data/lit": (
        "name: lit\ntask: classification\nmodule: {_target_: their_pkg.LitData, images: 96}\n"
        "image_size: 32\nin_channels: 1\nnum_classes: 10"
    ),
}
"""The files of a user's folder."""


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """Write the user's folder."""
    for name, text in THEIRS.items():
        file = tmp_path / "theirs" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    return tmp_path / "theirs"


@pytest.fixture
def start(enter, theirs, prepared_digits, tmp_path):
    """Train with the user's folder; returns the folder of the seed."""

    def start(*choices: str, folder: str = "run") -> Path:
        data = [] if any(choice.startswith("data=") for choice in choices) else [f"data.prepared={prepared_digits}"]
        run = tmp_path / folder
        entered = enter("train", "--config-dir", str(theirs), *QUICK, *data, f"output_dir={run}", *choices)
        assert entered.status == 0, entered.err
        start.out = entered.out
        return run / "seed=0"

    return start


def history(folder: Path) -> pd.DataFrame:
    """Read a run's history."""
    return pd.read_csv(folder / "history.csv")


# ---- what a user adds -----------------------------------------------------------------------------------------------


def stepped(make: Callable, lr: float, *, each_epoch: bool) -> list[float]:
    """Return the rate of every step as torch's schedule alone has it."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    schedule = make(optimizer)
    rates = []
    for step in range(EPOCHS * STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if not each_epoch:
            schedule.step()
        elif (step + 1) % STEPS == 0:
            done = (step + 1) // STEPS
            if isinstance(schedule, (ReduceLROnPlateau, CosineLRScheduler)):  # they take the metric, and the epoch
                schedule.step(0.5 if isinstance(schedule, ReduceLROnPlateau) else done)
            else:
                schedule.step()
    return rates


@pytest.mark.parametrize(
    ("optimizer", "schedule", "seen", "make", "lr", "each_epoch"),
    [
        ("nadam", "one_cycle", "torch NAdam", lambda o: OneCycleLR(o, 0.1, total_steps=9), 2e-3, False),
        ("lamb", "timm_cosine", "timm Lamb", lambda o: CosineLRScheduler(o, EPOCHS), 0.02, True),
        ("lamb", "annealing", "timm Lamb", lambda o: CosineAnnealingLR(o, EPOCHS), 0.02, True),
        (
            "nadam",
            "plateau",
            "torch NAdam",
            lambda o: ReduceLROnPlateau(o, "max", patience=0, threshold=9),
            2e-3,
            True,
        ),
    ],
)
def test_optimisers_and_schedules(start, tmp_path, optimizer, schedule, seen, make, lr, each_epoch):  # noqa: PLR0917
    folder = start(
        *(f"recipe/optimizer={optimizer}", f"recipe/schedule={schedule}", "~recipe.schedule.warmup_epochs"),
        *("callbacks=[seen,timer]", f"callbacks.seen.path={tmp_path / 'seen.json'}"),
        *("model=net", f"recipe.epochs={EPOCHS}"),
    )
    steps = json.loads((tmp_path / "seen.json").read_text())
    assert {step["optimizer"] for step in steps} == {seen}
    assert [step["lr"] for step in steps] == pytest.approx(stepped(make, lr, each_epoch=each_epoch), rel=1e-9)
    assert {step["net"] for step in steps} == {"Net"}
    state = torch.load(folder / "last.ckpt", weights_only=True)["optimizer_states"][0]["state"][0]
    assert ("mu_product" in state) == (optimizer == "nadam")


def test_a_loss_a_metric_and_a_logger(start, tmp_path):
    folder = start(
        *("model=net", "recipe.epochs=2", "recipe/loss=smoothed", "metrics=[kappa]", "recipe.monitor=val/kappa"),
        *("callbacks=[seen]", f"callbacks.seen.path={tmp_path / 'seen.json'}"),
        *("loggers=[csv]", f"loggers.csv.save_dir={tmp_path / 'logs'}", "variant=mine"),
    )
    steps = json.loads((tmp_path / "seen.json").read_text())
    assert [step["loss"] for step in steps] == pytest.approx([step["smoothed"] for step in steps], rel=1e-5)
    record = json.loads((folder / "metrics.json").read_text())
    predictions = pd.read_parquet(folder / "predictions.parquet")
    assert record["test"]["kappa"] == pytest.approx(
        cohen_kappa_score(predictions["label"], predictions["prediction"]), abs=1e-6
    )
    rows = history(folder)
    assert (record["monitor"], record["best_epoch"]) == ("val/kappa", int(rows["val/kappa"].idxmax()) + 1)
    logged = pd.read_csv(tmp_path / "logs" / "adhoc" / "mine" / "seed=0" / "metrics.csv")
    for name in ("train/loss", "val/loss", "val/kappa", "val/accuracy"):
        assert logged[name].dropna().tolist() == pytest.approx(rows[name].tolist(), rel=1e-6), name


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard(start, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = ("loggers=[tensorboard]", f"loggers.tensorboard.save_dir={tmp_path / 'logs'}", "variant=mine")
    folder = start("model=net", "recipe.epochs=2", *options)
    events = EventAccumulator(str(tmp_path / "logs" / "adhoc" / "mine" / "seed=0"))
    events.Reload()
    values = [event.value for event in events.Scalars("val/accuracy")]
    assert values == pytest.approx(history(folder)["val/accuracy"].tolist(), rel=1e-6)


def test_a_lightning_module_trains_on_our_data(start):
    folder = start("task=lit", "recipe.epochs=3", "recipe.monitor=val_accuracy", "recipe.optimizer.lr=0.5")
    names = {path.name for path in folder.iterdir()} - {"figures"}
    assert "predictions.parquet" not in names
    assert {"config.yaml", "identity.json", "environment.json", "timing.json", "best.ckpt", "last.ckpt"} < names
    record, rows = json.loads((folder / "metrics.json").read_text()), history(folder)
    assert {"train_loss", "val_loss", "val_accuracy", "lr"} < set(rows)
    assert rows["lr"].tolist() == [0.01] * 3  # its own optimiser's
    assert record["variant"].startswith("LitModel-digits-")
    assert record["best_epoch"] == int(rows["val_accuracy"].idxmax()) + 1
    assert record["best"]["val_accuracy"] == rows["val_accuracy"].max()
    assert record["costs"] == {"parameters": 1024 * 12 + 12 + 12 * 10 + 10}
    assert set(record["test"]) == {"loss", "accuracy"}
    assert "no predictions" in start.out
    assert "the highest val_accuracy" in start.out


def test_a_lightning_module_goes_on_from_its_last_epoch(start, enter, theirs, prepared_digits, tmp_path):
    options = ("task=lit", "recipe.epochs=3", "data=lit", "variant=mine")
    undisturbed = start(*options, folder="undisturbed")
    common = ("--config-dir", str(theirs), *QUICK, f"output_dir={tmp_path / 'broken'}", *options)
    text = (theirs / "task" / "lit.yaml").read_text()
    (theirs / "task" / "lit.yaml").write_text(text + "fails: true\n")
    assert_one_sentence(enter("train", *common), "task raised RuntimeError", "their_pkg.py", "their mistake")
    (work,) = (tmp_path / "broken" / ".work").glob("seed=*")
    identity = json.loads((work / "identity.json").read_text())
    del identity["config"]["task"]["fails"]
    (work / "identity.json").write_text(json.dumps(identity))
    (theirs / "task" / "lit.yaml").write_text(text)
    resumed = start(*options, folder="broken")
    assert (resumed / "history.csv").read_bytes() == (undisturbed / "history.csv").read_bytes()
    one, other = (torch.load(f / "last.ckpt", weights_only=True)["state_dict"] for f in (resumed, undisturbed))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_a_lightning_data_module_trains_our_task(start, enter, monkeypatch):
    folder = start("data=lit", "model=net", "recipe.epochs=2", "recipe.optimizer.lr=0.1", "trainer.limit_batches=null")
    rows = pd.read_parquet(folder / "predictions.parquet")
    assert rows["index"].tolist() == list(range(96))
    assert rows["label"].tolist() == [number % 10 for number in range(96)]
    record = json.loads((folder / "metrics.json").read_text())
    assert record["test"]["accuracy"] == pytest.approx((rows["label"] == rows["prediction"]).mean())
    assert history(folder)["step"].tolist() == [6, 12]  # 96 images in the module's own batches of 16
    assert "recipe.batch_size and recipe.augmentation do nothing" in start.out
    assert_one_sentence(enter("evaluate", f"run={folder}"), "their_pkg.LitData", "CONVATLAS_TRUST=their_pkg")
    monkeypatch.setenv("CONVATLAS_TRUST", "their_pkg")
    again = enter("evaluate", f"run={folder}", "format=json")
    assert json.loads(again.out)["accuracy"] == record["test"]["accuracy"]


@pytest.mark.slow
def test_a_lightning_module_is_tracked(start, tmp_path):
    import mlflow

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    folder = start("task=lit", "recipe.epochs=2", "tracking=mlflow", f"tracking.uri={uri}", "variant=mine")
    runs = mlflow.MlflowClient(uri).search_runs(["1"], "tags.`convatlas.role` = 'seed'")
    assert [run.info.status for run in runs] == ["FINISHED"]
    record = json.loads((folder / "metrics.json").read_text())
    assert runs[0].data.metrics["test/accuracy"] == pytest.approx(record["test"]["accuracy"])
    assert runs[0].data.metrics["val_loss"] == pytest.approx(history(folder)["val_loss"].iloc[-1])


# ---- what CONTRIBUTING.md shows -------------------------------------------------------------------------------------

SHOWN = (ROOT / "CONTRIBUTING.md").read_text()
EXAMPLES = re.findall(r"```yaml\n(# mine/\S+\n.*?)```\n\n((?:    python [^\n]*\n)+)", SHOWN, re.DOTALL)


ONLY_HERE = ("mine/task/margin.yaml", "mine/data/stripes.yaml")
"""Examples whose like no other test above trains; the others belong to the slow tests."""


@pytest.mark.parametrize(
    ("text", "commands"),
    [
        pytest.param(*example, id=name, marks=[] if name in ONLY_HERE else [pytest.mark.slow])
        for example in EXAMPLES
        for name in [example[0].split()[1]]
    ],
)
def test_every_addition_of_the_guide(enter, prepared_digits, tmp_path, monkeypatch, text, commands):  # noqa: PLR0917
    assert len((text + commands).splitlines()) <= 10
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    monkeypatch.chdir(tmp_path)
    file = Path(text.split()[1])
    file.parent.mkdir(parents=True)
    file.write_text(text)
    known = file.parts[:3] in {("mine", "data", "lit.yaml"), ("mine", "data", "stripes.yaml")}
    for command in commands.splitlines():
        words = shlex.split(command)[3:]
        entry = command.split()[2].removeprefix("convatlas.")
        if entry == "train":
            words += [*QUICK, "trainer.limit_batches=1", "recipe.epochs=1", "output_dir=run"]
            words += [] if known else [f"data.prepared={prepared_digits}"]
        entered = enter(entry, *words)
        assert entered.status == 0, entered.err
    assert (tmp_path / "run" / "seed=0" / "metrics.json").exists()
    chosen = yaml.safe_load((tmp_path / "run" / "seed=0" / "config.yaml").read_text())
    assert set(re.findall(r"_target_: ([\w.]+)", text)) <= set(re.findall(r"'_target_': '([\w.]+)'", str(chosen)))


def test_the_guide_shows_every_kind_of_addition():
    kinds = {"optimizer", "schedule", "loss", "callbacks", "loggers", "metrics", "model", "task", "data"}
    assert {Path(text.split()[1]).parent.name for text, _ in EXAMPLES} == kinds
    assert len(EXAMPLES) == len(kinds) + 2  # a LightningModule beside a task, a LightningDataModule beside a data set


# ---- bad input ------------------------------------------------------------------------------------------------------

BAD = [
    (["+callbacks.mine._target_=no_such_pkg.Thing"], ["callbacks.mine._target_=no_such_pkg.Thing", "install it"]),
    (["+callbacks.mine._target_=their_pkg.Sen"], ["callbacks.mine._target_", "no member Sen", "Did you mean Seen"]),
    (["+callbacks.mine._target_=Seen"], ["callbacks.mine._target_=Seen", "no dotted name"]),
    (["+callbacks.mine.path=x"], ["callbacks.mine", "_target_"]),
    (["+callbacks.mine._target_=broken_pkg.Thing"], ["callbacks.mine._target_", "needs the package no_such_pkg"]),
    (["+callbacks.mine._target_=their_pkg.Net"], ["callbacks.mine", "their_pkg.Net", "num_classes"]),
    (["+callbacks.mine._target_=torch.nn.ReLU"], ["callbacks.mine", "torch.nn.ReLU is no Callback"]),
    (["callbacks=[seen]", "+callbacks.seen.pat=x"], ["callbacks.seen.pat", "Did you mean path"]),
    (["callbacks=[broken]"], ["broken.yaml", "line 2", "not readable as YAML"]),
    (["callbacks=[seen]"], ["callbacks.seen", "'path'"]),
    (["callbacks=[sen]"], ["callbacks=sen", "Did you mean seen"]),
    (["recipe/optimizer=nadan"], ["recipe/optimizer=nadan", "nadam"]),
    (["recipe/optimizer=nadam", "+recipe.optimizer.beta=[0.9,0.99]"], ["recipe.optimizer.beta", "Did you mean betas"]),
    (["recipe/schedule=one_cycle"], ["recipe.schedule.warmup_epochs", "OneCycleLR", "~recipe.schedule.warmup_epochs"]),
    *(
        (
            ["recipe/schedule=one_cycle", "~recipe.schedule.warmup_epochs", f"{key}={value}"],
            [key, "sets the rates itself"],
        )
        for key, value in {"recipe.bias_rate": 2, "trainer.scale_lr_from": 32}.items()
    ),
    (
        ["recipe/optimizer=nadam", "recipe.optimizer.lr=0.1"],
        ["recipe.optimizer.lr: there is no such option", "+recipe.optimizer.lr=..."],
    ),
    (["recipe.optimizer.lr=-1"], ["recipe.optimizer", "-1", "correct"]),
    (["recipe.schedule.power=2"], ["recipe.schedule.power", "no such option"]),
    (["+recipe.schedule.power=2"], ["recipe.schedule.power", "cosine has no such argument"]),
    (["recipe.loss._target_=torch.nn.CrossEntropyLos"], ["recipe.loss._target_", "CrossEntropyLoss"]),
    (["recipe.monitor=val/acuracy"], ["recipe.monitor=val/acuracy", "Did you mean val/accuracy"]),
    (
        ["+metrics.images._target_=their_pkg.Images", "recipe.monitor=val/images"],
        ["recipe.monitor=val/images", "higher or lower", "another metric"],
    ),
    (["+metrics.mine._target_=torch.nn.ReLU"], ["metrics.mine", "torch.nn.ReLU is no metric"]),
    (
        ["+metrics.boxes._target_=torchmetrics.detection.MeanAveragePrecision"],
        ["metrics.boxes", "does not take what classification predicts", "choose a metric for classification"],
    ),
    (["task._target_=torch.nn.ReLU", "+task=lit"], ["task"]),
    (["task=lit", "recipe.monitor=val_los"], ["recipe.monitor=val_los", "Did you mean val_loss"]),
    (["task=lit", "+task.widht=3"], ["task.widht", "Did you mean width"]),
    (["task=lit", "task._target_=their_pkg.NoTest"], ["task._target_=their_pkg.NoTest has no test_step"]),
    (["task=lit", "task._target_=torch.nn.ReLU", "~task.width"], ["task._target_=torch.nn.ReLU", "no Task"]),
    (["task=lit", "trainer.checkpoint_every_n_steps=2"], ["trainer.checkpoint_every_n_steps", "their_pkg.LitModel"]),
    (["task=lit", "recipe.augmentation.mixup=0.2"], ["recipe.augmentation.mixup", "their_pkg.LitModel"]),
    (["data=lit", "trainer.checkpoint_every_n_steps=2"], ["trainer.checkpoint_every_n_steps", "their_pkg.LitData"]),
    (["data=lit", "data.num_classes=9"], ["data.num_classes=9", "10 classes"]),
    (["data=lit", "data.image_size=28"], ["data.module", "32", "data.image_size"]),
    (["data=lit", "data.module._target_=their_pkg.Net"], ["data.module"]),
    (["data=lit", "+data.module.imags=4"], ["data.module.imags", "Did you mean images"]),
    *(
        (["+callbacks.mine._target_=their_pkg.Raises", f"+callbacks.mine.hook={hook}"], words)
        for hook in ("setup", "on_train_start", "on_train_batch_end")
        for words in [["callbacks.mine raised KeyError in their_pkg.py", "what they looked up", "correct it"]]
    ),
    pytest.param(
        ["loggers=[wandb]"],
        ["loggers.wandb", "wandb", "pip install 'convatlas[wandb]'"],
        marks=pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed"),
    ),
    pytest.param(
        ["loggers=[tensorboard]"],
        ["loggers.tensorboard", "tensorboard", "pip install 'convatlas[tensorboard]'"],
        marks=pytest.mark.skipif(find_spec("tensorboard") is not None, reason="tensorboard is installed"),
    ),
]


def files_below(folder: Path) -> set[Path]:
    """Return the files in a folder but for compiled modules."""
    return {path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=lambda value: " ".join(value)[:60] if value else "")
def test_bad_input(enter, theirs, prepared_digits, tmp_path, monkeypatch, arguments, words):  # noqa: PLR0917
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    (tmp_path / "broken_pkg.py").write_text("import no_such_pkg\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = files_below(tmp_path)
    data = [] if "data=lit" in arguments else [f"data.prepared={prepared_digits}"]
    run = ["--config-dir", str(theirs), *QUICK, "recipe.epochs=1", f"output_dir={tmp_path / 'run'}"]
    assert_one_sentence(enter("train", *run, *data, *arguments), *words)
    assert files_below(tmp_path) == before


@pytest.mark.slow
def test_a_classification_metric_for_detection(enter, prepared, theirs, tmp_path):
    options = ["data=digit_scenes", f"data.prepared={prepared['digit_scenes']}", f"output_dir={tmp_path / 'run'}"]
    options += source_options(prepared["digit_scenes"])
    options += ["model=retinanet_small", "recipe=detection", "metrics=[kappa]"]
    entered = enter("train", "--config-dir", str(theirs), *QUICK, *options)
    assert_one_sentence(entered, "metrics.kappa", "does not take what detection predicts")
    assert not (tmp_path / "run").exists()


def test_a_config_dir_may_stand_among_the_overrides(enter, theirs):
    entered = enter("train", "tracking=none", "--config-dir", str(theirs), "recipe.epochs=7", "--cfg", "job")
    assert entered.status == 0, entered.err
    assert yaml.safe_load(entered.out)["recipe"]["epochs"] == 7


@pytest.mark.slow
def test_a_search_over_the_batches_of_another_package(enter, theirs, tmp_path):
    space = ("recipe.optimizer.lr=choice(0.1,0.01)", "tune.trials=2", f"output_dir={tmp_path / 'tune'}")
    entered = enter("tune", *QUICK, "data=lit", *space, "--config-dir", str(theirs))
    assert entered.status == 0, entered.err
    trials = pd.read_csv(tmp_path / "tune" / "trials.csv")
    assert trials["state"].tolist() == ["complete"] * 2
    assert "data=lit" in yaml.safe_load((tmp_path / "tune" / "best.yaml").read_text())["overrides"]


def test_a_config_dir_that_is_not_there(enter, tmp_path):
    entered = enter("train", "--config-dir", str(tmp_path / "nowhere"), "tracking=none")
    assert_one_sentence(entered, "--config-dir", str(tmp_path / "nowhere"), "does not exist")


UNTRUSTED = ["os.system", "torch.os.system", "torch.hub.load", "subprocess.Popen", "evil_pkg.Thing", "builtins.eval"]


def test_a_file_from_elsewhere_names_only_known_libraries(compose, enter, tmp_path, monkeypatch):
    assert rank() == 0
    monkeypatch.setattr("convatlas.core.processes.die_with_parent", lambda *_: None)
    (tmp_path / "evil_pkg.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\nclass Thing: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    (folder,) = train(compose("recipe.epochs=1", "trainer.limit_batches=1"), strict=True)
    good = yaml.safe_load((folder / "config.yaml").read_text())
    (tmp_path / "image.png").touch()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    plan = tmp_path / "plan" / "adhoc" / "mine.yaml"
    plan.parent.mkdir(parents=True)
    for target in UNTRUSTED:
        for place in ("callbacks", "model", "nested"):
            values = json.loads(json.dumps(good))
            bad = {"_target_": target, "command": f"touch {tmp_path / 'called'}"}
            if place == "callbacks":
                values["callbacks"] = {"mine": bad}
            elif place == "model":
                values["model"]["_target_"] = target
            else:
                values["recipe"]["optimizer"]["lr"] = [bad]
            (folder / "config.yaml").write_text(yaml.safe_dump(values))
            plan.write_text(yaml.safe_dump({"config": values, "code": {}}))
            words = (f"_target_={target} is not of a known library", f"CONVATLAS_TRUST={target.partition('.')[0]}")
            for entered, file in (
                (enter("evaluate", f"run={folder}"), "config.yaml"),
                (enter("predict", f"run={folder}", str(tmp_path / "image.png")), "config.yaml"),
                (enter("train", "--from-plan", "adhoc/mine"), "mine.yaml"),
            ):
                assert_one_sentence(entered, file, *words)
    assert not (tmp_path / "imported").exists()
    assert not (tmp_path / "called").exists()
    values = json.loads(json.dumps(good)) | {"callbacks": {"mine": {"_target_": "evil_pkg.Thing"}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.setenv("CONVATLAS_TRUST", "evil_pkg")
    assert enter("evaluate", f"run={folder}").status == 0


OUTSIDE = {
    "adhoc/mine": ("train", lambda values: {"config": values | {"output_dir": "../elsewhere"}}, "output_dir"),
    "adhoc/yours": ("train", lambda values: {"config": values | {"work_dir": "/tmp/elsewhere"}}, "work_dir"),
    "data/digits": ("prepare", lambda values: {"config": values["data"], "page": {"file": "../page.html"}}, "page"),
    "data/more": (
        "prepare",
        lambda values: {"config": values["data"] | {"prepared": "runs/../../x"}, "page": {"file": "page.html"}},
        "prepared",
    ),
}


@pytest.mark.parametrize("key", OUTSIDE)
def test_a_plan_from_elsewhere_writes_into_its_project_alone(compose, enter, tmp_path, monkeypatch, key):
    monkeypatch.setattr("convatlas.core.processes.die_with_parent", lambda *_: None)
    project = tmp_path / "project"
    plan = project / "plan" / f"{key}.yaml"
    plan.parent.mkdir(parents=True)
    (project / "conf").symlink_to(ROOT / "conf")
    monkeypatch.chdir(project)
    command, changed, option = OUTSIDE[key]
    values = json.loads(compose("recipe.epochs=1").model_dump_json()) | {"output_dir": "runs/mine", "work_dir": None}
    plan.write_text(yaml.safe_dump(changed(values)))
    entered = enter(command, "--from-plan", key.removeprefix("data/"))
    assert_one_sentence(entered, plan.name, f"{option}=", "outside of this project")
    assert [path.name for path in tmp_path.iterdir()] == ["project"]


@pytest.mark.parametrize(
    "values",
    [
        *({"_target_": f"timm.models.{name}"} for name in ("load_state_dict", "push_to_hf_hub", "resume_checkpoint")),
        {"_target_": "torch.load"},
        {"_target_": "torchvision.models.get_weight"},
        {"_target_": "convatlas.core.files._RememberingFile", "file": "notes.txt", "mode": "wb"},
        {"_target_": "convatlas.training.results.write_failure", "folder": "mine"},
        {"_target_": "torch.optim.SGD", "lr": "${oc.create:{_target_: evil_pkg.Thing}}"},
        ["${oc.env:SECRET}"],
    ],
)
def test_what_could_run_or_read_anything_is_no_building_block(values):
    with pytest.raises(UserError, match=r"mine\.yaml"):
        check_trusted({"model": {"inner": values}}, "mine.yaml")


def test_whatever_the_configuration_names_may_stand_in_a_run():
    named = {
        name for file in ROOT.glob("conf/**/*.yaml") for name in re.findall(r"_target_: ([\w.]+)", file.read_text())
    }
    named |= {"timm.create_model", "timm.models.resnet18", "torchvision.models.resnet18", "torch.optim.NAdam"}
    assert len(named) > 100
    check_trusted([{"_target_": name} for name in sorted(named)], "mine.yaml")
