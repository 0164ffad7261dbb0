"""Hyper-parameter search: Optuna proposes values, and each trial trains once and returns its best validation score.

A proposal depends on the search's seed and the trials before it alone, and only finished trials are stored. A search
that was killed therefore proposes the interrupted trial again, and its training goes on from the last checkpoint.
"""

from __future__ import annotations

import copy
import csv
import io
import math
import shlex
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import optuna
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep
from hydra.errors import HydraException
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import MedianPruner, NopPruner
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState
from pydantic import Field, ValidationError
from sqlalchemy.exc import SQLAlchemyError

from convatlas.core.composing import hydra_ready, run_config
from convatlas.core.config import Positive, RunConfig, Section, describe
from convatlas.core.digests import digest
from convatlas.core.errors import UserError
from convatlas.core.files import full_disk, read_json, write_json, write_text, write_yaml
from convatlas.core.folders import claim_files
from convatlas.core.processes import keep_freed_memory, stop
from convatlas.core.seeds import mixed_seed
from convatlas.data.lightning_module import open_data
from convatlas.data.prepared import PreparedData
from convatlas.models.build import build_model
from convatlas.tasks import new_task
from convatlas.tasks.base import DivergedError
from convatlas.tracking.runs import end_status, warn
from convatlas.tracking.tracker import MlflowVariantTracker, VariantTracker, open_tracker
from convatlas.training.dry_run import dry_run
from convatlas.training.run import fit, quieten_libraries, run_identity
from convatlas.training.work_folder import WorkFolder, acquire_lock, release_lock

Range: TypeAlias = CategoricalDistribution | FloatDistribution | IntDistribution

__all__ = ["Search", "TuneConfig", "read_search", "search"]

FILES = ("best.yaml", "trials.csv", "tune.db")
SYNTAX = "write a range as key=interval(0.001,0.1), key=tag(log,interval(...)), key=range(4,17,4) or key=choice(a,b)."


class TuneConfig(Section):
    """The section `tune` of `conf/tune.yaml`."""

    trials: Positive
    """Trials in all, including those of earlier starts of the same search."""
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    """Of the sampler."""
    startup_trials: Annotated[int, Field(ge=0)]
    """Trials that are drawn at random and never pruned, before the sampler learns from them."""
    prune: bool
    """Stop a trial whose validation score is worse than the median of the others at the same epoch."""


@dataclass(frozen=True)
class Search:
    """A search as the command line states it.

    Attributes:
        base: the run without what is searched; it names the search and its folder.
        tune: the section `tune`.
        fixed: overrides that every trial has.
        space: the range of each searched key.
    """

    base: RunConfig
    tune: TuneConfig
    fixed: list[str]
    space: dict[str, Range]


# ---- the command line -----------------------------------------------------------------------------------------------


def read_search(arguments: Sequence[str]) -> Search:
    """Read the command line's overrides; those with a sweep are the search space.

    Raises:
        UserError: a sweep cannot be searched, there is none, or a value does not fit.
    """
    ranges = {argument: _range(argument) for argument in arguments}
    fixed = [argument for argument, found in ranges.items() if found is None]
    space = {argument.partition("=")[0]: found for argument, found in ranges.items() if found is not None}
    if not space:
        raise UserError(f"There is nothing to search: {SYNTAX}")
    base, values = _composed(fixed)
    try:
        tune = TuneConfig.model_validate(values)
    except ValidationError as error:
        raise UserError(describe(error, "tune")) from error
    for key in space:
        if key.startswith("tune.") or key in {"seed", "seeds", "study", "variant", "output_dir"}:
            raise UserError(f"{key} cannot be searched; give it one value.")
    if len(base.seeds) > 1:
        raise UserError(f"seeds={list(base.seeds)}: a trial trains once; give one seed.")
    if base.trainer.processes > 1:
        raise UserError("A search trains in one process; set trainer.devices=1 and trainer.num_nodes=1.")
    one = {key: found.choices[0] if hasattr(found, "choices") else found.high for key, found in space.items()}
    _composed([*fixed, *_overrides(one)])  # an unknown key ends the search before it begins
    return Search(base, tune, fixed, space)


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


