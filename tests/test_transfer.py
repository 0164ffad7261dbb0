"""Transfer learning through the whole training: from a run or a file, frozen or fine-tuned, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from convatlas.core.config import RunConfig
from convatlas.core.errors import UserError
from convatlas.tasks.views import with_views
from convatlas.training.run import train
from convatlas.training.transfer import read_weights, weights_digest
from helpers import source_options

MODEL = ("model=resnet_cifar", "model.depth=8", "model.width=4", "recipe.epochs=1", "trainer.limit_batches=2")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    saved = torch.load(folder / "best.ckpt", weights_only=True)["state_dict"]
    return {key.removeprefix("net."): value.contiguous() for key, value in saved.items() if key.startswith("net.")}


@pytest.fixture(scope="module")
def finished() -> list[Path]:
    """Keep the run that the others begin from: it is trained once."""
    return []


@pytest.fixture
def donor(compose, finished, tmp_path_factory) -> Path:
    """Return the folder of all seeds of a finished run."""
    if not finished:
        config = compose(*MODEL, seeds=[0, 1])
        finished += train(config.model_copy(update={"output_dir": tmp_path_factory.mktemp("donor")}), strict=True)
    return finished[0].parent


def test_frozen_features_stay_to_the_bit_and_the_optimiser_holds_the_head_alone(compose, donor, capsys):
    config = compose(*MODEL, f"weights='{donor}'", "recipe=frozen_features", folder="frozen", seeds=[1])
    (folder,) = train(config, strict=True)
    before, after = weights(donor / "seed=1"), weights(folder)
    changed = {key for key in after if not torch.equal(before[key], after[key])}
    assert changed == {"classifier.weight", "classifier.bias"}
    state = torch.load(folder / "last.ckpt", weights_only=True)["optimizer_states"][0]
    assert [len(group["params"]) for group in state["param_groups"]] == [2]
    said = capsys.readouterr().out
    assert f"The net begins with the weights of {donor}." in said
    assert "Trained: 170 of " in said
    identity = json.loads((folder / "identity.json").read_text())
    assert identity["weights"] == weights_digest(config, 1) != weights_digest(config, 0)


def test_fine_tuning_the_last_stage_keeps_the_stages_before(compose, donor):
    config = compose(*MODEL, f"weights='{donor / 'seed=0'}'", "recipe=fine_tune_last_stage", folder="stage")
    (folder,) = train(config, strict=True)
    before, after = weights(donor / "seed=0"), weights(folder)
    changed = {key.partition(".")[0] for key in after if not torch.equal(before[key], after[key])}
    assert changed == {"stage3", "classifier"}


def test_two_trainings_from_the_same_weights_are_equal_to_the_bit(compose, donor, tmp_path):
    file = tmp_path / "net.safetensors"
    save_file(weights(donor / "seed=0"), file)
    sources = {"of_run": donor / "seed=0", "of_file": file, "of_checkpoint": donor / "seed=0" / "best.ckpt"}
    configs = [
        compose(*MODEL, f"weights='{source}'", "recipe=fine_tune_all", folder=name) for name, source in sources.items()
    ]
    assert len({weights_digest(config, 0) for config in configs}) == 1
    results = [weights(train(config, strict=True)[0]) for config in configs]
    for other in results[1:]:
        assert all(torch.equal(results[0][key], other[key]) for key in other)
    before = weights(donor / "seed=0")
    assert not any(torch.equal(results[0][key], value) for key, value in before.items() if value.ndim == 4)


def test_changed_weights_are_another_training(compose, donor, tmp_path):
    file = tmp_path / "net.safetensors"
    save_file(weights(donor / "seed=0"), file)
    config = compose(*MODEL, f"weights='{file}'", "recipe=fine_tune_all", folder="again")
    train(config, strict=True)
    save_file(weights(donor / "seed=1"), file)
    with pytest.raises(UserError, match=r"other settings \(weights was .*overwrite=true"):
        train(config, strict=True)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere/seed=0", "does not exist; name a finished run"),
        ("nothing.safetensors", "does not exist; name a finished run"),
        ("empty", "holds no best.ckpt of seed 0; train it first"),
        ("net.pth", r"is no \.safetensors file"),
        ("broken.safetensors", "cannot be read"),
        ("broken.ckpt", "is damaged or not a checkpoint"),
        ("resnet18x", "neither a run, nor a file, nor a tag of timm. Did you mean resnet18"),
    ],
)
def test_what_cannot_be_read_is_told_before_anything_is_written(compose, tmp_path, monkeypatch, source, words):
    (tmp_path / "empty").mkdir()
    for name in ("net.pth", "broken.safetensors", "broken.ckpt"):
        (tmp_path / name).write_text("no weights")
    config = compose(*MODEL, f"weights='{source}'", "recipe=fine_tune_all")
    config = config.model_copy(
        update={"data": config.data.model_copy(update={"prepared": config.data.prepared.resolve()})}
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        train(config, strict=True)
    assert not config.output_dir.exists()


def test_a_seed_that_was_not_trained_is_told(donor):
    with pytest.raises(UserError, match=r"holds no best\.ckpt of seed 7; it has seed=0, seed=1: name one of them"):
        read_weights(donor, {}, 7)


def test_weights_of_another_net_are_refused_before_anything_is_written(compose, donor):
    config = compose(*MODEL, "model.depth=14", f"weights='{donor}'", folder="other")
    with pytest.raises(UserError, match=r"^weights=.* lacks .* take weights of the same architecture"):
        train(config, strict=True)
    assert not config.output_dir.exists()


def test_timm_brings_its_weights_for_the_channels_of_the_data(monkeypatch):
    import timm

    create = timm.create_model

    def without_network(name, *, pretrained, **options):
        assert pretrained
        torch.manual_seed(3)
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", without_network)
    state = read_weights("resnet18.a1_in1k", {"in_channels": 1}, 0)
    assert state["conv1.weight"].shape == (64, 1, 7, 7)
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(UserError, match=r"^weights=resnet18\.a1_in1k cannot be fetched \(OSError\)"):
        read_weights("resnet18.a1_in1k", {"in_channels": 1}, 0)


def test_freezing_is_for_classification(compose, prepared):
    options = source_options(prepared["heart_phantom"])
    data = ("data=heart_phantom", f"data.prepared={prepared['heart_phantom']}", "model=unet_small")
    config = compose(*data, "recipe=segmentation", "recipe.trainable=head", *options)
    with pytest.raises(UserError, match=r"^recipe\.trainable=head is for classification; for segmentation use all"):
        train(config, strict=True)


# ---- several views --------------------------------------------------------------------------------------------------


def test_a_recipe_may_test_the_net_on_several_views(compose):
    config = compose(*MODEL, "recipe.test_views=[flip,multi_scale]")
    (folder,) = train(config, strict=True)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics["parts"]) == {"flip", "multi_scale"}
    assert set(metrics["parts"]["flip"]) == set(metrics["test"])


def test_views_of_other_sizes_are_refused_for_a_net_of_one_size(compose):
    from convatlas.models.build import build_model

    config: RunConfig = compose("model=vgg_small", "recipe.test_views=[multi_scale]")
    with pytest.raises(
        UserError, match=r"^recipe\.test_views=multi_scale: this net does not take images of other sizes"
    ):
        train(config, strict=True)
    with_views(build_model(config.model), "ten_crop", config, "tta=ten_crop")


def test_sizes_that_a_net_does_not_take_are_refused_before_anything_is_written(compose):
    config = compose("model=vgg_small", "recipe.augmentation.image_sizes=[24,32]")
    with pytest.raises(UserError, match=r"^recipe\.augmentation\.image_sizes: this net takes no images of 24 pixels"):
        train(config, strict=True)
    assert not config.output_dir.exists()


def test_a_net_that_takes_any_size_trains_on_several(compose):
    (folder,) = train(compose(*MODEL, "recipe.augmentation.image_sizes=[24,32,40]"), strict=True)
    assert (folder / "metrics.json").exists()
