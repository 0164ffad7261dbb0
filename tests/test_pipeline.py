"""The pipeline: its plan is the committed one, each stage depends on its file in it, and DVC runs just what changed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from convatlas.core import source_code
from convatlas.core.composing import hydra_ready
from convatlas.core.errors import UserError
from convatlas.core.files import write_json
from convatlas.plan import Options, make_plan
from convatlas.search.composing import searches_for
from convatlas.studies.params import read_plan
from convatlas.studies.planning import Scale, Study, planned_runs, template_values
from convatlas.train import remove_outdated
from helpers import ROOT, assert_one_sentence


def committed_params() -> dict:
    """Read params.yaml and stages.yaml."""
    params, stages = (yaml.safe_load((ROOT / name).read_text()) for name in ("params.yaml", "stages.yaml"))
    assert stages.pop("trainings") == len(stages["runs"])
    return params | stages


def test_the_committed_plan_is_what_plan_writes_without_arguments():
    options = Options()
    plan = make_plan(options.study, options.scale, options.seeds, options.overrides, options.search)
    assert committed_params() == plan


# ---- searches -------------------------------------------------------------------------------------------------------


def planned(architecture: str):
    """Plan one run of a searched net."""
    overrides = ["data=digits", "model=searched", f"model.architecture={architecture}"]
    study = Study(
        name="one",
        title="One net",
        question="?",
        source="a test",
        overrides={"laptop": overrides},
        variants={"net": {"title": "The net", "overrides": []}},
        printed={},
        claims=[],
        deviations=[],
    )
    with hydra_ready():
        (run,) = planned_runs(study, Scale(name="laptop", seeds=[0], overrides=[]), [0], [])
    return run.config


def test_a_search_is_planned_where_it_is_named_and_where_its_net_is_trained():
    assert committed_params()["searches"] == {}
    plan = make_plan([], "laptop", None, [], ["darts"])
    assert (plan["searches"], list(plan["data"]), plan["runs"]) == ({"darts": {"data": "digits"}}, ["digits"], {})
    with hydra_ready():
        assert list(searches_for(["darts"], [{"architecture": "searches/enas/random.yaml"}])) == ["darts", "enas"]
        with pytest.raises(UserError, match=r"search=dart: there is no such search\. Did you mean darts"):
            searches_for(["dart"], [])


def test_a_net_waits_for_its_search_and_a_committed_one_is_in_the_plan_as_a_whole():
    waiting = planned("searches/darts/found.yaml")
    assert waiting.model["architecture"] == "searches/darts/found.yaml"
    assert template_values(waiting) == {"data": "digits", "after": "searches/darts/found.yaml"}
    file = "conf/architecture/fbnet_dnas.yaml"
    committed = planned(file)
    written = yaml.safe_load((ROOT / file).read_text())
    assert committed.model["architecture"] == {"family": "fbnet", "net": written["net"]}
    assert template_values(committed) == {"data": "digits", "after": "data/prepared/digits"}


# ---- plan/ ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def resolved(enter, monkeypatch, tmp_path):
    """Return a function that plans and resolves in a folder of its own, and reads a file of plan/."""
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    monkeypatch.chdir(tmp_path)

    def resolved(*arguments: str) -> Path:
        assert enter("plan", "study=spatial_pyramid_pooling", "seeds=7", *arguments).status == 0
        entered = enter("resolve")
        assert entered.status == 0, entered.err
        return tmp_path / "plan"

    return resolved


def files_below(folder: Path) -> dict[str, bytes]:
    """Read every file of a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_stage_has_its_file_in_the_plan(resolved):
    plan = resolved()
    params = yaml.safe_load(Path("stages.yaml").read_text())
    files = set(files_below(plan))
    runs = {f"{key}.yaml" for key in params["runs"]}
    assert files == runs | {f"tracking/{run}" for run in runs} | {
        ".convatlas.json",
        "spatial_pyramid_pooling.yaml",
        "code/atlas.yaml",
        "code/report.yaml",
        "data/cluttered_digits.yaml",
    }
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    named = [dep for body in stages.values() for dep in body.get("do", body)["deps"]]
    assert not [dep for dep in named if dep.startswith("src/convatlas/")]


@pytest.mark.parametrize("stage", ["prepare", "train"])
def test_what_dvc_may_not_delete_persists(stage):
    """A preparation by hand, and finished seeds."""
    first, *_ = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]["do"]["outs"]
    (options,) = first.values()
    assert options["persist"] is True


