"""One search from beginning to end: it goes on where it was killed, and ends with trainings and a report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import yaml

from convatlas.core.composing import composed_net, hydra_ready, read_run
from convatlas.core.config import RunConfig
from convatlas.core.digests import digest
from convatlas.core.errors import UserError
from convatlas.core.files import read_json, write_json, write_text, written_whole
from convatlas.core.folders import check_replaceable, put_in_place
from convatlas.core.processes import uses_gpu
from convatlas.search.config import CompoundScaling, Darts, Enas, FBNetDnas, NasnetRl, SearchRun
from convatlas.search.data import SearchData
from convatlas.search.latency import LatencyTable, table_for
from convatlas.search.planned import compared_nets, search_code
from convatlas.search.random_search import RandomSearch
from convatlas.search.spaces import FBNetSpace, Space, make_space
from convatlas.search.strategy import Context, Phase, Row, Strategy
from convatlas.search.tracking import SearchTracker, open_search_tracker
from convatlas.training.run import quieten_libraries, train
from convatlas.training.work_folder import WorkFolder, difference

__all__ = ["run_search"]


def run_search(run: SearchRun, *, strict: bool = True) -> Path:
    """Search, train what was found, and write the report; returns the folder of it all, which is whole or not there.

    Args:
        run: the search.
        strict: refuse to touch what belongs to a search with other settings, instead of starting afresh as a stage of
            the pipeline does.

    Raises:
        UserError: something that the person can mend; the sentence says how.
    """
    quieten_libraries()
    torch.set_num_threads(run.trainer.threads)
    torch.use_deterministic_algorithms(run.trainer.deterministic, warn_only=True)
    data = SearchData(run.data, run.recipe, run.search.weights_share, run.seed)
    device = torch.device("cuda" if uses_gpu(run.trainer.accelerator) else "cpu")
    space = make_space(run.search.space, run.data.image_size) if run.search.space else None
    with hydra_ready():
        compared = compared_nets(run)
    table = _table(run, space, device)
    identity = search_identity(run, data, table, compared)
    folder = run.output_dir
    if _is_finished(folder, identity, run, strict=strict):
        return folder
    check_replaceable(folder, "search", "output_dir")
    work = WorkFolder(work_path(run), identity, strict)
    work.open(overwrite=run.overwrite)
    try:
        context = Context(run, data, device, space, table)
        with open_search_tracker(run, data.card, work.path) as tracker:
            phases = run_phases(context, work.path, tracker)
            _write_found(phases, run, work.results, table)
            finals = _train_finals(run, phases, compared, work.results / "finals")
            _write_end(run, context, phases, finals, work.results)
            write_json(work.results / "identity.json", identity)
            tracker.log_folder(work.results)
            put_in_place(work.results, folder, "search", "output_dir")
    finally:
        work.close()
    work.remove()
    return folder


def run_phases(context: Context, work: Path, tracker: SearchTracker) -> list[Phase]:
    """Run the search, and random search beside it with the same multiply-adds."""
    found = _run_phase("search", make_strategy(context), work, tracker)
    if not context.run.search.random_beside:
        return [found]
    return [found, _run_phase("random", RandomSearch(context, budget=found.spent), work, tracker)]


def make_strategy(context: Context) -> Strategy:
    """Make the strategy of the configuration; only its own file is imported."""
    config = context.run.search.strategy
    if isinstance(config, FBNetDnas):
        from convatlas.search.dnas import DnasSearch

        return DnasSearch(context)
    if isinstance(config, (NasnetRl, Enas)):
        from convatlas.search.reinforcement import make_controller_search

        return make_controller_search(context)
    if isinstance(config, Darts):
        from convatlas.search.darts import DartsSearch

        return DartsSearch(context)
    if isinstance(config, CompoundScaling):
        from convatlas.search.scaling import CompoundSearch

        return CompoundSearch(context)
    return RandomSearch(context)


def work_path(run: SearchRun) -> Path:
    """Return where an unfinished search keeps its state."""
    return run.work_dir or Path(".work") / "searches" / run.output_dir.name


# ---- steps ----------------------------------------------------------------------------------------------------------


def _run_phase(name: str, strategy: Strategy, work: Path, tracker: SearchTracker) -> Phase:
    """Advance a strategy to its end; its state is saved after every step."""
    file = work / f"{name}.state"
    phase = _load(file, name, strategy)
    tracker.log_rows(phase.name, phase.rows)
    while not strategy.done(phase.step):
        started = time.process_time()
        rows = strategy.advance(phase.step)
        seconds = time.process_time() - started
        phase.rows += [{"step": phase.step, **row} for row in rows]
        phase.step += 1
        phase.spent = strategy.spent
        phase.seconds += seconds
        _save(file, phase, strategy)
        tracker.log_rows(phase.name, phase.rows)
        _show(phase, strategy, rows, seconds)
    phase.architectures = strategy.architectures()
    return phase


def _save(file: Path, phase: Phase, strategy: Strategy) -> None:
    """Write the state whole: a killed search leaves the step before."""
    state = {
        "step": phase.step,
        "rows": phase.rows,
        "spent": phase.spent,
        "seconds": phase.seconds,
        "best": strategy.best,
        "strategy": strategy.state(),
    }
    with written_whole(file) as opened:
        torch.save(state, opened)


def _load(file: Path, name: str, strategy: Strategy) -> Phase:
    if not file.exists():
        return Phase(name)
    state = torch.load(file, map_location="cpu", weights_only=True)
    strategy.load_state(state["strategy"])
    strategy.spent = state["spent"]
    strategy.best = None if state["best"] is None else (state["best"][0], tuple(state["best"][1]))
    print(f"{name}: goes on after step {state['step']}", flush=True)
    return Phase(name, rows=state["rows"], spent=state["spent"], seconds=state["seconds"], step=state["step"])


def _show(phase: Phase, strategy: Strategy, rows: list[Row], seconds: float) -> None:
    of = f"/{strategy.steps}" if strategy.steps else ""
    for row in rows:
        figures = "  ".join(f"{key} {value:.4g}" for key, value in row.items() if isinstance(value, float))
        words = row.get("architecture") or row.get("likeliest") or ""
        print(f"{phase.name}  step {phase.step}{of}  {figures}  {words}", flush=True)
    print(f"{phase.name}  step {phase.step}{of}  {seconds:.1f} s", flush=True)


# ---- what surrounds it ----------------------------------------------------------------------------------------------


def search_identity(
    run: SearchRun, data: SearchData, table: LatencyTable | None, compared: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Return what decides the bits of a search's result."""
    return {
        "config": run.identity(),
        "compared": compared,
        "data": data.card.fingerprint,
        "latency": None if table is None else digest(table.microseconds),
        "code": digest(search_code(compared).plain()),
        "torch": torch.__version__,
    }


