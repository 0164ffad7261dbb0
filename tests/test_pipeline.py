"""The pipeline: its plan is the committed one, its stages name all they depend on, and DVC runs just what changed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from convatlas.core.composing import hydra_ready
from convatlas.core.errors import UserError
from convatlas.core.source_code import files_imported_by
from convatlas.plan import Options, make_plan
from convatlas.search.composing import searches_for
from convatlas.studies.planning import Scale, Study, planned_runs, source_file, template_values
from helpers import ROOT

SOURCE = ROOT / "src"


def committed_params() -> dict:
    """Read params.yaml."""
    return yaml.safe_load((ROOT / "params.yaml").read_text())


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


# ---- dependencies ---------------------------------------------------------------------------------------------------


def missing(files: list[Path], deps: list[str]) -> list[str]:
    """Return the files that neither stand among the dependencies nor below a folder among them."""
    named = [ROOT / dep for dep in deps]
    return sorted(
        file.relative_to(ROOT).as_posix()
        for file in files
        if not any(file == dep or dep in file.parents for dep in named)
    )


def stage(name: str, **values: str) -> list[str]:
    """Return the dependencies of a stage with its template filled in."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    body = stages[name].get("do", stages[name])
    filled = []
    for dep in body["deps"]:
        for key, value in values.items():
            dep = dep.replace("${" + key.replace("_", ".") + "}", value)  # noqa: PLW2901
        filled.append(dep)
    return filled


@pytest.mark.parametrize("data", sorted(path.stem for path in (ROOT / "conf" / "data").glob("*.yaml")))
def test_a_preparation_stage_names_every_module_it_imports(data):
    config = yaml.safe_load((ROOT / "conf" / "data" / f"{data}.yaml").read_text())
    source = source_file(config["source"]["_target_"])
    files = files_imported_by([SOURCE / "convatlas" / "prepare.py", ROOT / source])
    assert missing(files, stage("prepare", key=data, item_source=source)) == []


@pytest.mark.parametrize(("name", "entry"), [("resolve", "resolve.py"), ("report", "report.py")])
def test_the_other_stages_name_every_module_they_import(name, entry):
    assert missing(files_imported_by([SOURCE / "convatlas" / entry]), stage(name)) == []


def test_a_missing_dependency_would_be_found():
    files = files_imported_by([SOURCE / "convatlas" / "report.py"])
    deps = [dep for dep in stage("report") if dep != "src/convatlas/core/files.py"]
    assert missing(files, deps) == ["src/convatlas/core/files.py"]


def test_every_source_that_a_stage_names_exists():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    named = {dep for body in stages.values() for dep in body.get("do", body)["deps"]}
    sources = {dep for dep in named if dep.startswith(("src", "conf")) and "$" not in dep}
    assert [dep for dep in sorted(sources) if not (ROOT / dep).exists()] == []


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
        for name in ("dvc.yaml", ".gitignore", ".dvcignore"):
            shutil.copy(ROOT / name, folder / name)
        (folder / "conf" / "study" / "overview.yaml").write_text(study)
        if search is not None:
            (folder / "conf" / "search" / "tiny.yaml").write_text(search)
        self.run("git", "init", "-q")
        self.run("dvc", "init", "-q")
        self.run(sys.executable, "-m", "convatlas.plan", "seeds=[0]", f"overrides={QUICK}")
        self.run("git", "add", "-A")
        self.run("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "start")

    @property
    def environment(self) -> dict[str, str]:
        """Take the copy's code instead of the installed one."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, "PYTHONPATH": str(self.folder / "src"), "PATH": path, "DVC_NO_ANALYTICS": "1"}

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
    }
    assert project.repro() == everything
    return project


@pytest.mark.slow
def test_a_second_repro_does_nothing(project):
    assert project.repro() == set()


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
    assert project.repro() == {"resolve", "train@overview/resnet", "report"}


@pytest.mark.slow
def test_editing_a_docstring_trains_nothing(project):
    project.edit("src/convatlas/training/run.py", '"""One run', '"""Edited. One run')
    assert project.repro() == {"resolve"}


@pytest.mark.slow
def test_a_variant_that_diverges_is_told_in_the_report_and_the_rest_stands(project):
    project.edit("conf/study/overview.yaml", "[model=lenet5_modern]", "[model=lenet5_modern, recipe.optimizer.lr=1e30]")
    assert project.repro() == {"resolve", "train@overview/lenet5", "report"}
    page = (project.folder / "reports" / "studies" / "overview" / "index.html").read_text()
    assert "The loss became" in page
    assert "1 of 2" in page
    assert project.repro() == set()


@pytest.mark.slow
def test_editing_report_code_trains_nothing(project):
    project.edit("src/convatlas/reporting/report.py", '"""', '"""Edited. ')
    assert project.repro() == {"resolve", "report"}


@pytest.mark.slow
def test_a_comment_in_the_configuration_trains_nothing(project):
    project.edit("conf/recipe/base.yaml", "# What", "# Edited. What")
    assert project.repro() == {"resolve"}


@pytest.mark.slow
def test_the_summary_is_one_readable_file(project):
    shown = project.run("dvc", "metrics", "show", "--json")
    assert "reports/summary.json" in shown
    assert "runs/" not in shown


@pytest.mark.slow
def test_an_experiment_overrides_the_plan(project):
    project.run("git", "add", "-A")
    project.run("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "before the experiment")
    project.run(
        "dvc", "exp", "run", "--temp", "--name", "short", "-S", "overrides=['recipe.epochs=1','trainer.threads=1']"
    )
    assert "short" in project.run("dvc", "exp", "show", "--csv")


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
    output = project.run("dvc", "repro")
    assert "search: goes on after step" in output
    assert "Running stage 'train@overview/found'" in output
    found = yaml.safe_load((project.folder / "searches" / "tiny" / "random.yaml").read_text())
    trained = yaml.safe_load((project.folder / "runs" / "overview" / "found" / "seed=0" / "config.yaml").read_text())
    assert trained["model"]["architecture"] == {"family": found["family"], "net": found["net"]}
    assert project.repro() == set()
    project.edit("conf/search/tiny.yaml", "trials: 3", "trials: 1")
    assert {"resolve", "search@tiny"} <= project.repro()
