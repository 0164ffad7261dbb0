"""Commands, options and small files as nobody means them: no traceback, and nothing lost.

Every command ends with status 0 or 2, and changes nothing that was there before.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from convatlas.core.composing import hydra_ready
from convatlas.core.digests import flat
from helpers import ROOT, Entered

pytestmark = pytest.mark.slow

SMALL = ("model=lenet5_modern", "trainer.threads=1", "tracking=none")
LAST = ("recipe.epochs=1", "trainer.limit_batches=1", "trainer.workers=0", "overwrite=true")
"""What comes after the drawn options, so that none of them lets a training last."""
FIXED = (
    "output_dir",
    "work_dir",
    "trainer.",
    "hydra",
    "overwrite",
    "recipe.epochs",
    "loggers",
    "callbacks",
    "tracking",
)

WORDS = (
    *(
        "",
        "null",
        "abc",
        "-1",
        "0",
        "1",
        "3",
        "1.5",
        "nan",
        "inf",
        "1e400",
        "true",
        "~",
        "''",
        '""',
        "é",
        "a b",
        "..",
        "/",
        ".",
    ),
    *(
        "[",
        "]",
        "{",
        "[]",
        "{}",
        "[1,2]",
        "[[[[",
        "{a: 1}",
        "{a:",
        "a=b",
        "a,b",
        "1,2",
        "${x}",
        "${oc.env:HOME}",
        "$(ls)",
    ),
    *(
        "interval(0,1)",
        "choice(a,b)",
        "range(3)",
        "glob(*)",
        "tag(",
        "\N{GRINNING FACE}",
        "\\",
        "'",
        '"',
        "#",
        "&a",
        "*a",
    ),
    *(
        "!!python/object/apply:os.system [ls]",
        "2026-11-30",
        "0x1f",
        "1_000",
        "-0.0",
        "lenet5",
        "digits",
        "@",
        "a.b.c",
        "a/b",
    ),
)
values = st.one_of(st.sampled_from(WORDS), st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=8))
prefixes = st.sampled_from(("", "", "", "+", "++", "~"))
bytes_of_files = st.one_of(
    st.binary(max_size=60),
    st.sampled_from(
        [b"", b"null", b"[]", b"{}", b"1", b"a: [1", b"\xff\xfe", b"[" * 50_000, b"- " * 50_000, b"\0" * 100]
    ),
    st.text(max_size=30).map(lambda text: text.encode("utf-8", "surrogatepass")),
)


def fuzzed(examples: int) -> Any:
    """Return hypothesis' settings: the same examples each time, as many as that."""
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=quiet)


def composed_keys(name: str) -> list[str]:
    """Return the keys of a configuration that may be set, and the groups."""
    from hydra import compose
    from omegaconf import OmegaConf

    with hydra_ready():
        plain: Any = OmegaConf.to_container(compose(name), resolve=False)
    groups = [path.name for path in (ROOT / "conf").iterdir() if path.is_dir()]
    keys = [*flat(plain), *plain, *groups, "recipe/optimizer", "recipe/schedule", "nonsense", "recipe.nonsense", "a@b"]
    return sorted({key for key in keys if not key.startswith(FIXED)})


TRAIN_KEYS, PREPARE_KEYS = composed_keys("train"), composed_keys("prepare")
options_of_train = st.tuples(prefixes, st.sampled_from(TRAIN_KEYS), values).map(lambda drawn: "{}{}={}".format(*drawn))
options_of_prepare = st.tuples(
    prefixes, st.sampled_from([k for k in PREPARE_KEYS if k not in ("data.prepared", "page")]), values
)
PLAIN_KEYS = (
    "run",
    "images",
    "checkpoint",
    "pictures",
    "split",
    "tta",
    "part",
    "format",
    "data",
    "uri",
    "study",
    "seeds",
)
PLAIN_KEYS += (
    "scale",
    "overrides",
    "search",
    "skip_broken",
    "model",
    "batch_size",
    "input_size",
    "latency",
    "nonsense",
)
options = st.tuples(st.sampled_from(PLAIN_KEYS), values).map("=".join)
arguments = st.lists(st.one_of(options, values), max_size=3)


