"""Nothing that a command did not write is ever changed or deleted, `overwrite=true` or not.

Each case puts files of the user's into a place that a command writes to, and runs it: it either succeeds or ends with
one sentence and status 2, and all that it does not own is as before.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from convatlas import plan
from helpers import ROOT, Entered, assert_one_sentence, protected

SMALL = ("model=lenet5_modern", "recipe.epochs=1", "trainer.threads=1", "trainer.limit_batches=1", "tracking=none")
TUNE = ("tune.trials=1", "recipe.optimizer.lr=interval(0.1,0.2)")
SEARCH = (
    *("search=random", "tracking=none", "search.finals.seeds=[]", "search.proxy.epochs=1", "search.strategy.trials=1"),
    *("search.space.stages=[{channels: 8, layers: 1, stride: 2}]", "search.space.head_channels=16"),
    *("data.image_size=16", "search.latency.rounds=1", "search.proxy.batch_size=512"),
)
FOREIGN = "notes of the user's\n"


@dataclass(frozen=True)
class World:
    """A folder with everything that the commands work on.

    Attributes:
        folder: what is looked at before and after.
        prepared: prepared digits.
        run: the folder of a finished seed.
        images: a folder with images to predict.
    """

    folder: Path
    prepared: Path
    run: Path
    images: Path


@pytest.fixture(scope="module")
def finished_run(prepared_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a seed once; every case gets a copy."""
    from convatlas.core.composing import compose_run, hydra_ready
    from convatlas.training.run import train

    output_dir = tmp_path_factory.mktemp("finished") / "run"
    with hydra_ready():
        named = {"variant": "v", "seeds": [0], "output_dir": str(output_dir)}
        (folder,) = train(compose_run([*SMALL, f"data.prepared={prepared_digits}"], named), strict=True)
    return folder


@pytest.fixture(autouse=True)
def quick_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no figures: a file of each is enough here."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda _, path, **_options: Path(path).write_bytes(b"png"))