def _range(argument: str) -> Range | None:
    """Return the range of an override with a sweep; None for a single value.

    Raises:
        UserError: Hydra cannot read it, or it is no range that can be searched.
    """
    try:
        override = OverridesParser.create().parse_override(argument)
        if not override.is_sweep_override():
            return None
        sweep = override.value()
        if isinstance(sweep, Glob):
            raise UserError(f"{argument} cannot be searched: {SYNTAX}")
        if not isinstance(sweep, IntervalSweep):
            return CategoricalDistribution(list(dict.fromkeys(override.sweep_string_iterator())))
    except (HydraException, ValueError) as error:
        raise UserError(f"{argument} cannot be read: {SYNTAX}") from error
    low, high, log = sweep.start, sweep.end, "log" in sweep.tags
    if low is None or high is None or low >= high or (log and low <= 0):
        above = ", and above 0 for log" if log else ""
        raise UserError(f"{argument}: the first number must be below the second{above}.")
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(low, high, log=log)


def _overrides(params: Mapping[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in params.items()]


# ---- the search -----------------------------------------------------------------------------------------------------


def search(asked: Search) -> str:
    """Run the trials that are missing; returns the overrides of the best trial as a command line has them.

    Raises:
        UserError: the folder holds another search, another process searches there, or no trial was completed.
    """
    signal.signal(signal.SIGTERM, stop)
    quieten_libraries()
    keep_freed_memory()
    torch.set_num_threads(asked.base.trainer.threads)
    prepared = open_data(asked.base.data)
    folder = asked.base.output_dir
    busy = f"Another process searches in {folder}. Wait for it, or choose another output_dir."
    lock = acquire_lock(folder / ".tune.lock", busy)
    try:
        claim_files(folder, "tune", FILES, "output_dir")
        with open_tracker(asked.base, prepared.card) as tracker:
            trials = _Trials(asked, prepared, tracker)
            for trial in trials.study.trials:
                WorkFolder(trials.folder(trial.number), {}, strict=False).discard()
            while len(trials.study.trials) < asked.tune.trials:
                trials.run_next()
        return _write_best(asked, trials.study)
    finally:
        release_lock(lock)


class _Trials:
    """The trials of a search, in Optuna's storage `tune.db`.

    Raises:
        UserError: the storage holds the trials of another search, or is damaged.
    """

    def __init__(self, asked: Search, prepared: PreparedData, tracker: VariantTracker) -> None:
        self.asked, self.prepared, self.tracker = asked, prepared, tracker
        base, tune = asked.base, asked.tune
        if base.recipe.protocol == "last_epoch":
            raise UserError("recipe.protocol=last_epoch has no validation to tune by; set it to best_epoch.")
        task = new_task(build_model(base.model), base, list(prepared.card.classes), base.seeds[0])
        self.monitor, self.best = task.monitor, max if task.monitor_mode == "max" else min
        identity = run_identity(base, base.seeds[0], prepared.card.fingerprint)
        searched = {
            "space": {key: repr(found) for key, found in asked.space.items()},
            "tune": tune.model_dump(exclude={"trials"}),
            "run": digest(identity),
        }
        database = base.output_dir / "tune.db"
        if base.overwrite:
            database.unlink(missing_ok=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        remedy = "Choose another output_dir, or pass overwrite=true."
        try:
            self.study = optuna.create_study(
                study_name="tune",
                storage=f"sqlite:///{database}",
                direction="maximize" if task.monitor_mode == "max" else "minimize",
                load_if_exists=True,
            )
        except (SQLAlchemyError, optuna.exceptions.OptunaError) as error:
            if (full := full_disk(error)) is not None:
                raise OSError(full.errno, full.strerror, str(database)) from error
            raise UserError(f"{database} cannot be read. {remedy}") from error
        before = self.study.user_attrs.get("search", searched)
        changed = ", ".join(key for key in searched if before[key] != searched[key])
        if changed:
            what = f"{changed} changed; run is configuration, code and data"
            raise UserError(f"{database} holds another search ({what}). {remedy}")
        self.study.set_user_attr("search", searched)

    def folder(self, number: int) -> Path:
        """Return where a trial trains."""
        base = self.asked.base
        return (base.work_dir or base.output_dir / ".work") / f"trial={number}"

    def run_next(self) -> None:
        """Propose a trial, train it, and store its score; pruned and diverged ones count as trials as well."""
        number = len(self.study.trials)
        startup, seed = self.asked.tune.startup_trials, mixed_seed(self.asked.tune.seed, number) % 2**32
        study = optuna.create_study(
            sampler=TPESampler(n_startup_trials=startup, seed=seed),
            pruner=MedianPruner(startup, n_warmup_steps=1) if self.asked.tune.prune else NopPruner(),
            direction=self.study.direction,
        )
        study.add_trials(self.study.trials)
        trial = study.ask({**self.asked.space})
        base = self.asked.base
        named = {"variant": f"trial-{number}", "output_dir": base.output_dir}
        config = _composed([*self.asked.fixed, *_overrides(trial.params)])[0].model_copy(update=named)
        seed = config.seeds[0]
        dry_run(build_model(config.model), config, self.prepared)
        work = WorkFolder(self.folder(number), run_identity(config, seed, self.prepared.card.fingerprint), strict=False)
        work.open(overwrite=base.overwrite)
        parent = copy.copy(self.tracker)
        vars(parent)["config"] = config
        child = parent.start_seed(seed, work.path)

        reported = work.path / "reported.json"  # scores by epoch, for the pruner after an interruption
        scores: dict[str, float] = read_json(reported, f"delete {work.path}.") if reported.exists() else {}
        for epoch, score in scores.items():
            trial.report(score, int(epoch))

        def on_epoch(row: dict[str, float]) -> None:
            child.log_epoch(row)
            scores[str(int(row["epoch"]))] = row[self.monitor]
            write_json(reported, scores)
            trial.report(row[self.monitor], int(row["epoch"]))
            if trial.should_prune():
                raise optuna.TrialPruned

        try:
            rows = fit(config, self.prepared, seed, work, on_epoch).recorder.rows
            finite = [row[self.monitor] for row in rows if math.isfinite(row[self.monitor])]
            if not finite:
                raise DivergedError(f"{self.monitor} was never finite")
            ended = study.tell(trial, self.best(finite))
            child.end("FINISHED")
        except (optuna.TrialPruned, DivergedError) as error:
            pruned = isinstance(error, optuna.TrialPruned)
            ended = study.tell(trial, state=TrialState.PRUNED if pruned else TrialState.FAIL)
            child.end("KILLED" if pruned else "FAILED")
        except BaseException as error:
            child.end(end_status(type(error)))
            work.close()
            raise
        self.study.add_trial(ended)
        work.remove()
        self._show(self.study.trials[number])

    def _show(self, trial: FrozenTrial) -> None:
        """Print how a trial ended, and log the best score so far to the search's run."""
        complete = trial.state is TrialState.COMPLETE
        words = [trial.state.name.lower(), *([f"{trial.value:.4f}"] if complete else [])]
        print(f"trial {trial.number}  {' '.join(words)}  {' '.join(_overrides(trial.params))}", flush=True)
        if complete and isinstance(self.tracker, MlflowVariantTracker):
            best, run_id = self.study.best_value, self.tracker.run_id
            try:
                self.tracker.client.log_metric(run_id, "search/best_score", best, step=trial.number)
            except Exception as failure:
                warn(failure)


def _write_best(asked: Search, study: optuna.Study) -> str:
    """Write every trial and the best one; returns the best one's overrides."""
    folder, complete = asked.base.output_dir, TrialState.COMPLETE
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["trial", "state", "score", *asked.space])
    for trial in study.trials:
        score = repr(trial.value) if trial.state is complete else ""
        writer.writerow([trial.number, trial.state.name.lower(), score, *(trial.params.get(k) for k in asked.space)])
    write_text(folder / "trials.csv", table.getvalue())
    if not study.get_trials(states=(complete,)):
        raise UserError("No trial was completed: all diverged. Search lower values of recipe.optimizer.lr.")
    best = study.best_trial
    given = [word for word in asked.fixed if word.partition("=")[0] not in {"output_dir", "overwrite"}]
    chosen = [*(word for word in given if not word.startswith("tune.")), *_overrides(best.params)]
    values = {"trial": best.number, "validation_score": best.value, "overrides": chosen}
    write_yaml(folder / "best.yaml", values, "The trial with the best validation score, as `train` takes it.")
    return shlex.join(chosen)
