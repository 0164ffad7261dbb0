"""From studies to runs: which variants a study has at a scale, and the full configuration of each."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from convatlas.core.composing import compose_run, composed_net, conf_dir, explain_hydra, read_run
from convatlas.core.config import DataConfig, RunConfig, Section, describe
from convatlas.core.errors import UserError, near_matches
from convatlas.core.files import read_yaml
from convatlas.core.source_code import module_file
from convatlas.core.targets import check_trusted
from convatlas.studies.architectures import found_by_search, with_architecture
from convatlas.studies.calibration import choices, read_calibration
from convatlas.studies.claims import read_claim
from convatlas.studies.counting import check_equal, counts
from convatlas.studies.figures import StudyFigure, check_figures, named_in, planned_figures, printed_at

Overrides = list[str]
ScaleName = Literal["laptop", "workstation", "paper"]


class Variant(Section):
    """One row of a study's table."""

    title: str
    overrides: Overrides
    """What makes the variant, as Hydra overrides, at every scale."""
    laptop: Overrides = Field(default=[])
    workstation: Overrides = Field(default=[])
    paper: Overrides = Field(default=[])
    """What a scale changes in this variant alone."""
    note: str | None = None


class CountedNet(Section):
    """A paper's own net, counted on images of its own size at every scale, and never trained."""

    title: str
    overrides: Overrides
    """What chooses it, as for `python -m convatlas.profile`: `model`, its arguments, and `about.input_size`."""


class Claim(Section):
    """What the lecture says, and how our runs can contradict it."""

    says: str
    holds: Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)] = Field(
        default=[]
    )
    """Comparisons of the runs' figures, see `convatlas.studies.claims`; the claim holds where all do. Without any it is
    a claim that nothing here can check, and `note` says why."""
    note: str | None = None
    margin: Annotated[float, Field(ge=0)] | None = None
    """The difference of the two sides that counts for nothing; null is that of the scale, between scores."""
    equal: dict[Literal["macs", "parameters"], Annotated[float, Field(gt=0, lt=1)]] = Field(default={})
    """Costs that all variants of the claim have in common, up to a share of the least: `{macs: 0.03}`."""
    scales: list[ScaleName] = Field(default=["laptop", "workstation", "paper"])
    """Where it is tested; elsewhere other data stand for the lecture's, and `note` says so."""

    @model_validator(mode="after")
    def _has_a_reason(self) -> Claim:
        if not self.note and not (self.holds and set(self.scales) == set(get_args(ScaleName))):
            raise ValueError(f"the claim {self.says!r} is not tested everywhere; say why in its note")
        if self.equal and not self.holds:
            raise ValueError(f"the claim {self.says!r} compares nothing; remove equal, or add holds")
        return self


class Step(Section):
    """A step on a path of development: an idea, and the variants before and after it."""

    idea: str
    before: str
    after: str


class Grading(Section):
    """Points that a test metric earns, as the lecture gives them, for runs on the lecture's own data."""

    metric: str
    scales: list[ScaleName]
    points: str
    """Path into `printed`, to the points by the least value that earns them."""


class Study(Section):
    """`conf/study`: one comparison."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    title: str
    question: str
    source: str
    overrides: dict[ScaleName, Overrides]
    """What all variants share, by scale."""
    variants: dict[Annotated[str, Field(pattern=r"^[a-z0-9_.-]+$")], Variant]
    counted: dict[Annotated[str, Field(pattern=r"^[a-z0-9_]+$")], CountedNet] = Field(default={})
    """The papers' own nets that claims speak of."""
    printed: dict[str, Any]
    """The figures the lecture prints."""
    claims: list[Claim]
    steps: list[Step] = Field(default=[])
    """The report says what each bought, as it judges a claim: the error after it is lower than before."""
    figures: list[StudyFigure] = Field(default=[])
    """The figures that the lecture draws, see `convatlas.studies.figures`."""
    grading: Grading | None = None
    deviations: list[str]
    images: str | None = None
    """Set by `load_study`: which of `conf/images` the study is on in the place of its own; None for its own."""


class NothingToReplaceError(UserError):
    """A study has no data set that others could take the place of."""


