"""`import convatlas.timm_models` registers this project's own classification nets with timm.

    timm.create_model("fractalnet", num_classes=10, in_chans=3)
    timm.create_model("mobilenet_v1", features_only=True)

and timm's train script, given the import, take them by their names in `conf/model`. A name that timm has already keeps
its meaning there; ours is then `convatlas_<name>` (`convatlas_darknet53`). Arguments are those of the net's file in
`conf/model`, and of timm's `num_classes`, `in_chans`, `img_size`, `drop_rate` (our `dropout`), `drop_path_rate` and
`bn_momentum` those that the net has. There are no trained weights.

A net whose forward pass depends on the step (drop-path, stochastic depth) draws from the count of its training batches,
the same on every process. A schedule over the whole training (ScheduledDropPath) stands at its end throughout, since
timm does not tell how long the training is.

`features_only=True` collects, with hooks on the net as it is, the last maps of each resolution. It is not offered for
nets without stages (AlexNet's two towers, LeNet-5, the recurrent nets) nor for reversible nets, whose stages
hand on pairs of maps. Nets with fully connected layers take images of their one size there, too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import FeatureHookNet, PretrainedCfg, register_model
from torch import Tensor, nn

from convatlas.catalogue import build_net, list_models, read_about, read_model
from convatlas.core.seeds import mixed_seed
from convatlas.core.targets import keywords_of, locate
from convatlas.models.costs import on_meta_device
from convatlas.models.interfaces import FollowsTraining

__all__: list[str] = []

THEIR_NAMES = {"in_chans": "in_channels", "drop_rate": "dropout", "img_size": "image_size"}
"""timm's arguments by their names here."""
NOT_FOR_NETS = ("pretrained_cfg", "pretrained_cfg_overlay", "pretrained_model_args", "cache_dir")
NO_STAGES = ("alexnet", "lenet", "hyper_convnet", "hyper_recurrent", "revnet", "irevnet")
"""Modules of nets for which there is no `features_only`."""


def build(name: str, pretrained: bool = False, features_only: bool = False, **arguments: Any) -> nn.Module:
    """Build a net as timm's entry points do.

    Args:
        name: a name of `convatlas.list_models()`.
        pretrained: take the weights that `convatlas export format=timm` wrote; timm's name is then `local-dir:...`.
        features_only: return a net that gives a list of maps, one for each of `out_indices`.
        arguments: of the net, timm's or its own, and `out_indices` with `features_only`.

    Raises:
        ValueError: the net has no such argument, no weights, or no stages.
    """
    exported = _as_dict(arguments.get("pretrained_cfg")) if pretrained else {}
    if pretrained and exported.get("file") is None:
        raise ValueError(f"{name} has no trained weights; leave pretrained out, or take checkpoint_path.")
    indices = arguments.pop("out_indices", None)
    read = read_model(name)
    own = _own_arguments(arguments, read["model"])
    without_head = own.get("num_classes") == 0  # timm's word for features alone
    if without_head:
        own.pop("num_classes")
    channels = own.get("in_channels", read["model"]["in_channels"])
    sides = [own["image_size"]] * 2 if "image_size" in own else read["about"]["input_size"][1:]
    size = (channels, *sides)
    create = functools.partial(build_net, read["model"], **own)
    net = create()
    if exported:
        net.load_state_dict(load_file(Path(exported["file"]) / "model.safetensors"))
    if isinstance(net, FollowsTraining):
        net.register_forward_pre_hook(_Steps())
    if features_only:
        found = stages(create, size)
        net.feature_info = found  # type: ignore[assignment]
        return FeatureHookNet(net, out_indices=indices or tuple(range(len(found))), no_rewrite=True)
    _give_timms_attributes(net, create, name, size, own.get("num_classes", read["model"]["num_classes"]))
    net.pretrained_cfg.update({key: value for key, value in exported.items() if key in ("mean", "std", "label_names")})  # type: ignore[union-attr, operator]
    if without_head:
        reset_classifier(net, create, 0)
    return net


