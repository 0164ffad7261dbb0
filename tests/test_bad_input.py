"""What a person can get wrong: one sentence that names it and the remedy, status 2, nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import socket
from pathlib import Path

import pytest
import torch
import yaml

from convatlas.core.errors import UserError
from convatlas.training.run import train
from helpers import assert_one_sentence

PLATEAU = "torch.optim.lr_scheduler.ReduceLROnPlateau"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["model=resnet_cifr"], ["model=resnet_cifr", "Did you mean", "resnet_cifar"]),
        (["recipe.optimizer.lrr=1"], ["recipe.optimizer.lrr", "Did you mean recipe.optimizer.lr"]),
        (["modl=lenet5"], ["modl", "Did you mean model"]),
        (["recipe.epochs=many"], ["recipe.epochs='many'", "valid integer"]),
        (["recipe.loss.class_weights=[1,2]"], ["recipe.loss.class_weights has 2 weights for 10 classes"]),
        (["+recipe.loss.auxiliary.nonsense=5"], ["recipe.loss.auxiliary.nonsense=5", "no such term"]),
        (["recipe.epochs=0"], ["recipe.epochs=0", "greater than or equal to 1"]),
        (["recipe.optimizer.lr=-1"], ["recipe.optimizer", "Invalid learning rate: -1"]),
        (["recipe.optimizer.momentum=-1"], ["recipe.optimizer", "Invalid momentum value: -1"]),
        (["recipe.optimizer.name=sgdd"], ["recipe.optimizer.name", "no such option"]),
        (["+recipe.surprise=1"], ["no key recipe.surprise"]),
        (["+model.surprise=1"], ["model.surprise", "no such option"]),
        (["model=timm", "model.model_name=vit_tiny_patch16_224"], ["does not take images", "32 pixels", "224"]),
        (["model=resnet18_small", "recipe.batch_size=1"], ["Batch normalisation", "recipe.batch_size"]),
        (["model=resnet18_small", "recipe.batch_size=4", "trainer.accumulate_grad_batches=4"], ["Batch normalisation"]),
        (["model=resnet_cifar", "model.depth=21"], ["model.depth=21", "20"]),
        (["model=resnet_cifar", "model.depth=deep"], ["model.depth='deep'", "valid integer"]),
        (["model=unet_small"], ["segmentation", "classification", "choose another"]),
        (["trainer.devices=2"], ["trainer.devices=2", "trainer.strategy=ddp"]),
        (["trainer=ddp", "recipe.batch_size=33"], ["recipe.batch_size=33", "multiple of 2"]),
        (["seeds=[1,1]"], ["seeds=[1, 1]", "twice"]),
        (["seeds=null"], ["seeds=None"]),
        (["seeds=3"], ["seeds=3"]),
        (["seeds=[true]"], ["seeds=[True]", "a number is wanted"]),
        (["recipe.epochs=true"], ["recipe.epochs=True", "a number is wanted"]),
        (["recipe.augmentation.random_area=[0.5,true]"], ["random_area=[0.5, True]", "a number is wanted"]),
        (["work_dir="], ["work_dir=''", "empty"]),
        (["data.prepared="], ["data.prepared=''", "empty"]),
        (["data.prepared=nowhere"], ["nowhere", "python -m convatlas.prepare data=digits"]),
        (["recipe.epochs="], ["recipe.epochs=''", "valid integer"]),
        (["recipe"], ["recipe"]),
        (["recipe.augmentation.scale=2"], ["recipe.augmentation.scale=2", "less than 1"]),
        (["model._target_=-1"], ["model=", "names its class by _target_"]),
        (["~model._target_"], ["model=", "names its class by _target_"]),
        (["model._target_=lenet"], ["model._target_=lenet", "no dotted name"]),
        (["~data.source._target_"], ["set data.source._target_"]),
        (["+recipe=inf"], ["must be a string or a list"]),
        (["variant=.."], ["variant='..'"]),
        (["variant=.work"], ["variant='.work'"]),
        (["model.num_classes=7"], ["7 classes", "model.num_classes=10"]),
        (["model.num_classes=12"], ["12 classes", "model.num_classes=10"]),
        (["model.in_channels=3"], ["model.in_channels"]),
        (["recipe.optimizer.lr=1e400"], ["recipe.optimizer.lr=inf", "finite"]),
        (["recipe.optimizer.lr=nan"], ["recipe.optimizer.lr=nan", "finite"]),
        (["tracking=mlflow", "tracking.register_as=a/b"], ["tracking.register_as='a/b'"]),
        (["tracking=mlflow", "tracking.register_as="], ["tracking.register_as=''"]),
        (["tracking=mlflow", "tracking.register_as=m", "tracking.alias=v1"], ["tracking.alias='v1'"]),
        (["tracking=mlflow", "tracking.alias=champion"], ["tracking.alias=champion", "tracking.register_as"]),
        (
            ["tracking.log_model=each_seed", "+task._target_=a.B"],
            ["tracking.log_model=each_seed", "a.B", "set tracking"],
        ),
        (["seed=1", "seeds=[2]"], ["seed=1", "seeds=[2]"]),
        (["recipe.loss.auxiliary={}"], ["recipe.loss.auxiliary={} changes nothing", "~recipe.loss.auxiliary.<entry>"]),
        (["recipe.loss.auxiliary=3"], ["recipe.loss.auxiliary=3 is no mapping", "{dice: 0.5}"]),
        (["+recipe.loss.auxiliary.dice=abc"], ["recipe.loss.auxiliary={'dice': 'abc'} is no mapping"]),
        (
            ["recipe.augmentation.crop_padding=32", "recipe.augmentation.crop_padding_mode=reflect"],
            ["recipe.augmentation.crop_padding=32", "set it below 32"],
        ),
        (["recipe.test_crop=0.001"], ["recipe.test_crop=0.001", "greater than or equal to 0.1"]),
        (["recipe.monitor="], ["recipe.monitor=''"]),
        (["weights="], ["weights=''"]),
        (
            ["recipe.protocol=last_epoch", "recipe.early_stopping_patience=1"],
            [
                "the configuration: recipe.protocol=last_epoch has no validation",
                "set recipe.early_stopping_patience=null.",
            ],
        ),
        (
            ["~recipe.schedule", f"+recipe.schedule={{_target_: {PLATEAU}}}", "recipe.protocol=last_epoch"],
            ["ReduceLROnPlateau follows the validation, which recipe.protocol=last_epoch has not"],
        ),
        (
            ["~recipe.schedule", f"+recipe.schedule={{_target_: {PLATEAU}, mode: min}}"],
            ["recipe.schedule.mode=min: a higher val/accuracy is better; leave mode out."],
        ),
        (
            ["~recipe.schedule", "+recipe.schedule={_target_: timm.scheduler.PlateauLRScheduler}"],
            ["timm's PlateauLRScheduler gets no metric here", "ReduceLROnPlateau"],
        ),
        (["trainer.seeds_at_once=0"], ["should be 'auto' or", "greater than or equal to 1"]),
        (["++recipe={ }"], ["++recipe={ } changes nothing"]),
        (["data.split.train_per_class=5"], ["+data.split.train_per_class=... gives it one"]),
        (["trainer=ddp", "trainer.seeds_at_once=2"], ["trainer.seeds_at_once=2", "2 processes"]),
        (["recipe.test_views=[flip,flip]"], ["recipe.test_views=['flip', 'flip']", "twice"]),
        (["trainer.threads=100000"], ["trainer.threads=100000"]),
        (["data.image_size=10000000"], ["memory does not suffice"]),
        (
            ["model=timm", "model.model_name=resnet10t", "+model.pretrained=true"],
            ["model.pretrained is not taken", "weights="],
        ),
        (["--experimental-rerun", "nowhere"], ["nowhere does not exist"]),
        (["--bogus"], ["--bogus", "key=value"]),
        (["--config-dir"], ["--config-dir", "expected one argument"]),
        (["-5"], ["-5", "key=value"]),
    ],
)
def test_a_wrong_override_of_train(enter, prepared_digits, tmp_path, arguments, words):
    prepared = [] if any(a.startswith("data.prepared") for a in arguments) else [f"data.prepared={prepared_digits}"]
    entered = enter("train", "tracking=none", f"output_dir={tmp_path / 'run'}", *prepared, *arguments)
    assert_one_sentence(entered, *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("plan", ["study=overvew"], ["study=overvew", "overview"]),
        ("plan", ["scale=huge"], ["scale=huge", "laptop"]),
        ("plan", ["seeds=a"], ["seeds"]),
        ("plan", ["study="], ["study="]),
        ("plan", ["seeds=1", "seeds=2"], ["seeds is given twice"]),
        ("resolve", ["overview"], ["overview", "no such option"]),
        ("evaluate", ["run=a", "run=b"], ["run is given twice"]),
        ("evaluate", ["run=a", "output_dir="], ["output_dir=''", "empty"]),
        ("predict", ["run=a", ""], ["empty"]),
        ("predict", ["run=a", "/dev/zero"], ["/dev/zero"]),
        ("prepare", ["data=digits", "data.source._target_=-1"], ["set data.source._target_"]),
        ("prepare", ["data=digits", "data.source._target_=a"], ["data.source._target_=a", "no dotted name"]),
        ("profile", ["model=lenet5", "model._target_=-1"], ["model._target_=-1", "no dotted name"]),
        ("prepare", ["data=digits", "data.split.seed=-1"], ["split.seed=-1"]),
        ("prepare", ["data=digit_scenes", "data.source.scenes=many"], ["data.source.scenes='many'"]),
        ("prepare", ["data=digit_scenes", "data.source.scenes=1e9"], ["1000000000"]),
        ("prepare", ["data=digit_scenes", "data.source.seed=-1"], ["seed", "-1"]),
        ("prepare", ["data=heart_phantom", "data.source.patients=1e9"], ["6000000000"]),
        ("prepare", ["data=mnist", "data.source.download=maybe"], ["data.source.download='maybe'"]),
        ("prepare", ["data=pascal_voc", "data.source.classes=cat"], ["data.source.classes='cat'"]),
        ("prepare", ["data=digits", "+data.source.digit=[1]"], ["data.source.digit", "digits"]),
        ("tune", ["--multirun", "recipe.optimizer.lr=choice(0.1,1)"], ["--multirun"]),
        ("plan", ["studdy=overview"], ["studdy", "Did you mean study"]),
        ("profile", ["model=timm", "model.model_name=resnet18x"], ["model.model_name=resnet18x", "resnet18"]),
        ("profile", ["format=xml"], ["format='xml'", "'text' or 'json'"]),
        ("profile", ["input_size=224"], ["input_size=224"]),
        ("profile", ["input_size=[1,0,28]"], ["input_size.1=0", "greater than or equal to 1"]),
        ("profile", ["input_size=[1,28,28,1]"], ["input_size"]),
        ("profile", ["batch_size=-4"], ["batch_size=-4", "greater than or equal to 1"]),
        ("profile", ["latency=maybe"], ["latency='maybe'"]),
        ("profile", ["model=lenet5", "input_size=[1,28,28]"], ["28"]),
        ("profile", ["model=fractalnet", "part=column_7"], ["part=column_7", "column_3"]),
        ("profile", ["model=lenet5", "part=column_1"], ["part=column_1", "has no parts"]),
        ("profile", ["model=fractalnet", "model.columns=0"], ["model.columns=0", "from 1 to 6"]),
        ("profile", ["model=stochastic_depth_resnet", "model.survival=0"], ["model.survival=0", "above 0"]),
        ("evaluate", ["run=nowhere"], ["run=nowhere", "train first"]),
        ("evaluate", [], ["run is missing"]),
        ("evaluate", ["run=nowhere", "tta=twenty"], ["tta='twenty'", "ten_crop"]),
        ("predict", ["run=nowhere", "no_such_image.png"], ["no_such_image.png does not exist"]),
        ("export", ["run=a", "format=timm", "calibration_images=5"], ["calibration_images=5", "quantise=int8"]),
        ("export", ["run=a", "format=timm,safetensors", "test_images=5"], ["test_images=5", "leave it out"]),
        ("search.__main__", ["search=random", "search.random_beside=true"], ["random_beside=true", "at random itself"]),
        (
            "search.__main__",
            ["search=nasnet_rl", "search.strategy.controller.operation_tanh=2"],
            ["tanh, which is null"],
        ),
        ("search.__main__", ["search=random", "search.strategy.trials=0"], [": search.strategy.trials=0"]),
        ("measure", ["run=a", "threads=100000"], ["threads.0='100000'", "less than or equal to 1024"]),
        ("predict", ["run=a", "b.png", "output_dir=/"], ["output_dir=/", "the folder that you are in"]),
        ("search.__main__", ["trainer.sync_batchnorm=true"], ["trainer.sync_batchnorm=true", "one process"]),
        ("ui", ["port=0"], ["port=0", "greater than or equal to 1"]),
        ("models", ["task=drawing"], ["task='drawing'"]),
        ("prepare", ["data=digitz"], ["data=digitz", "digits"]),
    ],
)
def test_a_wrong_option_of_the_other_commands(enter, name, arguments, words):
    module = "models.__main__" if name == "models" else name
    assert_one_sentence(enter(module, *arguments), *words)


def test_an_output_folder_that_cannot_be_made(enter, prepared_digits, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    entered = enter(
        "train", "tracking=none", f"data.prepared={prepared_digits}", f"output_dir={tmp_path / 'file' / 'run'}"
    )
    assert_one_sentence(entered, str(tmp_path / "file"))


def test_a_port_in_use(enter):
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        assert_one_sentence(enter("ui", f"port={busy.getsockname()[1]}"), "in use", "PORT=")


def test_a_checkpoint_of_another_net(compose, enter, prepared_digits):
    (lenet,) = train(compose(folder="lenet"), strict=True)
    (resnet,) = train(compose("model=resnet_cifar", "model.depth=8", "recipe.epochs=1", folder="resnet"), strict=True)
    entered = enter("evaluate", f"run={lenet}", f"checkpoint={resnet / 'best.ckpt'}")
    assert_one_sentence(entered, "belongs to another net", "config.yaml")


@pytest.mark.parametrize("damage", ["truncated", "text", "missing"])
def test_a_damaged_checkpoint(compose, enter, damage):
    (folder,) = train(compose(), strict=True)
    checkpoint = folder / "best.ckpt"
    if damage == "truncated":
        checkpoint.write_bytes(checkpoint.read_bytes()[: checkpoint.stat().st_size // 2])
    elif damage == "text":
        checkpoint.write_text("hello")
    else:
        checkpoint.unlink()
    assert_one_sentence(enter("evaluate", f"run={folder}"), "best.ckpt")


def test_a_checkpoint_that_would_run_code_is_not_unpickled(compose, enter, tmp_path):
    class Attack:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "attacked"),))

    (folder,) = train(compose(), strict=True)
    torch.save({"state_dict": Attack()}, folder / "best.ckpt")
    assert_one_sentence(enter("evaluate", f"run={folder}"), "best.ckpt", "not a checkpoint")
    assert not (tmp_path / "attacked").exists()


def test_a_run_from_an_older_configuration(compose, enter):
    (folder,) = train(compose(), strict=True)
    old = yaml.safe_load((folder / "config.yaml").read_text())
    old["recipe"]["warm_restarts"] = True
    (folder / "config.yaml").write_text(yaml.safe_dump(old))
    assert_one_sentence(enter("evaluate", f"run={folder}"), "config.yaml", "recipe.warm_restarts", "another version")


def test_a_finished_run_is_not_trained_again_and_not_overwritten(compose, enter, prepared_digits, tmp_path):
    common = ["model=lenet5_modern", "recipe.epochs=1", "trainer.threads=1", "tracking=none"]
    common += [f"data.prepared={prepared_digits}", f"output_dir={tmp_path / 'run'}"]
    assert enter("train", *common).status == 0
    before = (tmp_path / "run" / "seed=0" / "timing.json").read_bytes()
    again = enter("train", *common)
    assert again.status == 0
    assert "finished already" in again.out
    changed = enter("train", *common, "recipe.optimizer.lr=0.01")
    assert_one_sentence(changed, "recipe.optimizer.lr was 0.05, now 0.01", "overwrite=true")
    assert (tmp_path / "run" / "seed=0" / "timing.json").read_bytes() == before
    assert enter("train", *common, "recipe.optimizer.lr=0.01", "overwrite=true").status == 0
    assert (tmp_path / "run" / "seed=0" / "timing.json").read_bytes() != before


def test_a_file_that_was_half_written_in_a_finished_run_goes(compose):
    """A kill while the seconds of tracking are added to a run's timing."""
    (folder,) = train(compose("recipe.epochs=1"), strict=True)
    half, theirs = folder / f".timing.json.{2**22 + 1}.tmp", folder / f".notes.{2**22 + 1}.tmp"
    for overwrite in ("false", "true"):
        half.write_text("{")
        train(compose("recipe.epochs=1", f"overwrite={overwrite}"), strict=True)
        assert not half.exists()
    theirs.write_text("of the user's")
    with pytest.raises(UserError, match=r"holds \.notes.*, which train did not write"):
        train(compose("recipe.epochs=1", "overwrite=true"), strict=True)


