"""The typed form of a search's configuration: `conf/search.yaml` with one file of `conf/search/`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from convatlas.core.config import (
    DataConfig,
    Kind,
    Positive,
    Rate,
    Recipe,
    Section,
    TrackingConfig,
    TrainerConfig,
    describe,
)
from convatlas.core.errors import UserError

Above0 = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Stride = Annotated[int, Field(ge=1, le=2)]


class Stage(Section):
    """Layers that share their output channels; the stride is that of the first."""

    channels: Positive
    layers: Positive
    stride: Stride


class FBNetSpaceConfig(Kind):
    """FBNet's macro-architecture: each layer of each stage is one of the candidates."""

    kind: Literal["fbnet"]
    name: str
    """For the file of its latencies."""
    stem_channels: Positive
    stem_stride: Stride
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    head_channels: Positive
    candidates: Annotated[tuple[str, ...], Field(min_length=1)]
    always_expand: bool
    """Keep the first 1x1 convolution of blocks with expansion 1."""


class NasnetSpaceConfig(Kind):
    """NASNet's cells: every block chooses two states, two operations, and how they are combined."""

    kind: Literal["nasnet"]
    blocks: Positive
    operations: Annotated[tuple[str, ...], Field(min_length=1)]
    combinations: Annotated[tuple[Literal["add", "concat"], ...], Field(min_length=1)]
    repeats: Positive
    filters: Positive
    stem: Literal["cifar", "imagenet", "small"]
    stem_filters: Positive


class DartsSpaceConfig(Kind):
    """DARTS's cells: every node takes two edges, each an operation on an earlier state."""

    kind: Literal["darts"]
    nodes: Positive
    operations: Annotated[tuple[str, ...], Field(min_length=1)]
    layers: Annotated[int, Field(ge=3)]
    channels: Positive
    stem: Literal["cifar", "imagenet", "small"]


SpaceConfig = Annotated[FBNetSpaceConfig | NasnetSpaceConfig | DartsSpaceConfig, Field(discriminator="kind")]


class Proxy(Section):
    """A short training that stands for a long one: SGD with Nesterov momentum, the rate falling as a cosine."""

    epochs: Positive
    batch_size: Positive
    lr: Above0
    momentum: Rate
    weight_decay: NotNegative


class LatencyTerm(Section):
    """FBNet's loss: cross-entropy * alpha * log(latency)^beta, the latency in microseconds."""

    alpha: Above0
    beta: NotNegative
    table: Path
    """Where the measured operators are kept; made if it is not there."""
    remeasure: bool
    """Measure again even if the file exists."""
    rounds: Positive
    """Passes over all operators, of which the fastest counts."""


class SgdStep(Section):
    """How the weights of a super-net are trained; the rate falls as a cosine to `final_lr`."""

    lr: Above0
    final_lr: NotNegative
    momentum: Rate
    weight_decay: NotNegative
    clip_norm: Above0 | None


class AdamStep(Section):
    """How the architecture's parameters are trained."""

    lr: Above0
    betas: tuple[Rate, Rate]
    weight_decay: NotNegative


class Temperature(Section):
    """Of the Gumbel softmax in epoch e: `initial * decay^e`."""

    initial: Above0
    decay: Annotated[float, Field(gt=0, le=1)]


class FBNetDnas(Kind):
    """Differentiable search over a super-net (FBNet, section 3)."""

    kind: Literal["fbnet_dnas"]
    epochs: Positive
    frozen_epochs: Annotated[int, Field(ge=0)]
    """Epochs at the beginning in which only weights are trained."""
    batch_size: Positive
    weights: SgdStep
    architecture: AdamStep
    temperature: Temperature
    samples: Positive
    """Nets drawn from the found distribution and compared by proxy trainings; the likeliest is one of them."""

    @model_validator(mode="after")
    def _learns(self) -> FBNetDnas:
        if self.frozen_epochs >= self.epochs:
            raise ValueError(
                f"frozen_epochs={self.frozen_epochs} leaves none of epochs={self.epochs} for the architecture; lower it"
            )
        return self


class Darts(Kind):
    """DARTS, first order: both kinds of parameters follow the gradients of their own half of the data."""

    kind: Literal["darts"]
    epochs: Positive
    batch_size: Positive
    weights: SgdStep
    architecture: AdamStep


class Controller(Section):
    """The LSTM that samples architectures, and how it learns from rewards."""

    algorithm: Literal["reinforce", "ppo"]
    layers: Positive
    units: Positive
    lr: Above0
    entropy_weight: NotNegative
    baseline_decay: Rate
    """Of the moving average of rewards that is taken off each reward."""
    minibatch: Positive
    """Architectures between two updates."""
    ppo_epochs: Positive
    """PPO: updates with the same architectures."""
    ppo_clip: Above0
    """PPO: how far the probability of a decision may move in them, as a fraction."""
    tanh: Above0 | None
    """Bound logits to this range, as ENAS does; null leaves them free."""
    operation_tanh: Above0 | None
    """ENAS: divide the bound of decisions for an operation or a combination by this; null leaves it."""

    @model_validator(mode="after")
    def _bounds(self) -> Controller:
        if self.operation_tanh is not None and self.tanh is None:
            raise ValueError("operation_tanh divides the bound tanh, which is null; set operation_tanh to null")
        return self