class Images(Section):
    """`conf/images`: other data for the studies at laptop scale."""

    name: str
    title: str
    instead_of: dict[str, str]
    """A data set for each of those that studies name."""
    overrides: Overrides = Field(default=[])
    """What else a study has on them, such as weights for their classes."""


class Scale(Section):
    """`conf/scale`: how large the nets, the data and the trainings are."""

    name: ScaleName
    seeds: list[int]
    margin: Annotated[float, Field(ge=0)] = Field(default=0.01)
    """The difference of two scores that counts for nothing, where a claim states none of its own."""
    overrides: Overrides
    grid: list[Overrides] = Field(default=[])
    """What the calibration of a study chooses from, see `convatlas.studies.calibration`."""


@dataclass(frozen=True)
class PlannedRun:
    """One run: its place in the plan and its configuration."""

    key: str
    config: RunConfig
    overrides: tuple[str, ...]


RESERVED = frozenset({"code", "data", "searches", "tracking"})
"""Folders of plan/ that belong to no study."""

ON_OTHER_IMAGES = 0.12
"""By how much more of their cost variants may differ on images that have three channels where the study's own have one:
the first layer's cost depends on them."""

SET_BY_PLAN = {"seed": "seeds", "seeds": "seeds", "study": "studies", "experiment": "studies"}
"""What a plan sets for each run, with the key of params.yaml that it comes from."""


def study_names() -> list[str]:
    """Return the studies that there are."""
    return sorted(path.stem for path in (conf_dir() / "study").glob("*.yaml"))


def load_study(name: str, scale_name: str) -> tuple[Study, Scale]:
    """Read a study and a scale.

    Args:
        name: of the study; `overview-cifar10` is `overview` on the data of `conf/images/cifar10.yaml`.
        scale_name: of the scale.

    Raises:
        UserError: there is none of that name, or its file is not valid.
    """
    own, _, images = name.partition("-")
    study, scale = _load_own(own, scale_name)
    return (_on_images(study, images, scale) if images else study), scale


def _on_images(study: Study, name: str, scale: Scale) -> Study:
    """Return a study on other data, those of `conf/images/<name>.yaml`: the variants that they take the place for."""
    known = sorted(path.stem for path in (conf_dir() / "images").glob("*.yaml"))
    if name not in known:
        raise UserError(f"images={name}: there is none of that name. {near_matches(name, ['made', *known])}")
    if scale.name != "laptop":
        raise UserError(f"images={name} is for scale=laptop; the other scales have the papers' data.")
    images = Images.model_validate(read_yaml(conf_dir() / "images" / f"{name}.yaml", "restore the file."))
    changes = {f"data={old}": f"data={new}" for old, new in images.instead_of.items()}
    planned = f"{study.name}-{name}"

    def changed(overrides: Overrides) -> Overrides:
        moved = (each.replace(f"=runs/{study.name}/", f"=runs/{planned}/") for each in overrides)
        return [changes.get(each, each) for each in moved]

    def is_replaced(variant: Variant) -> bool:
        overrides = [*study.overrides["laptop"], *variant.overrides, *variant.laptop]
        return next((each in changes for each in reversed(overrides) if each.startswith("data=")), False)

    def compares_replaced(claim: Claim) -> bool:
        named = {q.variant for text in claim.holds for q in read_claim(text, f"the study {study.name}").quantities()}
        return named <= {*variants, *study.counted}

    variants = {
        key: variant.model_copy(update={"overrides": changed(variant.overrides), "laptop": changed(variant.laptop)})
        for key, variant in study.variants.items()
        if is_replaced(variant)
    }
    if not variants:
        raise NothingToReplaceError(f"images={name} has nothing in the place of the data of the study {study.name}.")
    update = {
        "name": planned,
        "title": f"{study.title} on {images.title}",
        "images": name,
        "overrides": {**study.overrides, "laptop": [*changed(study.overrides["laptop"]), *images.overrides]},
        "variants": variants,
        "claims": [claim for claim in study.claims if compares_replaced(claim)],
        "steps": [step for step in study.steps if {step.before, step.after} <= set(variants)],
        "figures": [figure for figure in study.figures if named_in(figure) <= set(variants)],
    }
    return study.model_copy(update=update)