def test_options_of_tracking_change_no_file_that_a_training_depends_on(resolved):
    before = files_below(resolved())
    after = files_below(resolved("overrides=[tracking.log_model=false]"))
    changed = {name for name in before if before[name] != after[name]}
    assert {name.partition("/")[0] for name in changed} == {"tracking", "spatial_pyramid_pooling.yaml"}


def test_the_command_that_plans_a_study_again_gives_the_same_plan(enter, resolved):
    plan = resolved("overrides=[recipe.epochs=1,recipe.augmentation.image_sizes=[24,32]]")
    before = Path("params.yaml").read_bytes()
    command = shlex.split(
        yaml.safe_load((plan / "spatial_pyramid_pooling.yaml").read_text())["command"].split(" && ")[0]
    )
    assert command[:3] == ["python", "-m", "convatlas.plan"]
    assert enter("plan", *command[3:]).status == 0
    assert Path("params.yaml").read_bytes() == before


def test_an_upgrade_changes_what_the_library_decides(resolved, monkeypatch):
    before = files_below(resolved())
    version = metadata.version
    monkeypatch.setattr(
        "convatlas.core.source_code.metadata.version", lambda name: "99" if name == "torchmetrics" else version(name)
    )
    source_code._version.cache_clear()
    after = files_below(resolved())
    source_code._version.cache_clear()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {name for name in before if name.startswith("spatial_pyramid_pooling/")}


def test_planned_runs_that_differ_from_the_list_are_told_with_the_users_own_plan(enter, resolved):
    resolved("overrides=[recipe.epochs=1]")
    stages = yaml.safe_load(Path("stages.yaml").read_text())
    del stages["runs"][next(iter(stages["runs"]))]
    Path("stages.yaml").write_text(yaml.safe_dump(stages))
    before = files_below(Path("plan"))
    words = ["does not list the runs", "study=spatial_pyramid_pooling", "seeds=7", "overrides=[recipe.epochs=1]"]
    assert_one_sentence(enter("resolve"), *words)
    assert files_below(Path("plan")) == before
    assert not list(Path().glob(".plan*"))


EMPTY = ["seeds", "overrides", "studies", "data", "manifests", "searches", "runs", "scale"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": 3}, ["seeds=3", "write a list, for example seeds: [0, 1, 2]"]),
        ({"seeds": ["a"]}, ["seeds.0='a'", "whole number"]),
        ({"seeds": [-1]}, ["seeds.0=-1", "greater than or equal to 0"]),
        ({"seeds": []}, ["seeds=[]", "at least one"]),
        ({"seeds": [1, 1]}, ["seeds=[1, 1]", "twice"]),
        ({"overrides": [{"recipe.epochs": 2}]}, ["overrides.0", "recipe.epochs=2"]),
        ({"overrides": [5]}, ["overrides.0=5", "one text"]),
        ({"overrides": "recipe.epochs=2"}, ["overrides='recipe.epochs=2'", "overrides: [recipe.epochs=2]"]),
        ({"overrides": ["recipe.epochs"]}, ["'recipe.epochs' has no value"]),
        ({"overrides": ["seed=5"]}, ["seed=5 has no effect", "set seeds in params.yaml"]),
        ({"overrides": ["seeds=[5]"]}, ["seeds=[5] has no effect"]),
        ({"overrides": ["output_dir=/x"]}, ["output_dir=/x has no effect"]),
        ({"overrides": ["study=x"]}, ["study=x has no effect", "set studies"]),
        ({"overrides": ["tracking=null"]}, ["tracking=null", "none"]),
        ({"overrides": ["recipe.epochs=[2"]}, ["recipe.epochs=[2 cannot be read"]),
        ({"studies": "overview"}, ["studies='overview'", "studies: [overview]"]),
        ({"studies": ["overvew"]}, ["study=overvew", "overview"]),
        ({"studies": ["spatial_pyramid_pooling", "spatial_pyramid_pooling"]}, ["spatial_pyramid_pooling", "twice"]),
        ({"scale": "huge"}, ["scale=huge", "laptop"]),
        ({"surprise": 1}, ["no key surprise"]),
        *[({key: None}, [f"{key}=None", "write"]) for key in EMPTY],
    ],
    ids=str,
)
def test_a_plan_edited_by_hand_is_read_with_types(enter, monkeypatch, tmp_path, changes, words):
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    monkeypatch.chdir(tmp_path)
    base = {"scale": "laptop", "seeds": [0], "overrides": [], "studies": ["spatial_pyramid_pooling"]}
    base |= {"data": {}, "manifests": {}, "searches": {}, "runs": {}}
    Path("params.yaml").write_text(yaml.safe_dump(base | changes))
    assert_one_sentence(enter("resolve"), *words)
    assert not Path("plan").exists()


