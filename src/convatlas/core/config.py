"""The typed form of a run's configuration.

Hydra composes a run from the files under `conf/`; `RunConfig` checks it: every key known, every type and range right.
What is checked here is what the rest of the code relies on; the values themselves live in `conf/` alone.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from convatlas.core.digests import flat
from convatlas.core.errors import UserError
from convatlas.core.older import upgraded
from convatlas.core.passwords import split_address

Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0.0, lt=1.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Name = Annotated[str, Field(min_length=1)]


def _rising(areas: tuple[float, float]) -> tuple[float, float]:
    if not 0 < areas[0] <= areas[1]:
        raise ValueError("the least share of the area comes first and is above 0, for example [0.08, 1.0]")
    return areas


View = Literal["flip", "ten_crop", "multi_scale", "shifted", "wide", "cropped", "warped"]
Areas = Annotated[tuple[Share, Share], AfterValidator(_rising)]


def _with_target(section: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(section.get("_target_"), str):
        raise ValueError("a section like this names its class by _target_, for example _target_: torch.optim.SGD")
    return section


Target = Annotated[dict[str, Any], AfterValidator(_with_target)]
"""`_target_` and arguments of an object, built by Hydra's `instantiate`; its class checks its own arguments."""
Targets = dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")], Target]
"""Such objects by name."""


def types_in(annotation: Any) -> Iterator[Any]:
    """Return the types that an annotation is made of."""
    yield typing.get_origin(annotation) or annotation
    for argument in typing.get_args(annotation):
        yield from types_in(argument)