def test_resuming_with_a_changed_configuration(compose, monkeypatch):
    from convatlas.tasks.classification import ClassificationTask

    losses = ClassificationTask.losses

    def fail_in_the_second_epoch(self, batch):
        if self.current_epoch == 1:
            raise MemoryError
        return losses(self, batch)

    monkeypatch.setattr(ClassificationTask, "losses", fail_in_the_second_epoch)
    with pytest.raises(MemoryError):
        train(compose(), strict=True)
    with pytest.raises(UserError, match=r"unfinished training .*recipe.batch_size was 128, now 64.*overwrite=true"):
        train(compose("recipe.batch_size=64"), strict=True)


def test_no_space_left_leaves_the_checkpoint_before_and_nothing_half_written(
    compose, enter, monkeypatch, prepared_digits, tmp_path
):
    fsync = os.fsync
    calls = 0

    def disk_fills_up(descriptor):
        nonlocal calls
        calls += 1
        if calls > 6:
            raise OSError(errno.ENOSPC, "No space left on device", "last.ckpt")
        fsync(descriptor)

    monkeypatch.setattr("convatlas.core.files.os.fsync", disk_fills_up)
    arguments = ["model=lenet5_modern", "recipe.epochs=6", "trainer.threads=1", "tracking=none"]
    arguments += [f"data.prepared={prepared_digits}", f"output_dir={tmp_path / 'run'}"]
    assert_one_sentence(enter("train", *arguments), "No space is left", "last.ckpt")
    left = {path.name for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert "last.ckpt" in left
    assert not [name for name in left if name.endswith(".tmp")]
    monkeypatch.setattr("convatlas.core.files.os.fsync", fsync)
    assert enter("train", *arguments).status == 0
    assert (tmp_path / "run" / "seed=0" / "metrics.json").exists()


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
WRITERS = {
    # What raises, what it raises, and what the sentence names.
    "torch": ("torch.save", RuntimeError("unexpected pos 64 vs 0; No space left on device"), "best.ckpt"),
    "pyarrow": ("pandas.DataFrame.to_parquet", FULL, "run/seed=0"),
    "matplotlib": ("matplotlib.figure.Figure.savefig", FULL, "run/seed=0"),
    "shutil": ("shutil.copy2", OSError(errno.ENOSPC, FULL.strerror, "best.ckpt", None, "to.ckpt"), "run/seed=0"),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_named_whoever_finds_it(enter, monkeypatch, prepared_digits, tmp_path, writer):
    target, error, named = WRITERS[writer]

    def full(*_arguments, **_options):
        raise error

    monkeypatch.setattr(target, full)
    small = ["model=lenet5_modern", "recipe.epochs=1", "trainer.limit_batches=1", "trainer.threads=1", "tracking=none"]
    entered = enter("train", *small, f"data.prepared={prepared_digits}", f"output_dir={tmp_path / 'run'}")
    assert_one_sentence(entered, "No space is left on the disk while writing", named)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".work"], "nothing is left half written"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("trainer.limit_batches=2",), "The loss became"),
        (("trainer.limit_batches=1",), "The validation loss became nan in epoch 1"),  # no step is made after it
        (("trainer.limit_batches=1", "recipe.protocol=last_epoch"), "The test loss became nan"),
    ],
)
def test_a_loss_that_is_no_number(enter, prepared_digits, tmp_path, options, words):
    small = ["model=lenet5_modern", "recipe.optimizer.lr=1e30", "tracking=none", "recipe.epochs=1", "trainer.threads=1"]
    folders = [f"data.prepared={prepared_digits}", f"output_dir={tmp_path / 'run'}"]
    assert_one_sentence(enter("train", *small, *options, *folders), words, "recipe.optimizer.lr")
    assert not list((tmp_path / "run").rglob("*"))