@pytest.mark.parametrize(
    ("text", "word"), [("", "empty"), ("- 1", "not a mapping"), ("a: [", "not readable"), ("a: 1", "lacks")]
)
def test_what_is_no_plan_at_all(enter, monkeypatch, tmp_path, text, word):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(text)
    assert_one_sentence(enter("resolve"), "params.yaml", word, "python -m convatlas.plan")


def test_a_study_has_the_name_of_its_file(enter, monkeypatch, tmp_path):
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    monkeypatch.chdir(tmp_path)
    shutil.copy("conf/study/spatial_pyramid_pooling.yaml", "conf/study/mine.yaml")
    assert_one_sentence(enter("plan", "study=mine"), "conf/study/mine.yaml", "its name is spatial_pyramid_pooling")
    text = Path("conf/study/mine.yaml").read_text()
    Path("conf/study/tracking.yaml").write_text(text.replace("name: spatial_pyramid_pooling", "name: tracking"))
    assert_one_sentence(enter("plan", "study=tracking"), "conf/study/tracking.yaml", "rename")
    assert_one_sentence(enter("plan", "study=spatial_pyramid_pooling,spatial_pyramid_pooling"), "twice")
    assert not Path("params.yaml").exists()


def test_a_study_joins_the_plan_or_leaves_it_and_the_rest_stays(enter, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    first = ["study=spatial_pyramid_pooling", "seeds=7,8", "overrides=[recipe.epochs=1]"]
    assert enter("plan", *first).status == 0
    before = read_plan(Path("params.yaml"))
    assert enter("plan", "study=+vanishing_gradient").status == 0
    both = read_plan(Path("params.yaml"))
    assert both.studies == ["spatial_pyramid_pooling", "vanishing_gradient"]
    assert (both.seeds, both.overrides) == ([7, 8], ["recipe.epochs=1"])
    assert before.runs.items() < both.runs.items()
    assert enter("plan", "study=-vanishing_gradient").status == 0
    assert read_plan(Path("params.yaml")) == before
    assert_one_sentence(enter("plan", "study=-vanishing_gradient"), "the plan has no such study")
    assert_one_sentence(enter("plan", "study=-spatial_pyramid_pooling"), "leaves no study")
    assert_one_sentence(enter("plan", "study=+overview,densenet"), "with and without a sign")


# ---- seeds that are finished ----------------------------------------------------------------------------------------


def test_results_of_other_settings_go_and_those_of_the_same_stay(tmp_path):
    def seed(number: int, lr: float) -> Path:
        folder = tmp_path / f"seed={number}"
        write_json(folder / "identity.json", {"config": {"lr": lr}, "seed": number})
        return folder

    trained, same, other = seed(0, 0.1), seed(1, 0.1), seed(2, 0.2)
    mine = tmp_path / "seed=9"
    mine.mkdir()
    (mine / "notes.txt").write_text("not ours")
    remove_outdated(tmp_path, [trained])
    assert [folder.exists() for folder in (trained, same, other, mine)] == [True, True, False, True]


# ---- DVC ------------------------------------------------------------------------------------------------------------

STUDY = """
name: overview
title: Two nets
question: Which is better?
source: a test
overrides: {laptop: [data=digits, recipe=laptop]}
variants:
  lenet5: {title: LeNet-5, overrides: [model=lenet5_modern]}
  resnet: {title: ResNet, overrides: [model=resnet_cifar, model.depth=8]}
printed: {}
claims: []
deviations: []
"""
QUICK = "[recipe.epochs=2,trainer.threads=1,tracking.log_model=false,tracking.system_metrics=false]"


class Project:
    """A copy of the project with a plan of two small runs."""

    def __init__(self, folder: Path, study: str = STUDY, search: str | None = None) -> None:
        self.folder = folder
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        for name in ("src", "conf"):
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        for name in ("dvc.yaml", "requirements.lock", ".gitignore", ".dvcignore"):
            shutil.copy(ROOT / name, folder / name)
        verdicts = folder / "docs" / "studies" / "verdicts.json"
        verdicts.parent.mkdir(parents=True)
        verdicts.write_text("[]\n")
        for net in (folder / "conf" / "model").glob("*.yaml"):
            if net.stem not in {"fbnet_small", "lenet5_modern", "mobilenet_v2_small", "resnet_cifar", "searched"}:
                net.unlink()  # the atlas draws every net that there is
        (folder / "conf" / "study" / "overview.yaml").write_text(study)
        if search is not None:
            (folder / "conf" / "search" / "tiny.yaml").write_text(search)
        self.run("git", "init", "-q")
        self.run("dvc", "init", "-q")
        shutil.copytree(
            ROOT / ".dvc", folder / ".dvc", dirs_exist_ok=True, ignore=shutil.ignore_patterns("cache", "tmp")
        )
        self.run(sys.executable, "-m", "convatlas.plan", "seeds=[0]", f"overrides={QUICK}")
        self.run("git", "add", "-A")
        self.run("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "start")

    @property
    def environment(self) -> dict[str, str]:
        """Have another tree's code installed, as a second clone has: the copy's own must run all the same."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PATH": path, "DVC_NO_ANALYTICS": "1"}

    def run(self, *command: str) -> str:
        """Run a command that must succeed, and return what it printed."""
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False, timeout=900
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def repro(self) -> set[str]:
        """Run the pipeline and return the stages that ran."""
        output = self.run("dvc", "repro")
        return {line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")}

    def edit(self, name: str, old: str, new: str) -> None:
        """Edit a file."""
        path = self.folder / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Make a project and run its pipeline once."""
    project = Project(tmp_path_factory.mktemp("pipeline") / "project")
    everything = {
        "prepare@digits",
        "resolve",
        "train@overview/lenet5",
        "train@overview/resnet",
        "report",
        "atlas",
    }
    assert project.repro() == everything
    return project


@pytest.mark.slow
def test_a_second_repro_does_nothing(project):
    assert project.repro() == set()


@pytest.mark.slow
def test_the_summary_is_one_readable_file(project):
    shown = project.run("dvc", "metrics", "show", "--json")
    assert "metrics/summary.json" in shown
    assert "runs/" not in shown
    assert {"overview.lenet5", "overview.resnet"} <= set(
        re.findall(r"overview\.\w+", project.run("dvc", "metrics", "diff", "--targets", "metrics/scores.json"))
    )


@pytest.mark.slow
def test_experiments_have_a_dozen_columns_and_plots_need_no_network(project):
    table = project.run(sys.executable, "-m", "convatlas", "experiments", "--csv").splitlines()[0].split(",")
    shown = [name for name in table if name not in ("rev", "typ", "parent", "State", "Executor")]
    assert len(shown) <= 12, shown
    assert {"accuracy", "finished", "train_minutes", "seeds", "overrides"} <= set(shown)
    project.run("dvc", "plots", "show")
    page = (project.folder / "dvc_plots" / "index.html").read_text()
    assert "Validation score by epoch" in page
    assert "overview/lenet5" in page
    assert not re.search(r'src="https?://', page)
    assert (project.folder / "reports" / "vega.js").stat().st_size > 500_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("src/convatlas/models/classification/resnet_cifar.py", "depth: int = 20", "depth: int = 14"),
        ("conf/model/resnet_cifar.yaml", "width: 16", "width: 8"),
        ("conf/study/overview.yaml", "model.depth=8]", "model.depth=8, recipe.optimizer.lr=0.02]"),
    ],
    ids=["net", "configuration of a net", "variant of a study"],
)
def test_an_edit_trains_what_it_touches_alone(project, file, before, after):
    project.edit(file, before, after)
    assert project.repro() == {"resolve", "train@overview/resnet", "report", "atlas"}