def _as_dict(cfg: Any) -> dict[str, Any]:
    """Return timm's `pretrained_cfg`, which it hands over in several forms, as a dictionary."""
    return dict(cfg) if isinstance(cfg, dict) else cfg.to_dict() if isinstance(cfg, PretrainedCfg) else {}


def _own_arguments(arguments: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    """Return timm's arguments under our names.

    A rate of 0, which timm's train script gives to all nets, is left out where the net has no such rate; one rate
    stands for all where the net has several.
    """
    own = {THEIR_NAMES.get(key, key): value for key, value in arguments.items() if key not in NOT_FOR_NETS}
    for rate in {"dropout", "drop_path_rate"} & set(own):
        if isinstance(model.get(rate), list) and isinstance(own[rate], float | int):
            own[rate] = [own[rate]] * len(model[rate])
        elif own[rate] == 0 and rate not in keywords_of(locate(model["_target_"])).named:
            del own[rate]
    return own


class _Steps:
    """A hook before a net's forward pass that tells it of every training batch."""

    def __init__(self) -> None:
        self.done = 0

    def __call__(self, net: nn.Module, _inputs: Any) -> None:
        if net.training:
            assert isinstance(net, FollowsTraining)
            net.begin_step(self.done, self.done + 1, mixed_seed(self.done))
            self.done += 1


# ---- the classifier -------------------------------------------------------------------------------------------------


def _give_timms_attributes(
    net: nn.Module, create: Callable[..., nn.Module], name: str, input_size: tuple[int, ...], num_classes: int
) -> None:
    own: Any = net
    own.num_classes = num_classes
    own.get_classifier = functools.partial(get_classifier, net)
    own.reset_classifier = functools.partial(reset_classifier, net, create)
    classifier = next(iter(_classifiers(net)), None)
    if classifier is not None:
        layer: Any = net.get_submodule(classifier)
        own.num_features = own.head_hidden_size = getattr(layer, "in_features", None) or layer.in_channels
    own.pretrained_cfg = own.default_cfg = {
        "architecture": name,
        "num_classes": num_classes,
        "input_size": input_size,
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "mean": IMAGENET_DEFAULT_MEAN if input_size[0] == 3 else (0.5,) * input_size[0],
        "std": IMAGENET_DEFAULT_STD if input_size[0] == 3 else (0.5,) * input_size[0],
        "first_conv": next(key for key, layer in net.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)),
        "classifier": classifier,
    }


def _classifiers(net: nn.Module) -> list[str]:
    """Return the names of the layers that give one value for each class: the last one, then auxiliary ones."""
    names = [
        name
        for name, layer in net.named_modules()
        if (layer.out_features if isinstance(layer, nn.Linear) else getattr(layer, "out_channels", None))
        == net.num_classes
    ]
    main = [name for name in names if not name.startswith("auxiliary")]
    return [*main[-1:], *(name for name in names if name.startswith("auxiliary"))]


def get_classifier(net: nn.Module) -> nn.Module:
    """Return the layer that gives the logits; raises ValueError for a net without one, LeNet-5 with its codes."""
    for name in _classifiers(net):
        return net.get_submodule(name)
    raise ValueError(f"{type(net).__name__} has no layer of weights that gives the logits.")