def keys_of(shape: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the keys of a section and of those in it, `recipe.epochs` for example."""
    for name, field in shape.model_fields.items():
        inner = [kind for kind in types_in(field.annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if inner:
            yield from keys_of(inner[0], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


class Kind(BaseModel):
    """One of the sections among which a key `kind` chooses: no unknown keys, nothing changed after it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Section(Kind):
    """A part of the configuration, whose values are what they look like."""

    @field_validator("*", mode="before")
    @classmethod
    def _means_what_it_says(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse what pydantic would read as something else: true as 1, and an empty path as the folder one is in."""
        wanted = list(types_in(cls.model_fields[str(info.field_name)].annotation))
        is_number = (int in wanted or float in wanted) and bool not in wanted
        if is_number and any(isinstance(each, bool) for each in (value if isinstance(value, list) else [value])):
            raise ValueError("a number is wanted, not true or false")
        if value == "" and Path in wanted:
            raise ValueError("it is empty; name a path")
        return value


# ---- data -----------------------------------------------------------------------------------------------------------


class DataConfig(Section):
    """`conf/data`: which prepared data set a net sees, and how it was made."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    task: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    """What the data are for: a file of `conf/task`."""
    source: dict[str, Any]
    """`_target_` and arguments of the function that reads or makes the raw images; see `convatlas.data.sources`."""
    root: Path
    """Where raw files lie. Nothing is ever written there."""
    prepared: Path
    """Where `python -m convatlas.prepare` writes the three splits and the data card."""
    image_size: Positive
    """Side of the square images that nets get, in pixels; prepared images of another size are resized on the way."""
    in_channels: Positive
    """Channels that nets get: those of the images; in segmentation one more adds their Canny edges as the last."""
    num_classes: Annotated[int, Field(ge=2)]
    """Classes a net distinguishes; in segmentation and detection the background is class 0 and counted."""
    split: SplitConfig
    storage: Literal["arrays", "shards"] = "arrays"
    """`arrays`: images of one size, one memory-mapped array a split. `shards`: encoded images of any sizes."""
    stored_side: Positive | None = None
    """For a source whose images are files. `arrays`: side of the squares they become. `shards`: larger images are
    stored with a shorter side of so many pixels; null stores the files' own bytes."""
    module: Target | None = None
    """A LightningDataModule of another package that gives the batches; nothing is prepared then, and `source`, `root`,
    `prepared` and `split` are left out."""

    @model_validator(mode="before")
    @classmethod
    def _without_preparation(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("module") is None:
            return values
        nothing = {"validation": 0.0, "test": 0.0, "seed": 0}
        return {"source": {}, "root": Path(), "prepared": Path(), "split": nothing, **values}

    @model_validator(mode="after")
    def _has_a_source(self) -> DataConfig:
        if self.module is None and not isinstance(self.source.get("_target_"), str):
            raise ValueError("data.source names no function; set data.source._target_")
        return self


class SplitConfig(Section):
    """How validation, and the test where there is no official one, are cut: stratified, whole groups together."""

    validation: Rate
    test: Rate
    """Fraction held out as test where the source has no official test split; 0 where it has one."""
    seed: Annotated[int, Field(ge=0)]
    train_per_class: Positive | None = None
    """Images of each class that the training split keeps, drawn by the seed, others are not used; null keeps all."""


# ---- recipe ---------------------------------------------------------------------------------------------------------


class Augmentation(Section):
    """What happens to training images, drawn anew for each image and epoch. Zero, null or false switches a part off.

    What has a default here came later; runs that were finished before can so be read.
    """

    crop_padding: Annotated[int, Field(ge=0)]
    """Pad by so many pixels on each side, then crop the original size at random."""
    crop_padding_mode: Literal["black", "mean", "reflect"] = "black"
    """What is padded with: black, the mean colour of the training images, or the image mirrored at its border."""
    horizontal_flip: bool
    cutout: Annotated[int, Field(ge=0)]
    """Side of one square, in pixels, that is set to the mean (DeVries and Taylor 2017)."""
    rotation_degrees: Annotated[float, Field(ge=0, le=180)]
    scale: Annotated[float, Field(ge=0, lt=1)]
    """Zoom drawn from [1 - scale, 1 + scale]."""
    brightness: Annotated[float, Field(ge=0, lt=1)]
    """Factor drawn from [1 - brightness, 1 + brightness]."""
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Factor on the distance from an image's mean grey, drawn from [1 - contrast, 1 + contrast]."""
    saturation: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Factor on the distance from each pixel's grey, drawn from [1 - saturation, 1 + saturation]; 3 channels only."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Turn of the colours, a share of their circle drawn from [-hue, hue]; 3 channels only."""
    colour_noise: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Deviation of AlexNet's noise along the principal components of the training pixels; the paper has 0.1."""
    random_area: Areas | None = None
    """Inception's crops: a share of the area drawn from this range, height to width from 3/4 to 4/3, scaled back."""
    zoom_out: Annotated[float, Field(ge=1, le=8)] = 1.0
    """Every second image is laid on a black canvas up to so many times as wide and high, and scaled back (SSD)."""
    least_box_area: Share = 0.3
    """Detection: of a box that a crop cuts, the least share of its area that must be left for it to stay."""
    rand_augment: Annotated[int, Field(ge=0, le=8)] = 0
    """RandAugment's number of operations on each image; the paper has 1 to 3."""
    rand_augment_magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """Their strength, from 0 to 30."""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """Mixup's alpha: two images and their labels are blended, the share drawn from Beta(alpha, alpha)."""
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    """CutMix's alpha: a rectangle comes from another image. Of two that are on, each image has one or the other."""
    image_sizes: tuple[Positive, ...] = ()
    """Multi-scale training: the side of a batch's images is drawn from these; empty takes `data.image_size`."""


class Recipe(Section):
    """`conf/recipe`: how a net is trained."""

    epochs: Positive
    batch_size: Positive
    """Images in one optimiser step over all devices."""
    evaluation_batch_size: Positive
    optimizer: Target
    """A class of torch or timm; `lr` and `weight_decay` in it are read by the training as well."""
    decay_norms_and_biases: bool
    no_decay: tuple[str, ...] = ()
    """Further parameters that do not decay, by patterns of their names, for example `*.conv_dw.*`."""
    bias_rate: Annotated[float, Field(gt=0)] = 1.0
    """Biases have so many times the learning rate; Caffe's nets have 2."""
    schedule: Target
    """A function of `convatlas.tasks.optimisation`, or a schedule of torch or timm; `interval` is `step` or `epoch`."""
    loss: Target
    """What logits cost, called with logits and class numbers; `auxiliary` has the weights of a task's other terms."""
    augmentation: Augmentation
    trainable: Literal["all", "last_stage", "head"] = "all"
    """What is trained: everything, the last stage with the classifier, or the classifier alone; the rest is frozen."""
    test_views: tuple[View, ...] = ()
    """Views of the test images with which a finished net is tested as well, for classification; see
    `convatlas.tasks.views`."""
    test_crop: Annotated[float, Field(ge=0.1, le=1)] = 1.0
    """Classification: side of the centre square that is validated and tested, as a share of the image's shorter side;
    0.875 is 224 of 256 pixels."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None
    """Keep an exponential moving average of the weights, and evaluate and save that."""
    gradient_clip_norm: Annotated[float, Field(gt=0)] | None
    gradient_norms: bool
    """Log the norm of every layer's gradient at each epoch."""
    activation_maps: bool = False
    """Classification: draw where a net that ends with a spatial mean and one linear layer finds the class."""
    early_stopping_patience: Positive | None
    """Stop after so many epochs without a better validation score."""
    monitor: Name | None
    """The validation metric that chooses the best epoch; null takes the task's own."""
    protocol: Literal["best_epoch", "last_epoch"] = "best_epoch"
    """`best_epoch`: train on the training split, and test the epoch with the best validation metric. `last_epoch`:
    train on the images of both splits, without validation, and test the last epoch, as most papers did."""

    @model_validator(mode="after")
    def _validates(self) -> Recipe:
        for key in ("monitor", "early_stopping_patience"):
            if self.protocol == "last_epoch" and getattr(self, key) is not None:
                raise ValueError(f"recipe.protocol=last_epoch has no validation; set recipe.{key}=null")
        return self


# ---- machine and tracking -------------------------------------------------------------------------------------------


class TrainerConfig(Section):
    """`conf/trainer`: the machine a run uses. Threads and workers belong to it because they decide the last bits."""

    accelerator: Literal["cpu", "gpu", "auto"]
    devices: Positive
    """Processes on each machine; every GPU has one."""
    num_nodes: Positive
    strategy: Literal["single", "ddp", "fsdp"]
    """`ddp`: every process has the whole net. `fsdp`: gradients and optimiser state are divided among them."""
    precision: Literal["32-true", "tf32-true", "bf16-mixed", "16-mixed", "64-true"]
    """`32-true` is float32 everywhere. `tf32-true` lets a GPU round the factors of its float32 products to 10 bits."""
    channels_last: bool = False
    """Keep images and kernels with the channels innermost in memory."""
    compile: Literal["default", "reduce-overhead", "max-autotune"] | None = None
    """The mode of `torch.compile`; null runs the net as it is written. `reduce-overhead` takes CUDA graphs."""
    accumulate_grad_batches: Positive = 1
    """Put each batch through the net in so many equal pieces; an optimiser step is still `recipe.batch_size` images."""
    scale_lr_from: Positive | None = None
    """The batch size that `recipe.optimizer.lr` is stated for: the rate used is `lr * batch_size / scale_lr_from`
    (Goyal et al. 2017, section 2.1). null takes the rate as it is."""
    seeds_at_once: Literal["auto"] | Positive = "auto"
    """Seeds of a run that train at the same time, each in a process of its own. `auto`: as many as there are cores for
    their threads and workers (on the CPU up to twice as many, if none would be left for a second round) and, on a GPU,
    as fit into its memory. It decides no bits."""
    threads: Annotated[int, Field(ge=1, le=1024)]
    workers: Annotated[int, Field(ge=0, le=1024)]
    resident: Literal["auto", True, False] = "auto"
    """Keep the pixels of the data set in the memory of the device that trains, and make batches there, without workers.
    `auto` does so on a GPU, for prepared arrays of up to 2 GiB."""
    sync_batchnorm: bool
    deterministic: bool
    progress_bar: bool
    checkpoint_every_n_steps: Positive | None
    """Save for resuming so often within an epoch as well; null saves at the end of each epoch."""
    limit_batches: Positive | None
    """Stop each epoch after so many batches, for trying things out; null trains on all."""

    @property
    def processes(self) -> int:
        """Processes of the whole training."""
        return self.devices * self.num_nodes


class TrackingConfig(Section):
    """`conf/tracking`: what goes to MLflow."""

    enabled: bool
    uri: Annotated[str | None, PlainSerializer(lambda uri: uri and split_address(uri).shown)]
    """A tracking server or database; null takes MLFLOW_TRACKING_URI, and without it `mlflow.db` here. A password in it
    is used and never written down; MLFLOW_TRACKING_PASSWORD is the better place for one."""
    system_metrics: bool
    log_model: bool | Literal["each_seed"]
    """Log the net of the best seed as an MLflow model, with signature and input example, so that it can be served;
    `each_seed` logs that of every seed."""
    register_as: str | None
    """Register the model of the best seed under this name."""
    alias: str | None
    """Alias of the registered version, for example `champion`."""


# ---- a run ----------------------------------------------------------------------------------------------------------


class About(Section):
    """What a net is, for lists and reports; a net of another package may leave it out."""

    title: str
    task: Literal["classification", "detection", "segmentation"] | None = None
    """null: whatever the data are for."""
    paper: str = ""
    year: int | None = None
    origin: str = ""
    """The package that has its code: `own` (this project), `timm`, `torchvision` or another."""
    input_size: tuple[Positive, Positive, Positive] | None = None
    """The paper's channels, height and width, at which costs are counted."""
    deviations: tuple[str, ...] = ()
    """Where the net differs from its paper."""


class RunConfig(Section):
    """One variant of one study: a net, its data and its training, for one or several seeds."""

    study: Annotated[str, Field(pattern=r"^[a-z0-9_-]+$")]
    variant: Annotated[str, Field(pattern=r"^[A-Za-z0-9_=-][A-Za-z0-9_.=-]*$")]
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(min_length=1)]
    output_dir: Path
    """Everything of the run goes below it: one folder a seed."""
    work_dir: Path | None
    """Where an unfinished training keeps its checkpoints; null takes `<output_dir>/.work`."""
    overwrite: bool
    """Throw away what `output_dir` holds of these seeds, and train again."""
    task: Target
    """The task's class and, in `metrics`, its metrics."""
    metrics: Targets = {}
    """Metrics of torchmetrics beside the task's own."""
    callbacks: Targets = {}
    """Lightning callbacks beside the pipeline's own."""
    loggers: Targets = {}
    """Lightning loggers beside MLflow."""
    data: DataConfig
    about: About
    model: Target
    """`_target_` and keyword arguments of the net."""
    weights: Name | None = None
    """What the net starts from: a finished run, a `.safetensors` file or a tag of timm; null draws new weights."""
    recipe: Recipe
    trainer: TrainerConfig
    tracking: TrackingConfig

    @model_validator(mode="after")
    def _fits_together(self) -> RunConfig:
        task = self.about.task
        if task not in (None, self.data.task):
            raise ValueError(
                f"model is for {task} but data={self.data.name} is for {self.data.task}; choose another of the two"
            )
        if self.recipe.test_crop < 1 and self.data.task != "classification":
            raise ValueError(f"recipe.test_crop={self.recipe.test_crop} is for classification; set it to 1")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={list(self.seeds)} names a seed twice")
        processes = self.trainer.devices * self.trainer.num_nodes
        if processes > 1 and self.trainer.strategy == "single":
            key = "devices" if self.trainer.devices > 1 else "num_nodes"
            raise ValueError(f"trainer.{key}={getattr(self.trainer, key)} needs trainer.strategy=ddp")
        if self.recipe.batch_size % processes:
            raise ValueError(
                f"recipe.batch_size={self.recipe.batch_size} is the batch over all devices "
                f"and must be a multiple of {processes}"
            )
        return self

    def plain(self) -> dict[str, Any]:
        """Return the configuration as plain, JSON-ready values; `RunConfig.read` takes it back."""
        return self.model_dump(mode="json")

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the result: the configuration without where it is written and how it is tracked."""
        ignored = {"about", "seeds", "output_dir", "work_dir", "overwrite", "tracking", "loggers"}
        plain = {key: value for key, value in self.plain().items() if key not in ignored}
        for name in ("progress_bar", "seeds_at_once"):
            plain["trainer"].pop(name)
        return plain


DataConfig.model_rebuild()


def read_config(values: dict[str, Any], where: str = "the configuration") -> RunConfig:
    """Check plain values, of older versions as well, and return the typed configuration.

    Raises:
        UserError: a key is unknown or missing, or a value has a wrong type, is not finite or lies outside its range.
    """
    for key, value in flat(values).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{where}: {key}={value} is no finite number; give one.")
    try:
        return RunConfig.model_validate(upgraded(values))
    except ValidationError as error:
        raise UserError(describe(error, where)) from error


def _without_kinds(parts: list[str], values: Any) -> list[str]:
    """Return the parts of a key without those by which pydantic names the section that a key `kind` chose."""
    kept = []
    for part in parts:
        section = values if isinstance(values, dict) else {}
        if part in section or section.get("kind") != part:
            kept.append(part)
            values = section.get(part)
    return kept


def describe(error: ValidationError, where: str, values: Any = None) -> str:
    """Put the first finding of pydantic into one sentence that names the key; `values` are those that were checked."""
    found = error.errors()
    first = found[0]
    parts = _without_kinds([str(part) for part in first["loc"]], values)
    key = ".".join(part for part in parts if "[" not in part)  # pydantic names the branch of a union with its types
    if first["type"] == "extra_forbidden":
        return f"{where}: there is no key {key}; it may come from another version of convatlas. Remove it."
    if first["type"] == "missing":
        return f"{where}: the key {key} is missing. Add it, or compose the configuration again."
    message = first["msg"].removeprefix("Value error, ")
    if not key or message.startswith(f"{key}."):
        return f"{where}: {message}."
    branches = [each["msg"] for each in found if each["loc"][:-1] == first["loc"][:-1] and "[" in parts[-1]]
    message = " or ".join(dict.fromkeys([message, *branches]))
    return f"{where}: {key}={first['input']!r} is not valid: {message[0].lower()}{message[1:]}."