@pytest.fixture
def world(prepared_digits: Path, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Make the world of one case, and go into it."""
    folder = tmp_path / "world"
    images = folder / "images"
    images.mkdir(parents=True)
    Image.new("L", (8, 8), 100).save(images / "one.png")
    (images / "notes.txt").write_text(FOREIGN)
    run = folder / "runs" / "seed=0"
    shutil.copytree(finished_run, run)
    (folder / "conf").symlink_to(ROOT / "conf")
    monkeypatch.chdir(folder)
    return World(folder, prepared_digits, run, images)


def snapshot(folder: Path) -> dict[str, tuple[str, int, str]]:
    """Return kind, size and sha256 of everything below a folder; links are not followed."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = ("link", 0, str(path.readlink()))
        elif path.is_dir():
            found[name] = ("folder", 0, "")
        else:
            content = path.read_bytes()
            found[name] = ("file", len(content), sha256(content).hexdigest())
    return found


def check_kept(world: World, before: dict[str, tuple[str, int, str]], entered: Entered, owned: Sequence[str]) -> None:
    """Check that all is as before but for `owned`; a refused command does not even change that."""
    after = snapshot(world.folder)
    if entered.status != 0:
        assert_one_sentence(entered)
        owned = ()
    lost = {name for name, what in before.items() if after.get(name) != what}
    assert {name for name in lost if not any(name == own or name.startswith(f"{own}/") for own in owned)} == set()


# ---- commands that write a folder -----------------------------------------------------------------------------------

Arguments = Callable[[World, str], list[str]]
COMMANDS: dict[str, tuple[str, Arguments]] = {
    "predict": ("predict", lambda w, to: [f"run={w.run}", str(w.images), f"output_dir={to}", "overwrite=true"]),
    "evaluate": ("evaluate", lambda w, to: [f"run={w.run}", f"output_dir={to}"]),
    "train": ("train", lambda w, to: [*SMALL, f"data.prepared={w.prepared}", f"output_dir={to}", "overwrite=true"]),
    "train work_dir": (
        "train",
        lambda w, to: [*SMALL, f"data.prepared={w.prepared}", "output_dir=new", f"work_dir={to}", "overwrite=true"],
    ),
    "tune": (
        "tune",
        lambda w, to: [*SMALL, *TUNE, f"data.prepared={w.prepared}", f"output_dir={to}", "overwrite=true"],
    ),
    "search": (
        "search.__main__",
        lambda w, to: [*SEARCH, f"data.prepared={w.prepared}", f"output_dir={to}", "overwrite=true"],
    ),
    "search work_dir": (
        "search.__main__",
        lambda w, to: [*SEARCH, f"data.prepared={w.prepared}", "output_dir=new", f"work_dir={to}", "overwrite=true"],
    ),
    "prepare": ("prepare", lambda _, to: ["data=digits", "page=page.html", f"data.prepared={to}"]),
    "prepare page": ("prepare", lambda _, to: ["data=digits", f"page={to}/digits.html", "data.prepared=new"]),
    "export": ("export", lambda w, to: [f"run={w.run}", "format=safetensors", f"output_dir={to}"]),
    "measure": ("measure", lambda w, to: [f"run={w.run}", "seconds=0.001", f"output_dir={to}"]),
}
THEIRS = {
    "predict": "predictions.csv",
    "evaluate": "evaluation.json",
    "train": "seed=0/metrics.json",
    "train work_dir": "seed=0/best.ckpt",
    "tune": "tune.db",
    "search": "found.yaml",
    "search work_dir": "search.state",
    "prepare": "train_images.npy",
    "prepare page": "digits.html",
    "export": "safetensors/model.safetensors",
    "measure": "latency.csv",
}
"""A file of the user's that has the name of one that the command writes."""


def in_the_folder(world: World, _: str) -> str:
    """Files of the user's lie in the folder."""
    return made(world, "place", "notes.txt")


def of_the_same_name(world: World, command: str) -> str:
    """A file of the user's has the name of one that the command writes."""
    return made(world, "place", THEIRS[command])


def in_a_folder_below(world: World, _: str) -> str:
    """Files of the user's lie where a seed or a trial would."""
    made(world, "place", ".work/trial=0/notes.txt")
    return made(world, "place", "seed=0/notes.txt")


def a_link(world: World, _: str) -> str:
    """The folder is a link to another one of the user's."""
    (world.folder / "link").symlink_to(made(world, "place", "notes.txt"))
    return "link"


def a_file(world: World, _: str) -> str:
    """There is a file in place of the folder."""
    (world.folder / "place").write_text(FOREIGN)
    return "place"


def the_folder_that_one_is_in(_world: World, _: str) -> str:
    """The folder is the one that the user is in."""
    return "."


def the_folder_above_the_inputs(world: World, _: str) -> str:
    """The folder holds run and images."""
    return str(world.folder)


def the_folder_of_the_images(world: World, _: str) -> str:
    """The folder holds the images that are predicted."""
    return str(world.images)


def the_folder_of_the_run(world: World, _: str) -> str:
    """The folder is that of the run which is used."""
    return str(world.run)


def made(world: World, folder: str, name: str) -> str:
    """Write a file of the user's; returns the folder."""
    file = world.folder / folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(FOREIGN)
    return folder


PLACES = [
    in_the_folder,
    of_the_same_name,
    in_a_folder_below,
    a_link,
    a_file,
    the_folder_that_one_is_in,
    the_folder_above_the_inputs,
    the_folder_of_the_images,
    the_folder_of_the_run,
]


LONG = ("train", "train work_dir", "tune", "search", "search work_dir", "prepare page")
"""The commands that take seconds where they are not refused."""


def long_ones_slow(commands: Iterable[str], places: Iterable[Any], fast: Sequence[Any]) -> list[Any]:
    """Pair commands and places; a long command is tried among the fast tests in a few of the places alone."""
    return [
        pytest.param(
            command,
            place,
            id=f"{command}-{getattr(place, '__name__', place)}",
            marks=[pytest.mark.slow] if command in LONG and place not in fast else [],
        )
        for command in commands
        for place in places
    ]


@pytest.mark.parametrize(
    ("command", "place"), long_ones_slow(COMMANDS, PLACES, (of_the_same_name, the_folder_of_the_run))
)
def test_files_of_the_users_stay(enter, world, command, place):
    name, arguments = COMMANDS[command]
    to = place(world, command)
    before = snapshot(world.folder)
    check_kept(world, before, enter(name, *arguments(world, to)), owned=())


def slow_but(fast: Sequence[str], commands: Iterable[str]) -> list[Any]:
    """Return commands, all but those of `fast` among the slow tests."""
    return [pytest.param(name, marks=[] if name in fast else [pytest.mark.slow]) for name in commands]


@pytest.mark.parametrize("command", slow_but(("predict", "evaluate", "train", "prepare"), COMMANDS))
def test_files_of_the_users_among_earlier_results_stay(enter, world, command):
    name, arguments = COMMANDS[command]
    first = enter(name, *arguments(world, "place"))
    assert first.status == 0, first.err
    for folder in [path for path in [world.folder / "place", *world.folder.glob("place/*")] if path.is_dir()]:
        (folder / "notes.txt").write_text(FOREIGN)
    before = snapshot(world.folder)
    owned = [own for own in before if not own.endswith("notes.txt") and own.startswith(("place/", "new/"))]
    check_kept(world, before, enter(name, *arguments(world, "place")), owned)


REPLACING = [command for command in COMMANDS if command not in ("train", "evaluate")]


@pytest.mark.parametrize("command", slow_but(("predict", "prepare"), REPLACING))
def test_earlier_results_are_replaced(enter, world, command):
    name, arguments = COMMANDS[command]
    for _ in range(2):
        entered = enter(name, *arguments(world, "place"))
        assert entered.status == 0, entered.err
    assert not [path.name for path in world.folder.rglob(".*") if path.suffix in (".partial", ".old", ".tmp")]


def test_results_may_not_lie_where_the_training_works(enter, world):
    arguments = [*SMALL, f"data.prepared={world.prepared}", "output_dir=place", "work_dir=place"]
    assert_one_sentence(enter("train", *arguments), "work_dir", "output_dir")
    assert not list(world.folder.glob("place/seed=0/*"))


def test_a_finished_run_is_no_work_folder(enter, world):
    before = snapshot(world.folder)
    arguments = [*SMALL, f"data.prepared={world.prepared}", "output_dir=place", "work_dir=runs", "overwrite=true"]
    entered = enter("train", *arguments)
    assert_one_sentence(entered, "finished run", "work_dir")
    check_kept(world, before, entered, owned=())


# ---- commands that write at fixed places of a project ---------------------------------------------------------------

PLAN = ("study=thundernet", "seeds=0")
WRITTEN: dict[str, tuple[str, list[str], list[str]]] = {
    # What is called, with which arguments, and what is its own.
    "plan": ("plan", [*PLAN], ["params.yaml", "stages.yaml"]),
    "resolve": ("resolve", [], []),
    "report": ("report", [], []),
    "track": ("track", ["runs", "uri=sqlite:///mlflow.db"], []),
}
USERS = ["plan/notes.md", "reports/notes.md", "reports/studies/notes.md", "runs/notes.md", "runs/.finished/notes.md"]
USERS += ["runs/seed=0/figures/notes.md", "mlartifacts/notes.md", ".plan.partial/notes.md", "data/notes.md"]


@pytest.fixture(scope="module")
def plans() -> dict[str, str]:
    """Keep what `plan` writes, which takes a second."""
    return {}


@pytest.fixture
def planned(world: World, enter: Callable[..., Entered], plans: dict[str, str]) -> Path:
    """Return params.yaml as `plan` writes it."""
    params = world.folder / "params.yaml"
    if not plans:
        assert enter("plan", *PLAN).status == 0
        plans |= {name: params.with_name(name).read_text() for name in ("params.yaml", "stages.yaml")}
    for name, text in plans.items():
        params.with_name(name).write_text(text)
    return params


@pytest.mark.usefixtures("planned")
@pytest.mark.parametrize("command", WRITTEN)
def test_a_projects_other_files_stay(enter, world, command):
    name, arguments, owned = WRITTEN[command]
    if command == "report":
        assert enter("resolve").status == 0
    for file in USERS:
        made(world, ".", file)
    before = snapshot(world.folder)
    entered = enter(name, *arguments)
    check_kept(world, before, entered, owned)
    if command == "report":
        for page in ("reports/index.html", "reports/studies/thundernet/index.html"):
            earlier = (world.folder / page).read_text()
            (world.folder / page).write_text(FOREIGN)
            assert_one_sentence(enter(name), page, "move it")
            assert (world.folder / page).read_text() == FOREIGN
            (world.folder / page).write_text(earlier)
    if command == "resolve":
        assert_one_sentence(entered, "plan", "notes.md")
        (world.folder / "plan/notes.md").unlink()
        assert enter(name).status == 0
        assert enter(name).status == 0, "its own plan is replaced"


LONG_PLACES = {(command, name) for command in ("resolve", "track") for name in ("reports", "mlflow.db", "params.yaml")}
LONG_PLACES -= {("resolve", "params.yaml"), ("track", "mlflow.db")}  # the others take seconds, and are not written
IN_THE_PLACE = [
    pytest.param(command, name, marks=[pytest.mark.slow] if (command, name) in LONG_PLACES else [])
    for command in WRITTEN
    for name in ("plan", "reports", "mlflow.db", "params.yaml")
]


@pytest.mark.parametrize(("command", "name"), IN_THE_PLACE)
def test_a_file_or_a_folder_in_the_place_of_the_other_stays(enter, world, planned, command, name):
    path = planned.with_name(name)
    if path.suffix:
        path.unlink(missing_ok=True)
        made(world, name, "notes.md")
    else:
        path.write_text(FOREIGN)
    before = snapshot(world.folder)
    called, arguments, owned = WRITTEN[command]
    check_kept(world, before, enter(called, *arguments), owned)


def test_seeds_that_are_outdated_go_and_files_of_the_users_among_them_stay(world):
    from convatlas.train import remove_outdated

    folders = [world.run.with_name(f"seed={seed}") for seed in (1, 2, 3)]
    for folder in folders:
        shutil.copytree(world.run, folder)
        identity = json.loads((folder / "identity.json").read_text())
        (folder / "identity.json").write_text(json.dumps({**identity, "code": "another"}))
    (folders[0] / "notes.txt").write_text(FOREIGN)
    (folders[1] / "identity.json").write_text((world.run / "identity.json").read_text())
    remove_outdated(world.run.parent, [world.run])
    assert [folder.name for folder in folders if folder.exists()] == ["seed=1", "seed=2"]
    assert (folders[0] / "best.ckpt").exists()


# ---- a project that may only be read --------------------------------------------------------------------------------

READ_ONLY: dict[str, tuple[str, Arguments]] = {
    **COMMANDS,
    "predict elsewhere": ("predict", lambda w, _: [f"run={w.run}", str(w.images), f"output_dir={w.folder}/../other"]),
    "evaluate nowhere": ("evaluate", lambda w, _: [f"run={w.run}"]),
    "train tracked": ("train", lambda w, _: [*SMALL[:-1], f"data.prepared={w.prepared}", "tracking.log_model=false"]),
    "train several": ("train", lambda w, _: ["--multirun", "seed=0,1", *SMALL, f"data.prepared={w.prepared}"]),
    "plan": ("plan", lambda _w, _: [*PLAN]),
    "resolve": ("resolve", lambda _w, _: []),
    "report": ("report", lambda _w, _: []),
    "atlas": ("atlas.__main__", lambda _w, _: []),
    "track": ("track", lambda w, _: [f"{w.run}"]),
    "prepare from files": ("prepare", lambda _w, _: ["data=mnist"]),
}
READS = {"predict elsewhere", "evaluate nowhere"}


@pytest.mark.usefixtures("planned")
@pytest.mark.parametrize("command", READ_ONLY)
def test_a_project_that_may_only_be_read(enter, world, command):
    """What writes there says so in a sentence, before it has worked for it; what does not works."""
    name, arguments = READ_ONLY[command]
    before = snapshot(world.folder)
    with protected(world.folder):
        entered = enter(name, *arguments(world, "place"))
    assert snapshot(world.folder) == before
    if command in READS:
        assert entered.status == 0, entered.err
    else:
        assert_one_sentence(entered)
        assert not any(word in entered.err for word in (".tmp", ".partial"))
        assert "epoch 1" not in entered.out


def test_every_fault_is_held_by_a_test_that_there_is():
    page = (ROOT / "docs" / "faults.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| fault |")]
    held = re.findall(r"`([\w/]+\.py)::(test_\w+)`", page)
    assert len(rows) > 100
    assert len([row for row in rows if "::" not in row]) == 1, "one refusal is DVC's own"
    missing = [f"{file}::{name}" for file, name in held if f"def {name}(" not in (ROOT / "tests" / file).read_text()]
    assert missing == []