@pytest.mark.slow
def test_editing_a_docstring_trains_nothing(project):
    project.edit("src/convatlas/training/run.py", '"""One run', '"""Edited. One run')
    assert project.repro() == {"resolve"}


@pytest.mark.slow
def test_a_variant_that_diverges_is_told_in_the_report_and_the_rest_stands(project):
    project.edit("conf/study/overview.yaml", "[model=lenet5_modern]", "[model=lenet5_modern, recipe.optimizer.lr=1e30]")
    assert project.repro() == {"resolve", "train@overview/lenet5", "report", "atlas"}
    page = (project.folder / "reports" / "studies" / "overview" / "index.html").read_text()
    assert "The loss became" in page
    assert "1 of 2" in page
    assert project.repro() == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("src/convatlas/reporting/report.py", 'output / "index.html"', 'Path(output) / "index.html"'),
        ("src/convatlas/reporting/templates/style.css", ":root", "/* edited */ :root"),
        ("params.yaml", "tracking.log_model=false", "tracking.log_model=true"),
    ],
    ids=["code", "style", "an option of tracking"],
)
def test_what_only_shows_results_trains_nothing(project, file, before, after):
    project.edit(file, before, after)
    ran = project.repro()
    assert {"resolve", "report", "atlas"} <= ran <= {"resolve", "report", "atlas", "prepare@digits"}