def reset_classifier(
    net: nn.Module, create: Callable[..., nn.Module], num_classes: int, global_pool: str | None = None
) -> None:
    """Draw all layers anew whose shapes depend on the number of classes; 0 leaves out the last layer.

    Args:
        net: the net.
        create: builds it for another `num_classes`.
        num_classes: classes, or 0 for features.
        global_pool: None; the pooling of a net is fixed.

    Raises:
        ValueError: another pooling is asked for, or the net has no such layer.
    """
    if global_pool is not None:
        raise ValueError(f"global_pool={global_pool}: the pooling of {type(net).__name__} is fixed; leave it out.")
    if num_classes == 0:
        get_classifier(net)
        layers: dict[str, nn.Module] = {name: nn.Identity() for name in _classifiers(net)}
    else:
        other = create(num_classes=num_classes).to(next(net.parameters()).device)
        layers = {name: layer for name, layer in other.named_modules() if _shapes(layer) != _shapes(net, name)}
    for name, layer in layers.items():
        parent, _, child = name.rpartition(".")
        setattr(net.get_submodule(parent), child, layer)
    net.num_classes = num_classes  # type: ignore[assignment]


def _shapes(net: nn.Module, name: str = "") -> dict[str, torch.Size]:
    """Return the shapes of a layer's own tensors."""
    layer = net.get_submodule(name) if name else net
    own = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
    return {key: tensor.shape for key, tensor in own}


# ---- maps of the stages ---------------------------------------------------------------------------------------------


def _is_identity(module: nn.Module) -> bool:
    return isinstance(module, nn.Identity) or (isinstance(module, nn.Sequential) and len(module) == 0)


def stages(create: Callable[[], nn.Module], input_size: tuple[int, ...]) -> list[dict[str, Any]]:
    """Return timm's `feature_info` of a net: for each resolution the last module that gives it.

    A module within a block that goes on to another resolution does not count. Resolutions are those from the smallest
    up to the first that is only seen inside a block. The net runs once, on the meta device.

    Args:
        create: builds the net.
        input_size: channels, height and width of an image.

    Raises:
        ValueError: there are fewer than two such modules.
    """
    net = on_meta_device(create).eval()
    family = type(net).__module__.rpartition(".")[2]
    calls: list[tuple[str, int, int]] = []

    def note(module: nn.Module, _inputs: Any, output: Any, *, name: str) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and not _is_identity(module):
            calls.append((name, output.shape[1], output.shape[2]))

    for name, module in net.named_modules():
        module.register_forward_hook(functools.partial(note, name=name))
    with torch.no_grad():
        net(torch.zeros(1, *input_size, device="meta"))
    names = [name for name, _, _ in calls]
    sides = {name: side for name, _, side in calls}

    def ends_a_stage(name: str, side: int) -> bool:
        parents = [name.rsplit(".", dots)[0] for dots in range(1, name.count("."))]  # but for the net's own children
        return names.count(name) == 1 and all(sides.get(parent, side) == side for parent in parents)

    found: list[dict[str, Any]] = []
    for side in sorted(set(sides.values())):
        ends = [(name, channels) for name, channels, height in calls if height == side and ends_a_stage(name, side)]
        if ends:
            name, channels = ends[-1]
            found.insert(0, {"num_chs": channels, "reduction": round(input_size[1] / side), "module": name})
        elif found:
            break
    if family in NO_STAGES or len(found) < 2:
        raise ValueError(f"features_only: {type(net).__name__} has no stages that hand on one map each; leave it out.")
    return found


# ---- registration ---------------------------------------------------------------------------------------------------


def _register(name: str) -> None:
    registered = f"convatlas_{name}" if timm.is_model(name) else name

    def entry(pretrained: bool = False, **arguments: Any) -> nn.Module:
        return build(name, pretrained, **arguments)

    entry.__name__ = entry.__qualname__ = registered
    entry.__doc__ = f"`conf/model/{name}.yaml`; see `build`."
    globals()[registered] = entry
    register_model(entry)


def name_of(target: str) -> str | None:
    """Return the name in timm of a net whose section `model` has this `_target_`; None where it has none."""
    for name in list_models(task="classification"):
        registered = f"convatlas_{name}" if f"convatlas_{name}" in globals() else name
        if registered in globals() and read_model(name)["model"]["_target_"] == target:
            return registered
    return None


for _name in list_models(task="classification"):
    if read_about(_name)["origin"] == "own":
        _register(_name)