def test_dvc_leaves_what_a_new_plan_leaves_out(tmp_path, monkeypatch):
    """`dvc exp run` begins with a checkout, which deletes what DVC linked and no stage writes any more."""
    from dvc.repo import Repo

    monkeypatch.chdir(tmp_path)
    repo = Repo.init(no_scm=True)
    kept, other = Path("runs", "study", "kept"), Path("runs", "study", "other")
    stage = "  {0}:\n    cmd: mkdir -p {1} && echo 1 > {1}/metrics.json\n    outs: [{1}: {{persist: true}}]\n"
    Path("dvc.yaml").write_text("stages:\n" + stage.format("kept", kept) + stage.format("other", other))
    repo.reproduce()
    for path in (kept, other):
        shutil.rmtree(path)
    repo.checkout()
    Path("dvc.yaml").write_text("stages: {}\n")
    plan.keep_from_dvc([kept, Path("runs", "nowhere")])
    Repo(".").checkout(force=True)
    assert (kept / "metrics.json").read_text() == "1\n"
    assert not other.exists(), "DVC has changed, and nothing is to be kept from it"


def test_what_a_plan_leaves_out_is_runs_data_and_searches(monkeypatch):
    before = SimpleNamespace(runs={"s/a": {}, "s/b": {}}, data={"d": {}, "e": {}}, searches={"f": {}})
    monkeypatch.setattr(plan, "read_plan", lambda _: before)
    found = {str(path) for path in plan.left_out({"runs": {"s/b": {}}, "data": {"e": {}}, "searches": {}})}
    assert found == {"runs/s/a", "runs/.finished/s/a.json", "data/prepared/d", "reports/data/d.html", "searches/f"}
