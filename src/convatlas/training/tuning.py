"""A search for hyper-parameters: Optuna proposes, trainings answer with their best validation score.

A trial is a function of the search's seed and of the trials before it, so a search that was killed goes on with the
very trials it would have had.
"""

from __future__ import annotations

import copy
import csv
import io
import shlex
import shutil
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import torch
from filelock import FileLock, Timeout
from pydantic import Field, ValidationError

from convatlas.core.composing import hydra_ready, run_config
from convatlas.core.config import Positive, RunConfig, Section, describe
from convatlas.core.digests import digest
from convatlas.core.errors import UserError
from convatlas.core.files import write_text, write_yaml
from convatlas.core.seeds import mixed_seed
from convatlas.data.prepared import PreparedData
from convatlas.models.build import build_model
from convatlas.tasks import new_task
from convatlas.tasks.base import DivergedError
from convatlas.tracking.runs import end_status, warn
from convatlas.tracking.tracker import (
    MlflowSeedTracker,
    MlflowVariantTracker,
    SeedTracker,
    VariantTracker,
    open_tracker,
)
from convatlas.training.dry_run import dry_run
from convatlas.training.run import fit, quieten_libraries, run_identity, stop
from convatlas.training.work_folder import WorkFolder

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    Range: TypeAlias = CategoricalDistribution | FloatDistribution | IntDistribution

__all__ = ["Search", "TuneConfig", "read_search", "search"]

SYNTAX = "write a range as key=interval(0.001,0.1), key=tag(log,interval(...)), key=range(4,17,4) or key=choice(a,b)."


class TuneConfig(Section):
    """The section `tune` of `conf/tune.yaml`."""

    trials: Positive
    """Trials in all, also those of earlier starts of the same search."""
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    """Of the sampler."""
    startup_trials: Annotated[int, Field(ge=0)]
    """Trials that are drawn at random and never pruned, before the sampler learns from them."""
    prune: bool
    """Stop a trial whose validation score is below the median of the others at the same epoch."""


@dataclass(frozen=True)
class Search:
    """A search as the command line states it.

    Attributes:
        base: the run without what is searched; it names the search and its folder.
        tune: the section `tune`.
        fixed: overrides that every trial has.
        space: what Optuna proposes, by key.
    """

    base: RunConfig
    tune: TuneConfig
    fixed: list[str]
    space: dict[str, Range]


# ---- the command line -----------------------------------------------------------------------------------------------


def read_search(arguments: Sequence[str]) -> Search:
    """Read the command line's overrides, those with a sweep as the space.

    Raises:
        UserError: a sweep is not one that can be searched, there is none, or a value does not fit.
    """
    from optuna.distributions import CategoricalDistribution

    fixed: list[str] = []
    space: dict[str, Range] = {}
    for argument in arguments:
        distribution = _distribution(argument)
        if distribution is None:
            fixed.append(argument)
        else:
            space[argument.partition("=")[0]] = distribution
    if not space:
        raise UserError(f"There is nothing to search: {SYNTAX}")
    composed, values = _composed(fixed)
    try:
        tune = TuneConfig.model_validate(values)
    except ValidationError as error:
        raise UserError(describe(error, "tune")) from error
    for key in space:
        if key.startswith("tune.") or key in {"seed", "seeds", "study", "variant", "output_dir"}:
            raise UserError(f"{key} cannot be searched; give it one value.")
    if len(composed.seeds) > 1:
        raise UserError(f"seeds={list(composed.seeds)}: a trial trains once; give one seed.")
    if composed.trainer.processes > 1:
        raise UserError("A search trains in one process; set trainer.devices=1 and trainer.num_nodes=1.")
    first = {k: d.choices[0] if isinstance(d, CategoricalDistribution) else d.high for k, d in space.items()}
    _composed([*fixed, *_overrides(first)])  # refuses what it does not know
    return Search(composed, tune, fixed, space)


def _composed(overrides: Sequence[str]) -> tuple[RunConfig, Any]:
    """Compose `conf/tune.yaml`; returns the run and the section `tune`."""
    from hydra import compose
    from omegaconf import OmegaConf, open_dict

    with hydra_ready():
        config = compose("tune", list(overrides), return_hydra_config=True)
        model_name = config.hydra.runtime.choices["model"]
        with open_dict(config):
            values = OmegaConf.to_container(config.pop("tune"))
        return run_config(config, model_name), values