class NasnetRl(Kind):
    """A controller rewarded with the accuracy of nets that are each trained for a while."""

    kind: Literal["nasnet_rl"]
    controller: Controller
    updates: Positive
    """Minibatches of architectures."""


class Enas(Kind):
    """A controller rewarded with the accuracy of nets that share their weights (ENAS)."""

    kind: Literal["enas"]
    controller: Controller
    epochs: Positive
    batch_size: Positive
    weights: SgdStep
    updates_per_epoch: Positive
    """Controller updates after each epoch of training the shared weights."""
    samples: Positive
    """Nets drawn from the controller at the end and ranked with the shared weights."""
    finalists: Positive
    """The best of them, compared by proxy trainings."""


class Random(Kind):
    """Nets drawn uniformly from the space, each trained for a while; the best is kept."""

    kind: Literal["random"]
    trials: Positive


class CompoundScaling(Kind):
    """A grid over alpha, beta and gamma with alpha * beta^2 * gamma^2 near 2 (EfficientNet, section 3.3)."""

    kind: Literal["compound_scaling"]
    step: Above0
    tolerance: Above0
    largest: Annotated[float, Field(gt=1)]
    """The grid's coefficients go from 1 to this."""
    phi: Above0
    """Exponent of the coefficients in the nets that are compared."""
    baseline: dict[str, Any]
    """Arguments of `convatlas.models.classification.efficientnet.efficientnet`, with `width` and `depth`."""


Strategy = Annotated[FBNetDnas | Darts | NasnetRl | Enas | Random | CompoundScaling, Field(discriminator="kind")]


class Finals(Section):
    """Ordinary trainings that end a search: what was found, the best random net, and nets made by hand."""

    seeds: tuple[Annotated[int, Field(ge=0)], ...]
    """No seeds: no trainings and no verdict."""
    compared: dict[str, list[str]]
    """By title, Hydra overrides that make a net, such as `[model=fbnet_small, model.variant=a]`."""


class SearchConfig(Section):
    """`conf/search`: the space, the strategy, and how nets are judged."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    strategy: Strategy
    space: SpaceConfig | None
    """Null: compound scaling, which has a grid instead."""
    proxy: Proxy
    latency: LatencyTerm | None
    """Null: accuracy alone counts."""
    weights_share: Annotated[float, Field(gt=0, lt=1)]
    """Share of the training split that trains weights; the rest chooses architectures."""
    random_beside: bool
    """Search at random as well, with the same number of multiply-adds."""
    finals: Finals

    @model_validator(mode="after")
    def _fits_together(self) -> SearchConfig:
        needed = {"fbnet_dnas": "fbnet", "darts": "darts", "nasnet_rl": "nasnet", "enas": "nasnet"}
        space, kind = self.space.kind if self.space else None, self.strategy.kind
        if kind != "random" and space != needed.get(kind):
            raise ValueError(
                f"strategy.kind={kind} searches space.kind={needed.get(kind)}, not {space}; take that space"
            )
        if kind == "random" and self.random_beside:
            raise ValueError("random_beside=true: this search is at random itself; set random_beside to false")
        if kind == "random" and space is None:
            raise ValueError("strategy.kind=random needs a space; choose space.kind fbnet, nasnet or darts")
        if self.latency is not None and space != "fbnet":
            raise ValueError(f"latency is known for space.kind=fbnet alone, not for {space}; set latency to null")
        if kind == "fbnet_dnas" and self.latency is None:
            raise ValueError("strategy.kind=fbnet_dnas needs latency; take that of conf/search/fbnet_dnas.yaml")
        return self


class SearchRun(Section):
    """One search: `conf/search.yaml` as a whole."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    output_dir: Path
    work_dir: Path | None
    overwrite: bool
    search: SearchConfig
    data: DataConfig
    recipe: Recipe
    """Of the trainings that end the search; its augmentation serves in the search, too."""
    trainer: TrainerConfig
    tracking: TrackingConfig

    @model_validator(mode="after")
    def _classifies(self) -> SearchRun:
        if self.data.task != "classification":
            raise ValueError(f"data={self.data.name} is for {self.data.task}; a search needs data for classification")
        if self.trainer.devices * self.trainer.num_nodes > 1:
            raise ValueError("a search runs in one process; take trainer=cpu or trainer=gpu")
        return self

    def identity(self) -> dict[str, Any]:
        plain = self.model_dump(mode="json", exclude={"output_dir", "work_dir", "overwrite", "tracking"})
        for name in ("progress_bar", "seeds_at_once"):
            plain["trainer"].pop(name)
        if plain["search"]["latency"]:
            for key in ("table", "remeasure", "rounds"):
                plain["search"]["latency"].pop(key)
        return plain


def read_search(values: dict[str, Any]) -> SearchRun:
    """Check plain values and return the typed configuration.

    Raises:
        UserError: a key is unknown or missing, or a value is wrong; the sentence names the key.
    """
    try:
        return SearchRun.model_validate(values)
    except ValidationError as error:
        raise UserError(describe(error, "the configuration", values)) from error