def _load_own(name: str, scale_name: str) -> tuple[Study, Scale]:
    from hydra import compose
    from omegaconf import OmegaConf

    known = {"study": study_names(), "scale": sorted(p.stem for p in (conf_dir() / "scale").glob("*.yaml"))}
    for group, value in (("study", name), ("scale", scale_name)):
        if value not in known[group]:
            raise UserError(f"{group}={value}: there is no such {group}. {near_matches(value, known[group])}")
    composed: Any = OmegaConf.to_container(compose("plan", [f"study={name}", f"scale={scale_name}"]), resolve=True)
    try:
        study, scale = Study.model_validate(composed["study"]), Scale.model_validate(composed["scale"])
    except ValidationError as error:
        raise UserError(describe(error, f"conf/study/{name}.yaml or conf/scale/{scale_name}.yaml")) from error
    if study.name != name or name in RESERVED:
        how = f"plan/ has other files under {name}" if name in RESERVED else f"its name is {study.name}"
        raise UserError(f"conf/study/{name}.yaml: {how}; a study has the name of its file, so rename one of the two.")
    if scale.name not in study.overrides:
        raise UserError(f"study={name} has no scale {scale.name}; choose {' or '.join(study.overrides)}.")
    check_claims(study)
    where = f"conf/study/{study.name}.yaml"
    for step in study.steps:
        for key in (step.before, step.after):
            if key not in study.variants:
                near = near_matches(key, study.variants)
                raise UserError(f"{where}: the step {step.idea!r} names no variant of the study: {key}. {near}")
    check_figures(study.figures, list(study.variants), study.printed, where)
    grading_points(study)
    return study, scale


def check_claims(study: Study) -> None:
    """Raise UserError unless every claim can be read and speaks of variants, or of counted nets, that there are."""
    where = f"conf/study/{study.name}.yaml"
    known = {**study.variants, **study.counted}
    if twice := sorted(set(study.variants) & set(study.counted)):
        raise UserError(f"{where}: {twice[0]} is a variant and a counted net; rename one of the two.")
    for claim in study.claims:
        for text in claim.holds:
            quantities = read_claim(text, where).quantities()
            for quantity in quantities:
                if quantity.variant not in known:
                    near = near_matches(quantity.variant, known)
                    raise UserError(f"{where}: the claim {text!r} names no variant of the study. {near}")
            if len({quantity.variant in study.counted for quantity in quantities}) > 1:
                raise UserError(
                    f"{where}: the claim {text!r} compares nets that are trained with nets that are counted; take one "
                    "or the other."
                )


def check_costs(study: Study, scale: Scale, configs: Mapping[str, RunConfig]) -> None:
    """Raise UserError unless the variants of each claim have the costs in common that it says, at this scale.

    `configs` are those of all variants, by name.
    """
    where = f"conf/study/{study.name}.yaml"
    more = ON_OTHER_IMAGES if study.images else 0.0
    for claim in study.claims:
        named = [quantity.variant for text in claim.holds for quantity in read_claim(text, where).quantities()]
        for figure, within in claim.equal.items() if scale.name in claim.scales else ():
            compared = {name: configs[name] for name in named}
            check_equal(compared, figure, within + more, f"{where}: the claim {claim.says!r}")


def grading_points(study: Study) -> dict[str, Any] | None:
    """Return the grading with its points by least value; None where the study has none.

    Raises:
        UserError: the printed figures have no such points.
    """
    if study.grading is None:
        return None
    prefix = f"conf/study/{study.name}.yaml: grading.points"
    found = printed_at(study.printed, study.grading.points, prefix)
    try:
        points = {str(least): float(points) for least, points in found.items() if float(least) > 0}
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{prefix} must lead to points by the least value that earns them.") from error
    return {"metric": study.grading.metric, "points": points}