class World:
    """A folder with what the commands read; what they may write is made anew for each example."""

    def __init__(self, folder: Path, run: Path) -> None:
        self.folder, self.original = folder, run
        self.run, self.images = folder / "runs" / "seed=0", folder / "images"
        self.images.mkdir(parents=True)
        (folder / "conf").symlink_to(ROOT / "conf")
        (folder / "notes.txt").write_text("notes of the user's\n")
        Image.new("L", (8, 8), 100).save(self.images / "one.png")
        shutil.copytree(run, self.run)

    def snapshot(self) -> dict[str, str]:
        """Return the sha256 of every file; links to folders are not followed."""
        files = (Path(folder) / name for folder, _, names in os.walk(self.folder) for name in names)
        return {str(file): sha256(file.read_bytes()).hexdigest() for file in files}

    def check(self, entered: Entered, before: dict[str, str], *own: str) -> None:
        """Check how a command ended, and that what was there still is; `own` are files that it may write anew."""
        assert entered.status in (0, 2), entered.err
        assert "Traceback" not in entered.err, entered.err
        after = self.snapshot()
        changed = {name for name, digest in before.items() if after.get(name) != digest}
        assert not changed - {str(self.folder / name) for name in own}

    def tidy(self) -> None:
        """Remove what a command wrote."""
        for name in ("out", "plan", "reports", "logs", ".work", "data", "new", "mlartifacts", "predictions", "metrics"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for file in [*self.folder.glob("*mlflow.db*"), self.folder / "params.yaml", self.folder / "stages.yaml"]:
            file.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def _world(prepared_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    from convatlas.core.composing import compose_run
    from convatlas.training.run import train

    folder = tmp_path_factory.mktemp("fuzz")
    with hydra_ready():
        named = {"variant": "v", "seeds": [0], "output_dir": str(folder / "finished")}
        given = (*SMALL, *LAST[:-1], f"data.prepared={prepared_digits}")
        (run,) = train(compose_run(given, named), strict=True)
    return World(folder / "world", run)


@pytest.fixture
def world(_world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Go into the world, and leave it as it was."""
    monkeypatch.chdir(_world.folder)
    yield _world
    _world.tidy()


@fuzzed(120)
@given(drawn=st.lists(options_of_train, min_size=1, max_size=2))
@example(drawn=["recipe.optimizer=" + "[" * 3000])
def test_options_of_train(enter, world, prepared_digits, drawn):
    world.tidy()
    before = world.snapshot()
    given = [*SMALL, f"data.prepared={prepared_digits}", *drawn, *LAST, "output_dir=out"]
    world.check(enter("train", *given), before)


@fuzzed(60)
@given(drawn=st.lists(options_of_prepare.map(lambda drawn: "{}{}={}".format(*drawn)), min_size=1, max_size=2))
def test_options_of_prepare(enter, world, drawn):
    world.tidy()
    before = world.snapshot()
    given = ["data=digits", *drawn, "data.source.download=false"][: 1 + len(drawn)]
    world.check(enter("prepare", *given, "data.prepared=new/data", "page=new/page.html"), before)


@fuzzed(150)
@given(
    command=st.sampled_from(("predict", "evaluate", "track", "plan", "profile", "report", "resolve")), drawn=arguments
)
def test_options_of_the_other_commands(enter, world, command, drawn):
    world.tidy()
    before = world.snapshot()
    always = {"predict": ["output_dir=out", "overwrite=true"], "evaluate": ["output_dir=out"]}.get(command, [])
    first = [f"run={world.run}"] if command in ("predict", "evaluate") else []
    world.check(enter(command, *first, *drawn, *always), before)


RUN_FILES = ("config.yaml", "identity.json", "metrics.json", "timing.json", "environment.json", "history.csv")
RUN_FILES += ("predictions.parquet", "best.ckpt", "last.ckpt", "dataset.json", ".convatlas.json")


@fuzzed(100)
@given(
    command=st.sampled_from(("predict", "evaluate", "track", "train")),
    name=st.sampled_from(RUN_FILES),
    content=bytes_of_files,
    cut=st.one_of(st.none(), st.integers(0, 3000)),
)
def test_files_of_a_run(enter, world, prepared_digits, command, name, content, cut):  # noqa: PLR0917
    world.tidy()
    shutil.rmtree(world.run)
    shutil.copytree(world.original, world.run)
    file = world.run / name
    if file.exists():
        whole = file.read_bytes()
        file.write_bytes(content if cut is None else whole[:cut] + content + whole[cut + len(content) :])
    before = world.snapshot()
    given = {
        "predict": [f"run={world.run}", str(world.images), "output_dir=out"],
        "evaluate": [f"run={world.run}", "output_dir=out"],
        "track": ["runs", "uri=sqlite:///mlflow.db"],
        "train": [*SMALL, *LAST[:-1], f"data.prepared={prepared_digits}", "variant=v", "output_dir=runs"],
    }[command]
    world.check(enter(command, *given), before)


PLAN_KEYS = ("scale", "seeds", "overrides", "studies", "data", "manifests", "searches", "runs", "nonsense")
plain_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.sampled_from(WORDS)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2), st.dictionaries(st.sampled_from(WORDS[1:9]), inner, max_size=2)
    ),
    max_leaves=4,
)


@fuzzed(60)
@given(content=st.one_of(bytes_of_files, st.tuples(st.sampled_from(PLAN_KEYS), plain_values)))
def test_plans_edited_by_hand(enter, world, content):
    import yaml

    world.tidy()
    file = world.folder / "params.yaml"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        plan = {"scale": "laptop", "seeds": [0], "overrides": [], "studies": ["thundernet"]}
        plan |= {"data": {}, "manifests": {}, "searches": {}, "runs": {}}
        file.write_text(yaml.safe_dump(plan | dict([content]), allow_unicode=True))
    before = world.snapshot()
    world.check(enter("resolve"), before)


def picture(kind: str, mode: str, size: tuple[int, int]) -> bytes:
    """Return a small image file."""
    file = io.BytesIO()
    Image.new(mode, size, 1).save(file, kind)
    return file.getvalue()


images = st.sampled_from(
    [
        *(picture("PNG", mode, (9, 7)) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
        *(picture("TIFF", mode, (9, 7)) for mode in ("1", "L", "RGB", "CMYK", "F", "I;16", "I")),
        *(picture("JPEG", mode, (9, 7)) for mode in ("L", "RGB", "CMYK")),
        *(picture(kind, "RGB", (1, 300)) for kind in ("PNG", "JPEG", "BMP", "GIF", "WEBP")),
    ]
)


@fuzzed(100)
@given(
    files=st.lists(st.tuples(images, st.integers(0, 200), st.binary(max_size=8)), min_size=1, max_size=3),
    ending=st.sampled_from((".png", ".jpg", ".tif", ".gif", ".PNG", ".webp", ".txt", "")),
    command=st.sampled_from(("predict", "prepare")),
)
def test_images(enter, world, files, ending, command):
    world.tidy()
    folder = world.folder / "new"
    for kind in ("cat", "dog"):
        (folder / kind).mkdir(parents=True)
        for number in range(6):
            Image.new("L", (8, 8), 20 * number + len(kind)).save(folder / kind / f"good{number}.png")
    for number, (content, at, change) in enumerate(files):
        changed = content[:at] + change + content[at + len(change) :]
        (folder / "cat" / f"odd{number}{ending}").write_bytes(changed)
    before = world.snapshot()
    given = {
        "predict": [f"run={world.run}", str(folder), "output_dir=out", "skip_broken=true"],
        "prepare": ["data=image_folder", f"data.root={folder}", "data.prepared=out/data", "page=out/page.html"],
    }[command]
    more = ["data.num_classes=2", "data.in_channels=1", "data.image_size=8", "data.stored_side=8"]
    world.check(enter(command, *given, *(more if command == "prepare" else [])), before)