@pytest.mark.slow
def test_a_training_beside_the_plan_changes_nothing_for_dvc(project):
    assert project.repro() == set()
    options = ["model=lenet5_modern", "recipe.epochs=1", "trainer.threads=1", "tracking=none"]
    project.run(sys.executable, "-m", "convatlas.train", *options, "study=overview")
    assert len(list((project.folder / "runs" / "overview").iterdir())) == 3
    assert "up to date" in project.run("dvc", "status")
    assert project.repro() == set()


@pytest.mark.slow
def test_a_comment_in_the_configuration_trains_nothing(project):
    project.edit("conf/recipe/base.yaml", "# What", "# Edited. What")
    assert project.repro() == {"resolve"}


@pytest.mark.slow
def test_an_experiment_overrides_the_plan(project):
    project.run("git", "add", "-A")
    project.run("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "before the experiment")
    project.run(
        "dvc", "exp", "run", "--temp", "--name", "short", "-S", "overrides=['recipe.epochs=1','trainer.threads=1']"
    )
    assert "short" in project.run("dvc", "exp", "show", "--csv")


ONE = """
name: overview
title: One net
question: Which is better?
source: a test
overrides: {laptop: [data=digits, recipe=laptop]}
variants:
  lenet5: {title: LeNet-5, overrides: [model=lenet5_modern]}
printed: {}
claims: []
deviations: []
"""


@pytest.mark.slow
def test_finished_seeds_are_never_trained_again(tmp_path):
    project = Project(tmp_path / "seeds", ONE)
    project.edit("params.yaml", "seeds:\n- 0\n", "seeds:\n- 0\n- 1\n- 2\n")
    project.edit("params.yaml", "- recipe.epochs=2", "- recipe.epochs=4\n- trainer.seeds_at_once=2")
    run = project.folder / "runs" / "overview" / "lenet5"
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)  # as it is in a terminal
    process = subprocess.Popen(
        ["dvc", "repro"], cwd=project.folder, env=project.environment, start_new_session=True, stdout=subprocess.DEVNULL
    )
    signal.signal(signal.SIGINT, ignored)
    while not (project.folder / ".work/overview/lenet5/seed=2/last.ckpt").exists() and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    process.wait()

    def trained() -> dict[str, int]:
        return {folder.name: (folder / "timing.json").stat().st_mtime_ns for folder in run.glob("seed=*")}

    before = trained()
    assert set(before) == {"seed=0", "seed=1"}, "the third seed was over before it could be stopped"
    project.repro()
    after = trained()
    assert set(after) == {"seed=0", "seed=1", "seed=2"}
    assert before.items() <= after.items()
    project.edit("params.yaml", "- 2\n", "- 2\n- 3\n")
    assert project.repro() == {"resolve", "train@overview/lenet5", "report", "atlas"}
    assert after.items() < trained().items()
    project.edit("params.yaml", "- 1\n- 2\n", "")
    assert project.repro() == {"resolve", "train@overview/lenet5", "report", "atlas"}
    assert after.items() < trained().items()  # no longer asked for, and there when they are asked for again
    page = (project.folder / "reports" / "variants.csv").read_text()
    assert page.splitlines()[1].split(",")[page.splitlines()[0].split(",").index("seeds")] == "2"