def planned_runs(
    study: Study,
    scale: Scale,
    seeds: Sequence[int],
    more: Sequence[str],
    seeds_of: Mapping[str, Sequence[int]] | None = None,
) -> list[PlannedRun]:
    """Compose every variant of a study.

    Later overrides win: scale, study, what calibration chose for the variant, variant, variant at the scale, `more`.
    `seeds_of` has the seeds of the runs that have others than `seeds`, by key.
    """
    chosen = choices(study.name) if scale.grid else {}
    runs = []
    for name, variant in study.variants.items():
        own_scale = getattr(variant, scale.name)
        shared = [*scale.overrides, *study.overrides[scale.name], *chosen.get(name, ())]
        overrides = [*shared, *variant.overrides, *own_scale, *more]
        key = f"{study.name}/{name}"
        _check_free(overrides, key)
        named = {
            "study": study.name,
            "variant": name,
            "seeds": list((seeds_of or {}).get(key, seeds)),
            "output_dir": f"runs/{key}",
            "work_dir": f".work/{key}",
        }
        runs.append(PlannedRun(key, _composed(key, last_choices(overrides), named), tuple(overrides)))
    return runs


def _check_free(overrides: Sequence[str], key: str) -> None:
    """Raise UserError where an override would set what the plan itself sets, and so would do nothing."""
    for override in overrides:
        option = override.partition("=")[0].lstrip("+~")
        if option in SET_BY_PLAN:
            raise UserError(f"{key}: {override} has no effect in a plan; set {SET_BY_PLAN[option]} in params.yaml.")
        if option in {"variant", "output_dir", "work_dir", "overwrite"}:
            raise UserError(f"{key}: {override} has no effect in a plan, whose runs lie in runs/{key}; remove it.")


def _composed(key: str, overrides: Sequence[str], named: Mapping[str, Any]) -> RunConfig:
    try:
        composed = compose_run(overrides, named)
        return composed if found_by_search(composed.model) else with_architecture(composed)
    except Exception as error:
        sentence = str(error) if isinstance(error, UserError) else explain_hydra(error, "train")
        if sentence is None:
            raise
        raise UserError(f"{key}: {sentence}") from error


def last_choices(overrides: Sequence[str]) -> list[str]:
    """Keep the last of several values for one option; Hydra refuses two choices for one group."""
    last = {override.partition("=")[0].lstrip("+~"): override for override in overrides}
    return list(last.values())


def data_values(data: DataConfig) -> dict[str, str]:
    """Return what the template of a preparation depends on beside its file in plan/.

    `raw` is the manifest of the raw files; sets that are made without any have their file in plan/ once more.
    """
    made = not reads_raw_files(data.source["_target_"])
    return {"raw": (data_plan(data.name) if made else manifest_file(data.name)).as_posix()}


def manifest_roots(data: Iterable[DataConfig]) -> dict[str, str]:
    """Return the folders of raw files by data set; sets that are made without any are left out."""
    return {each.name: each.root.as_posix() for each in data if reads_raw_files(each.source["_target_"])}


FINISHED = Path("runs", ".finished")
"""One file a finished run of the plan: what the report depends on, whatever else lies in runs/."""

TRACKING = ("tracking", "loggers")
"""Sections of a run that decide nothing of its result: they lie in a file that no training depends on."""

RESOLVE = "run `dvc repro resolve`."


def tracking_plan(key: str) -> Path:
    """Return the file with the sections `TRACKING` of a planned run."""
    return Path("plan", "tracking", f"{key}.yaml")


def read_planned(key: str) -> RunConfig:
    """Read the configuration of a planned run, with its tracking options.

    Raises:
        UserError: a file is missing, or is not what `resolve` writes.
    """
    file = Path("plan", f"{key}.yaml")
    planned = read_yaml(file, RESOLVE)
    if not isinstance(planned, dict) or not isinstance(planned.get("config"), dict):
        raise UserError(f"{file} plans no run; run `dvc repro -f resolve`.")
    values = planned["config"] if "tracking" in planned["config"] else planned["config"] | read_tracking(key)
    check_trusted(values, str(file))
    config = read_run(values, str(file))
    check_places(file, output_dir=config.output_dir, work_dir=config.work_dir)
    return config