def test_weights_that_are_no_number_are_not_tested(compose, monkeypatch):
    from convatlas.tasks.base import DivergedError, Task

    def last_step_breaks(self):
        next(self.net.parameters()).data.fill_(float("nan"))

    monkeypatch.setattr(Task, "on_validation_end", last_step_breaks)  # as in detection, whose validation has no loss
    with pytest.raises(DivergedError, match=r"The weights .* became infinite or nan in epoch 1"):
        train(compose("recipe.epochs=1", "trainer.limit_batches=1"), strict=True)


def test_a_batch_larger_than_the_training_set_is_told(enter, prepared_digits, tmp_path):
    small = ["model=lenet5_modern", "tracking=none", "recipe.epochs=1", "trainer.threads=1", "recipe.batch_size=5000"]
    entered = enter("train", *small, f"data.prepared={prepared_digits}", f"output_dir={tmp_path / 'run'}")
    assert entered.status == 0, entered.err
    assert (
        "recipe.batch_size=5000 is more than the 1,222 images of training; each step takes all of them." in entered.err
    )


def test_in_the_pipeline_a_seed_that_diverges_is_told_and_the_others_go_on(compose, monkeypatch):
    from convatlas.tasks.classification import ClassificationTask

    losses = ClassificationTask.losses

    def seed_0_diverges(self, batch):
        terms = losses(self, batch)
        return {"loss": terms["loss"] * float("inf")} if self.seed == 0 else terms

    monkeypatch.setattr(ClassificationTask, "losses", seed_0_diverges)
    config = compose("recipe.epochs=1", seeds=(0, 1))
    diverged, trained = train(config, strict=False)
    assert {path.name for path in diverged.iterdir()} == {"failure.json", ".convatlas.json"}
    assert "The loss became" in json.loads((diverged / "failure.json").read_text())["error"]
    assert (trained / "metrics.json").exists()
    assert not list(config.output_dir.glob(".work/*"))


def test_a_broken_image_stops_a_prediction_before_anything_is_written(compose, enter, tmp_path):
    from PIL import Image

    (folder,) = train(compose("recipe.epochs=1"), strict=True)
    images = tmp_path / "images"
    images.mkdir()
    Image.new("L", (8, 8)).save(images / "good.png")
    (images / "broken.png").write_bytes(b"not an image")
    output = tmp_path / "predictions"
    arguments = [f"run={folder}", str(images), f"output_dir={output}"]
    assert_one_sentence(enter("predict", *arguments), "broken.png", "skip_broken=true")
    assert not output.exists()
    assert enter("predict", *arguments, "skip_broken=true").status == 0
    written = {"predictions.csv", "predictions.json", "00000_good.png", "contact_sheet.png", ".convatlas.json"}
    assert {p.name for p in Path(output).iterdir()} == written