@pytest.mark.slow
def test_a_queued_experiment_runs_the_code_that_was_queued(tmp_path):
    project = Project(tmp_path / "queue", ONE)
    project.run("dvc", "exp", "run", "--queue", "--name", "queued", "-S", "overrides=['recipe.epochs=1']")
    net, bias = "src/convatlas/models/classification/lenet.py", "nn.Linear(84, num_classes, bias=False)"
    project.edit(net, "nn.Linear(84, num_classes)", bias)  # going on with other work
    project.run("dvc", "queue", "start", "--jobs", "1")
    project.run("dvc", "queue", "logs", "queued", "--follow")
    project.run("git", "checkout", "-q", "src")
    project.run("dvc", "exp", "apply", "queued")
    import torch

    weights = torch.load(project.folder / "runs/overview/lenet5/seed=0/best.ckpt", weights_only=True)["state_dict"]
    assert any(name.endswith(".bias") and len(tensor) == 10 for name, tensor in weights.items())


@pytest.mark.slow
def test_repro_killed_in_mid_stage_goes_on_to_the_same_bits(tmp_path, project):
    import torch

    killed = Project(tmp_path / "killed")
    killed.edit("params.yaml", "recipe.epochs=2", "recipe.epochs=8")
    undisturbed = Project(tmp_path / "undisturbed")
    undisturbed.edit("params.yaml", "recipe.epochs=2", "recipe.epochs=8")
    undisturbed.repro()
    process = subprocess.Popen(
        ["dvc", "repro"], cwd=killed.folder, env=killed.environment, start_new_session=True, stdout=subprocess.DEVNULL
    )
    checkpoint = killed.folder / ".work" / "overview" / "lenet5" / "seed=0" / "last.ckpt"
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert checkpoint.exists(), "the stage was over before it could be killed"
    killed.repro()
    folders = [p.folder / "runs" / "overview" / "lenet5" / "seed=0" for p in (killed, undisturbed)]
    one, other = (torch.load(folder / "best.ckpt", weights_only=True)["state_dict"] for folder in folders)
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert (folders[0] / "metrics.json").read_bytes() == (folders[1] / "metrics.json").read_bytes()
    import sqlite3

    with sqlite3.connect(killed.folder / "mlflow.db") as database:
        names = database.execute("SELECT name, status FROM runs WHERE name = 'lenet5 seed 0'").fetchall()
    assert names == [("lenet5 seed 0", "FINISHED")]


# ---- searches, with DVC ---------------------------------------------------------------------------------------------

SEARCHING = """
name: overview
title: A searched net
question: What is found?
source: a test
overrides: {laptop: [data=digits, recipe=laptop]}
variants:
  found: {title: Found, overrides: [model=searched, model.architecture=searches/tiny/random.yaml]}
printed: {}
claims: []
deviations: []
"""
TINY = """
defaults: [random, _self_]
name: tiny
strategy: {trials: 3}
proxy: {epochs: 1, batch_size: 128}
latency: null
finals: {seeds: []}
"""


@pytest.mark.slow
def test_a_search_is_a_stage_that_goes_on_after_a_kill_and_what_it_finds_is_trained(tmp_path):
    import torch

    project = Project(tmp_path / "searching", SEARCHING, TINY)
    project.run("dvc", "repro", "resolve", "prepare@digits")
    process = subprocess.Popen(
        ["dvc", "repro"], cwd=project.folder, env=project.environment, start_new_session=True, stdout=subprocess.DEVNULL
    )
    state = project.folder / ".work" / "searches" / "tiny" / "search.state"
    while not state.exists() and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = torch.load(state, weights_only=True)["step"]
    output = project.run("dvc", "repro")
    steps = [int(step) for step in re.findall(r"^search  step (\d+)/3  [\d.]+ s$", output, re.MULTILINE)]
    assert steps == list(range(done + 1, 4)), output
    assert "Running stage 'train@overview/found'" in output
    found = yaml.safe_load((project.folder / "searches" / "tiny" / "random.yaml").read_text())
    trained = yaml.safe_load((project.folder / "runs" / "overview" / "found" / "seed=0" / "config.yaml").read_text())
    assert trained["model"]["architecture"] == {"family": found["family"], "net": found["net"]}
    assert project.repro() == set()
    project.edit("conf/search/tiny.yaml", "trials: 3", "trials: 1")
    assert {"resolve", "search@tiny"} <= project.repro()