def _distribution(argument: str) -> Range | None:
    """Return what an override searches; None for a single value.

    Raises:
        UserError: Hydra cannot read it, or it is no range that can be searched.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, RangeSweep
    from hydra.errors import HydraException
    from optuna.distributions import CategoricalDistribution

    try:
        override = OverridesParser.create().parse_override(argument)
        if not override.is_sweep_override():
            return None
        value = override.value()
        if isinstance(value, IntervalSweep):
            return _interval(value, argument)
        if isinstance(value, (ChoiceSweep, RangeSweep)):
            return CategoricalDistribution(list(dict.fromkeys(override.sweep_string_iterator())))
    except (HydraException, ValueError) as error:
        raise UserError(f"{argument} cannot be read: {SYNTAX}") from error
    raise UserError(f"{argument} cannot be searched: {SYNTAX}")


def _interval(interval: Any, argument: str) -> Range:
    from optuna.distributions import FloatDistribution, IntDistribution

    low, high, log = interval.start, interval.end, "log" in interval.tags
    if low >= high or (log and low <= 0):
        raise UserError(
            f"{argument}: the first number must be below the second" + (", and above 0 for log." * log or ".")
        )
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(low, high, log=log)


# ---- the search -----------------------------------------------------------------------------------------------------


def search(asked: Search) -> str:
    """Run the trials that are missing; returns the overrides of the best as a command line has them.

    Raises:
        UserError: the folder holds another search, another process searches there, or no trial has come to its end.
    """
    signal.signal(signal.SIGTERM, stop)
    quieten_libraries()
    torch.set_num_threads(asked.base.trainer.threads)
    prepared = PreparedData.open_for(asked.base.data)
    folder = asked.base.output_dir
    lock = FileLock(folder / ".tune.lock")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise UserError(f"Another process searches in {folder}. Wait for it, or choose another output_dir.") from error
    try:
        study = _open_study(asked, prepared.card.fingerprint)
        with open_tracker(asked.base, prepared.card) as tracker:
            _run_trials(asked, study, prepared, tracker)
        return _write_best(asked, study)
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _open_study(asked: Search, data_fingerprint: str) -> optuna.Study:
    """Open the search's storage, or make it.

    Raises:
        UserError: it holds trials of another search.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    from optuna.pruners import MedianPruner, NopPruner

    database = asked.base.output_dir / "tune.db"
    if asked.base.overwrite:
        database.unlink(missing_ok=True)
        shutil.rmtree(_work(asked), ignore_errors=True)
    startup = asked.tune.startup_trials
    study = optuna.create_study(
        study_name="tune",
        storage=f"sqlite:///{database}",
        pruner=MedianPruner(n_startup_trials=startup, n_warmup_steps=1) if asked.tune.prune else NopPruner(),
        direction="maximize",
        load_if_exists=True,
    )
    identity = run_identity(asked.base, asked.base.seeds[0], data_fingerprint)
    tune = asked.tune.model_dump(exclude={"trials"})
    searched = {"space": {k: repr(v) for k, v in asked.space.items()}, "tune": tune, "run": digest(identity)}
    before = study.user_attrs.get("search")
    if before is not None and before != searched:
        changed = ", ".join(key for key in searched if before[key] != searched[key])
        raise UserError(
            f"{database} holds another search ({changed} changed; run is configuration, code and data). "
            "Choose another output_dir, or pass overwrite=true."
        )
    study.set_user_attr("search", searched)
    return study


def _run_trials(asked: Search, study: optuna.Study, prepared: PreparedData, tracker: VariantTracker) -> None:
    import optuna
    from optuna.trial import TrialState

    shown = len(study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)))
    for interrupted in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if interrupted.params.keys() == asked.space.keys():
            _run_trial(asked, study, optuna.Trial(study, interrupted._trial_id), prepared, tracker)
        else:  # killed while it was being proposed
            study.tell(interrupted.number, state=TrialState.FAIL)
        shown += 1
    for _ in range(shown, asked.tune.trials):
        number = len(study.trials)
        study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=asked.tune.startup_trials, seed=mixed_seed(asked.tune.seed, number) % 2**32
        )
        _run_trial(asked, study, study.ask({**asked.space}), prepared, tracker)