def _table(run: SearchRun, space: Space | None, device: torch.device) -> LatencyTable | None:
    term = run.search.latency
    if term is None:
        return None
    assert isinstance(space, FBNetSpace)
    if not term.table.exists() or term.remeasure:
        print(f"measuring the latency of every candidate: {term.table}", flush=True)
    return table_for(
        space,
        term.table,
        in_channels=run.data.in_channels,
        num_classes=run.data.num_classes,
        image_size=run.data.image_size,
        device=device,
        rounds=term.rounds,
        remeasure=term.remeasure,
    )


def _is_finished(folder: Path, identity: dict[str, Any], run: SearchRun, *, strict: bool) -> bool:
    if not folder.exists():
        return False
    if any(folder.iterdir()) and not all((folder / name).exists() for name in ("identity.json", "result.json")):
        raise UserError(f"{folder} holds something else than a search, which would be lost; choose another output_dir.")
    if run.overwrite or not any(folder.iterdir()):
        return False
    before = read_json(folder / "identity.json", "delete the folder and search again.")
    if before == identity:
        print(f"{folder} is finished already; pass overwrite=true to search again.")
        return True
    if strict:
        raise UserError(
            f"{folder} holds a finished search with other settings ({difference(before, identity)}). "
            "Choose another output_dir, or pass overwrite=true."
        )
    return False


