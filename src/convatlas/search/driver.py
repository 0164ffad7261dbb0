"""One search from beginning to end: it goes on where it was killed, and ends with trainings and a report."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml

from convatlas.core.composing import composed_net, hydra_ready, read_run
from convatlas.core.config import RunConfig
from convatlas.core.digests import digest
from convatlas.core.errors import UserError
from convatlas.core.files import atomic_write, write_json, write_text
from convatlas.core.folders import check_replaceable, put_in_place
from convatlas.core.processes import keep_freed_memory, uses_gpu
from convatlas.search.composing import compared_nets, search_code
from convatlas.search.config import SearchRun
from convatlas.search.darts import DartsSearch
from convatlas.search.data import SearchData
from convatlas.search.dnas import DnasSearch
from convatlas.search.latency import LatencyTable, table_for
from convatlas.search.random_search import RandomSearch
from convatlas.search.reinforcement import EnasSearch, NasnetSearch
from convatlas.search.scaling import CompoundSearch
from convatlas.search.spaces import FBNetSpace, Space, make_space
from convatlas.search.strategy import Context, Phase, Row, Strategy
from convatlas.search.tracking import SearchTracker, open_search_tracker
from convatlas.training.run import quieten_libraries, train
from convatlas.training.work_folder import WorkFolder, difference, read_identity

STRATEGIES: dict[str, Callable[[Context], Strategy]] = {
    "fbnet_dnas": DnasSearch,
    "darts": DartsSearch,
    "nasnet_rl": NasnetSearch,
    "enas": EnasSearch,
    "compound_scaling": CompoundSearch,
    "random": RandomSearch,
}


def run_search(run: SearchRun, *, strict: bool = True) -> Path:
    """Search, train what was found, and write the report; returns the folder of it all, which is whole or not there.

    Args:
        run: the search.
        strict: raise an error for a folder of a search with other settings, instead of starting afresh as a stage of
            the pipeline does.

    Raises:
        UserError: something that the user can correct; the message says how.
    """
    quieten_libraries()
    keep_freed_memory()
    torch.set_num_threads(run.trainer.threads)
    if run.trainer.deterministic:  # as Lightning does
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(run.trainer.deterministic, warn_only=True)
    data = SearchData(run.data, run.recipe, run.search.weights_share, run.seed)
    device = torch.device("cuda" if uses_gpu(run.trainer.accelerator) else "cpu")
    space = make_space(run.search.space, run.data.image_size) if run.search.space else None
    with hydra_ready():
        compared = compared_nets(run)
    table = _table(run, space, device)
    identity = search_identity(run, data, table, compared)
    folder = run.output_dir
    work = WorkFolder(work_path(run), identity, strict)
    if _is_finished(folder, identity, run, strict=strict):
        if work.is_left():  # by a kill after the results were written
            with suppress(UserError):  # another process is at it
                work.open(overwrite=False)
                work.remove()
        return folder
    check_replaceable(folder, "search", "output_dir")
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
    except BaseException:
        work.close()
        raise
    work.remove()
    return folder


def run_phases(context: Context, work: Path, tracker: SearchTracker) -> list[Phase]:
    """Run the search, and random search beside it with the same multiply-adds."""
    found = _run_phase("search", STRATEGIES[context.run.search.strategy.kind](context), work, tracker)
    if not context.run.search.random_beside:
        return [found]
    return [found, _run_phase("random", RandomSearch(context, budget=found.spent), work, tracker)]


def work_path(run: SearchRun) -> Path:
    """Return where an unfinished search keeps its state."""
    return run.work_dir or Path(".work") / "searches" / run.output_dir.name


def _run_phase(name: str, strategy: Strategy, work: Path, tracker: SearchTracker) -> Phase:
    """Run all steps of a strategy; its state is saved after each."""
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
    state = {"step": phase.step, "rows": phase.rows, "seconds": phase.seconds, "strategy": strategy.state()}
    with atomic_write(file) as opened:
        torch.save(state, opened)


def _load(file: Path, name: str, strategy: Strategy) -> Phase:
    """Return a phase as it was saved, or a new one.

    Raises:
        UserError: the file is damaged.
    """
    if not file.exists():
        return Phase(name)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        phase = Phase(name, rows=state["rows"], seconds=state["seconds"], step=state["step"])
        strategy.load_state(state["strategy"])
    except Exception as error:  # any, according to what is wrong with the file
        raise UserError(
            f"{file} cannot be read ({type(error).__name__}); delete {file.parent} and search again."
        ) from error
    phase.spent = strategy.spent
    print(f"{name}: continues after step {phase.step}", flush=True)
    return phase


def _show(phase: Phase, strategy: Strategy, rows: list[Row], seconds: float) -> None:
    of = f"/{strategy.steps}" if strategy.steps else ""
    for row in rows:
        figures = "  ".join(f"{key} {value:.4g}" for key, value in row.items() if isinstance(value, float))
        words = row.get("architecture") or row.get("likeliest") or ""
        print(f"{phase.name}  step {phase.step}{of}  {figures}  {words}", flush=True)
    print(f"{phase.name}  step {phase.step}{of}  {seconds:.1f} s", flush=True)


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
    images = {"in_channels": run.data.in_channels, "num_classes": run.data.num_classes}
    return table_for(space, term.table, **images, device=device, rounds=term.rounds, remeasure=term.remeasure)


def _is_finished(folder: Path, identity: dict[str, Any], run: SearchRun, *, strict: bool) -> bool:
    if not folder.exists():
        return False
    if any(folder.iterdir()) and not all((folder / name).exists() for name in ("identity.json", "result.json")):
        raise UserError(f"{folder} holds something else than a search, which would be lost; choose another output_dir.")
    if run.overwrite or not any(folder.iterdir()):
        return False
    before = read_identity(folder / "identity.json", f"delete {folder} and search again.")
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
    """Write the architecture files, and a table of everything that was sampled."""
    import pandas as pd

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
        with atomic_write(folder / f"{phase.name}.csv") as file:
            pd.DataFrame(phase.rows).to_csv(file, index=False)
    if table is not None:
        write_json(folder / "latency.json", asdict(table))


def _train_finals(
    run: SearchRun, phases: list[Phase], compared: dict[str, dict[str, Any]], folder: Path
) -> dict[str, list[Path]]:
    """Train every net from scratch as an ordinary run below `folder`; return the folders of the seeds by name."""
    if not run.search.finals.seeds:
        return {}
    with hydra_ready():
        searched = composed_net(["model=searched"])
    nets: dict[str, tuple[dict[str, Any], int]] = {}
    for phase in phases:
        for name, found in phase.architectures.items():
            inline = {"family": found["family"], "net": found["net"]}
            net = {**searched, "model": {**searched["model"], "architecture": inline}}
            nets[name] = net, found.get("image_size", run.data.image_size)
    nets |= {name: (net, run.data.image_size) for name, net in compared.items()}
    return {
        name: train(_final_run(run, name, net, image_size, folder / name), strict=False)
        for name, (net, image_size) in nets.items()
    }


def _final_run(run: SearchRun, name: str, net: dict[str, Any], image_size: int, folder: Path) -> RunConfig:
    plain = run.model_dump(mode="json")
    return read_run(
        {
            "study": f"search_{run.search.name}",
            "variant": name,
            "seeds": plain["search"]["finals"]["seeds"],
            "output_dir": str(folder),
            "work_dir": str(work_path(run) / "finals" / name),
            "overwrite": False,
            "data": plain["data"] | {"image_size": image_size},
            "about": net["about"],
            "model": net["model"] | {"num_classes": run.data.num_classes, "in_channels": run.data.in_channels},
            "trainer": plain["trainer"] | {"seeds_at_once": 1},  # the search has started threads
            **{key: plain[key] for key in ("recipe", "tracking")},
        },
        f"search={run.search.name}",
    )


def _write_end(
    run: SearchRun, context: Context, phases: list[Phase], finals: dict[str, list[Path]], folder: Path
) -> None:
    from convatlas.search.outcome import result_of, write_report

    result = result_of(run, context, phases, finals)
    write_json(folder / "result.json", result)
    write_json(folder / "timing.json", {phase.name: phase.seconds for phase in phases})
    write_report(run, context, phases, result, folder)
    for sentence in result["verdicts"]:
        print(sentence)