def _run_trial(
    asked: Search, study: optuna.Study, trial: optuna.Trial, prepared: PreparedData, tracker: VariantTracker
) -> None:
    """Train one trial and tell its score; pruned and diverged ones count as trials as well."""
    import optuna
    from optuna.trial import TrialState

    overrides = _overrides(trial.params)
    config = _composed([*asked.fixed, *overrides])[0].model_copy(
        update={"variant": f"trial-{trial.number}", "output_dir": asked.base.output_dir}
    )
    net = build_model(config.model)
    dry_run(net, config, prepared)
    seed = config.seeds[0]
    identity = run_identity(config, seed, prepared.card.fingerprint)
    work = WorkFolder(_work(asked) / f"trial={trial.number}", identity, strict=False)
    work.open(overwrite=False)
    child = _child(tracker, config, seed, work.path)
    monitor = new_task(net, config, list(prepared.card.classes), seed).monitor

    def on_epoch(row: dict[str, float]) -> None:
        child.log_epoch(row)
        trial.report(row[monitor], int(row["epoch"]))
        if trial.should_prune():
            raise optuna.TrialPruned

    try:
        rows = fit(config, prepared, seed, work, on_epoch).recorder.rows
        study.tell(trial, max(row[monitor] for row in rows))
    except (optuna.TrialPruned, DivergedError) as ended:
        pruned = isinstance(ended, optuna.TrialPruned)
        study.tell(trial, state=TrialState.PRUNED if pruned else TrialState.FAIL)
        child.end("KILLED" if pruned else "FAILED")
    except BaseException as error:
        child.end(end_status(type(error)))
        work.close()
        raise
    else:
        child.end("FINISHED")
    work.remove()
    _say(study, trial.number, overrides, tracker)


def _say(study: optuna.Study, number: int, overrides: list[str], tracker: VariantTracker) -> None:
    """Print how a trial ended, and log the best score so far to the search's run."""
    trial = study.trials[number]
    score = f" {trial.value:.4f}" if trial.state.name == "COMPLETE" else ""
    print(f"trial {number}  {trial.state.name.lower()}{score}  {' '.join(overrides)}", flush=True)
    if isinstance(tracker, MlflowVariantTracker) and score:
        try:
            tracker.client.log_metric(tracker.run_id, "search/best_score", study.best_value, step=number)
        except Exception as failure:
            warn(failure)


def _child(tracker: VariantTracker, config: RunConfig, seed: int, work: Path) -> SeedTracker:
    """Start a trial's run below that of the search."""
    if not isinstance(tracker, MlflowVariantTracker):
        return SeedTracker()
    of_trial = copy.copy(tracker)
    of_trial.config = config
    return MlflowSeedTracker(of_trial, seed, work)


def _work(asked: Search) -> Path:
    return asked.base.work_dir or asked.base.output_dir / ".work"


def _overrides(params: Mapping[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in params.items()]


def _write_best(asked: Search, study: optuna.Study) -> str:
    """Write every trial and the best one; returns the best one's overrides."""
    from optuna.trial import TrialState

    folder = asked.base.output_dir
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["trial", "state", "score", *asked.space])
    for trial in study.trials:
        score = "" if trial.state is not TrialState.COMPLETE else repr(trial.value)
        writer.writerow([trial.number, trial.state.name.lower(), score, *(trial.params.get(k) for k in asked.space)])
    write_text(folder / "trials.csv", table.getvalue())
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        raise UserError("No trial came to its end: all diverged. Search lower values of recipe.optimizer.lr.")
    best = study.best_trial
    chosen = [*(word for word in asked.fixed if not word.startswith("tune.")), *_overrides(best.params)]
    chosen = [word for word in chosen if word.partition("=")[0] not in {"output_dir", "overwrite"}]
    values = {"trial": best.number, "validation_score": best.value, "overrides": chosen}
    write_yaml(folder / "best.yaml", values, "The trial with the highest validation score, as `train` takes it.")
    return shlex.join(chosen)