def check_places(file: Path, **places: Path | None) -> None:
    """Check that what a plan says is written into its project; a plan may come from elsewhere.

    Raises:
        UserError: something is not.
    """
    here = Path.cwd()
    for option, place in places.items():
        if place is not None and not Path(os.path.normpath(here / place)).is_relative_to(here):
            raise UserError(f"{file}: {option}={place} lies outside of this project; run `dvc repro -f resolve`.")


def read_tracking(key: str) -> dict[str, Any]:
    """Read the sections `TRACKING` of a planned run; raises as `read_planned` does."""
    file = tracking_plan(key)
    found = read_yaml(file, RESOLVE)
    if not isinstance(found, dict) or set(found) != set(TRACKING):
        raise UserError(f"{file} holds no options of tracking; run `dvc repro -f resolve`.")
    return found


def data_plan(name: str) -> Path:
    """Return the file that a preparation is planned in."""
    return Path("plan", "data", f"{name}.yaml")


def manifest_file(name: str) -> Path:
    """Return the file that says what raw files there are of a data set."""
    return Path("data", "manifests", f"{name}.json")


def reads_raw_files(source: str) -> bool:
    """Say whether a source function reads its `root`; those that make their images do not."""
    module, _, name = source.rpartition(".")
    file = module_file(module)
    functions = ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if file else ()
    bodies = [node for node in functions if isinstance(node, ast.FunctionDef) and node.name == name]
    return not bodies or any(
        isinstance(node, ast.Name) and node.id == "root" for body in bodies for node in ast.walk(body)
    )


def template_values(config: RunConfig) -> dict[str, str]:
    """Return what the template of one run's stage depends on beside the run's file in plan/.

    `after` is the run or file whose weights it begins with, or what a search of the pipeline found; other runs have
    their data there once more.
    """
    weights, data = config.weights, config.data.name
    if isinstance(weights, str) and "/" in weights:
        return {"data": data, "after": weights}
    return {"data": data, "after": found_by_search(config.model) or f"data/prepared/{data}"}


def counted_nets(study: Study) -> dict[str, dict[str, Any]]:
    """Return title and costs of the nets that are counted alone, inside `hydra_ready`."""
    where = f"conf/study/{study.name}.yaml"
    named = [q for claim in study.claims for text in claim.holds for q in read_claim(text, where).quantities()]
    found = {}
    for name, net in study.counted.items():
        values = _composed_net(f"{where}: counted.{name}", net.overrides)
        figures = [quantity.figure for quantity in named if quantity.variant == name]
        found[name] = {"title": net.title, "costs": counts(values["model"], values["about"]["input_size"], figures)}
    return found


def _composed_net(where: str, overrides: Overrides) -> dict[str, Any]:
    try:
        return composed_net(overrides)
    except Exception as error:
        sentence = explain_hydra(error, "profile")
        if sentence is None:
            raise
        raise UserError(f"{where}: {sentence}") from error


def study_file(
    study: Study, scale: Scale, seeds: Sequence[int], runs: Sequence[PlannedRun], command: str = ""
) -> Mapping[str, Any]:
    """Return what `plan/<study>.yaml` holds: all that a report needs to know of the study; `command` plans it again."""
    variants = {
        run.config.variant: {
            "title": study.variants[run.config.variant].title,
            "overrides": list(run.overrides),
            "note": study.variants[run.config.variant].note,
        }
        for run in runs
    }
    configs = {run.config.variant: run.config for run in runs}
    figures = planned_figures(study.figures, configs, study.printed, f"conf/study/{study.name}.yaml")
    claims = [
        {**claim.model_dump(mode="json"), "holds": claim.holds if scale.name in claim.scales else []}
        for claim in study.claims
    ]
    return {
        **study.model_dump(mode="json", exclude={"variants", "overrides"}),
        "calibration": read_calibration(study.name).plain() if scale.grid else {},
        "counted": counted_nets(study),
        "claims": claims,
        "figures": figures,
        "grading": grading_points(study) if study.grading and scale.name in study.grading.scales else None,
        "scale": scale.name,
        "margin": scale.margin,
        "seeds": list(seeds),
        "command": command,
        "variants": variants,
    }