def _write_found(phases: list[Phase], run: SearchRun, folder: Path, table: LatencyTable | None) -> None:
    """Write the architecture files, and the record of everything that was sampled."""
    for phase in phases:
        for name, architecture in phase.architectures.items():
            found = {
                "search": run.search.name,
                "strategy": "random" if phase.name == "random" else run.search.strategy.kind,
                "data": run.data.name,
                "seed": run.seed,
                **architecture.get("found", {}),
            }
            place = (run.output_dir / f"{name}.yaml").as_posix()
            value = {"family": architecture["family"], "found": found, "net": architecture["net"]}
            write_text(
                folder / f"{name}.yaml",
                f"# Found by `python -m convatlas.search search={run.search.name}`. Train it:\n"
                f"# `python -m convatlas.train model=searched model.architecture={place}`\n"
                + yaml.safe_dump(value, sort_keys=False, default_flow_style=None, width=120),
            )
        _write_rows(phase, folder)
    if table is not None:
        write_json(
            folder / "latency.json",
            {"machine": table.machine, "space": table.space, "microseconds": table.microseconds},
        )


def _write_rows(phase: Phase, folder: Path) -> None:
    import pandas as pd

    with written_whole(folder / f"{phase.name}.csv") as file:
        pd.DataFrame(phase.rows).to_csv(file, index=False)


# ---- trainings at the end -------------------------------------------------------------------------------------------


def _train_finals(
    run: SearchRun, phases: list[Phase], compared: dict[str, dict[str, Any]], folder: Path
) -> dict[str, list[Path]]:
    """Train every net from scratch as an ordinary run below `folder`; return the folders of the seeds by name."""
    if not run.search.finals.seeds:
        return {}
    with hydra_ready():
        searched = composed_net(["model=searched"])
    nets: dict[str, tuple[dict[str, Any], int | None]] = {}
    for phase in phases:
        for name, architecture in phase.architectures.items():
            inline = {"family": architecture["family"], "net": architecture["net"]}
            model = {**searched["model"], "architecture": inline}
            nets[name] = {**searched, "model": model}, architecture.get("image_size")
    nets |= {name: (net, None) for name, net in compared.items()}
    return {
        name: train(_final_run(run, name, net, image_size, folder / name), strict=False)
        for name, (net, image_size) in nets.items()
    }


def _final_run(run: SearchRun, name: str, net: dict[str, Any], image_size: int | None, folder: Path) -> RunConfig:
    plain = run.model_dump(mode="json")
    data = plain["data"] | ({} if image_size is None else {"image_size": image_size})
    model = net["model"] | {"num_classes": run.data.num_classes, "in_channels": run.data.in_channels}
    return read_run(
        {
            "study": f"search_{run.search.name}",
            "variant": name,
            "seeds": plain["search"]["finals"]["seeds"],
            "output_dir": str(folder),
            "work_dir": str(work_path(run) / "finals" / name),
            "overwrite": False,
            "data": data,
            "about": net["about"],
            "model": model,
            "recipe": plain["recipe"],
            "trainer": plain["trainer"],
            "tracking": plain["tracking"],
        },
        f"search={run.search.name}",
    )


def _write_end(
    run: SearchRun, context: Context, phases: list[Phase], finals: dict[str, list[Path]], folder: Path
) -> None:
    from convatlas.search.report import result_of, write_report

    result = result_of(run, context, phases, finals)
    write_json(folder / "result.json", result)
    write_json(folder / "timing.json", {phase.name: phase.seconds for phase in phases})
    write_report(run, context, phases, result, folder)
    for sentence in result["verdicts"]:
        print(sentence)
