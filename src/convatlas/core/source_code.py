"""The code behind a result: fingerprints of the files that it imports, and the versions of the libraries they use.

A stage is repeated when its code changes, and only then. What a file imports is read from its source, without running
it; what counts in it is its syntax tree without docstrings. Parsing hundreds of files takes seconds, so what was read
is kept in `.work/fingerprints.json`, for as long as a file's time and size stay the same.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from convatlas.core.config import RunConfig
from convatlas.core.errors import UserError
from convatlas.core.files import write_text

__all__ = [
    "DECIDING",
    "PACKAGE",
    "PROJECT",
    "SOURCE",
    "Code",
    "atlas_code",
    "code_behind",
    "fingerprint",
    "module_file",
    "page_code",
    "prepare_code",
    "report_code",
    "run_code",
    "targets_in",
]

SOURCE = Path(__file__).resolve().parents[2]
PROJECT = SOURCE.parent
PACKAGE = SOURCE / "convatlas"
TEMPLATES = PACKAGE / "reporting" / "templates"

DECIDING = ("torch", "torchvision", "timm", "torchmetrics", "pytorch-lightning")
"""The libraries whose version decides the bits of a training, where its code imports them."""
PREPARING = (*DECIDING, "nibabel", "pillow", "pydicom", "scikit-image", "scikit-learn", "scipy")
"""The same for a preparation."""
DISTRIBUTIONS = {"PIL": "pillow", "skimage": "scikit-image", "sklearn": "scikit-learn", "yaml": "pyyaml"}
"""Where it is not the name that is imported."""


class Code(NamedTuple):
    """What decides a result beside the configuration and the data.

    Attributes:
        files: fingerprints, by path relative to the project; by dotted name where a file lies outside.
        packages: versions of libraries.
    """

    files: dict[str, str]
    packages: dict[str, str]

    def plain(self) -> dict[str, dict[str, str]]:
        """Return it as a plan holds it."""
        return {"code": self.files, "packages": self.packages}


def run_code(config: RunConfig) -> Code:
    """Return what decides the result of one training: what it imports of `models`, `tasks`, `data` and `training`.

    The rest (the command line, the types of the configuration, tracking) acts on the result through the configuration
    alone, or not at all. The data's source acts through the prepared data, whose fingerprint is compared.
    """
    targets = targets_in({key: value for key, value in config.identity.items() if key != "data"})
    return code_behind(
        [PACKAGE / "train.py", PACKAGE / "core" / "seeds.py"],
        targets,
        counted=("models", "tasks", "data", "training", "core/seeds.py"),
        libraries=DECIDING,
    )


def prepare_code(source: str) -> Code:
    """Return what decides a preparation: the source function's file, and what it and `prepare` import of `data`."""
    return code_behind([PACKAGE / "data" / "prepare_dataset.py"], [source], counted=("data",), libraries=PREPARING)


def page_code() -> Code:
    """Return the code that draws the page of a prepared data set."""
    return code_behind([PACKAGE / "reporting" / "data_page.py"], counted=("data", "reporting"))


def report_code() -> Code:
    """Return the code that makes the reports, all of it."""
    return code_behind([PACKAGE / "report.py"], counted=("",))


def atlas_code() -> Code:
    """Return the code that makes the pages of the atlas; that of the nets counts for each of them."""
    return code_behind([PACKAGE / "atlas" / "__main__.py"], counted=("",))


def targets_in(values: Any) -> set[str]:
    """Return every `_target_` in nested plain values."""
    if isinstance(values, Mapping):
        here = {str(values["_target_"])} if "_target_" in values else set()
        return here.union(*map(targets_in, values.values()))
    return set().union(*map(targets_in, values)) if isinstance(values, list | tuple) else set()


def code_behind(
    entries: Iterable[Path],
    targets: Iterable[str] = (),
    *,
    counted: Iterable[str],
    left_out: Iterable[Path] = (),
    libraries: Collection[str] | None = None,
) -> Code:
    """Follow the imports of `entries` and of the files that `targets` lie in, and return what counts of them.

    Args:
        entries: files to start from.
        targets: dotted names of classes and functions. Of an installed package the version counts; a module of the
            user's own counts as a file, with what it imports beside it.
        counted: files and folders of the package that count; "" counts all.
        left_out: files that are not followed although something imports them.
        libraries: the installed packages that count beside those of `targets`; None counts whatever is imported.

    Raises:
        UserError: a file is not valid Python.
    """
    places = {"convatlas": SOURCE}
    versions: dict[str, str] = {}
    waiting = list(entries)
    for target in targets:
        module = target.rpartition(".")[0]
        top = module.partition(".")[0]
        if top not in places and (place := _own_place(top)):
            places[top] = place
        if top in places:
            waiting += _module_files(module, places[top])
        else:
            versions |= _version(top)
    seen: set[Path] = set(left_out)
    rooms = [PACKAGE / name for name in counted]
    files: dict[str, str] = {}
    while waiting:
        file = waiting.pop()
        if file in seen:
            continue
        seen.add(file)
        facts = _facts(file)
        ours = PACKAGE in file.parents
        counts = not ours or any(room == file or room in file.parents for room in rooms)
        if counts:
            files[_name(file, places)] = facts.fingerprint[:16]
        for name in facts.imports:
            top = name.partition(".")[0]
            if not top:
                waiting += _relative_files(name, file)
            elif top in places:
                waiting += _module_files(name, places[top])
            elif counts and (libraries is None or DISTRIBUTIONS.get(top, top.replace("_", "-")) in libraries):
                versions |= _version(top)
        waiting += [TEMPLATES / name for name in facts.templates]
    _save()
    return Code(dict(sorted(files.items())), dict(sorted(versions.items())))


def _own_place(top: str) -> Path | None:
    """Return the folder from which a top-level module of the user's own is imported; None for installed ones."""
    with suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(top)
        if spec is not None:
            where = [spec.origin] if spec.has_location and spec.origin else list(spec.submodule_search_locations or ())
            file = Path(where[0]).resolve() if where else None
            if file is not None and not {"site-packages", "dist-packages"} & set(file.parts):
                return file.parent.parent if file.name == "__init__.py" else file.parent
    return None


@cache
def _version(top: str) -> dict[str, str]:
    """Return the version of the package that a module is imported from; nothing for Python's own modules."""
    if top in sys.stdlib_module_names:
        return {}
    name = DISTRIBUTIONS.get(top, top.replace("_", "-"))
    try:
        return {name: metadata.version(name)}
    except metadata.PackageNotFoundError:
        found = metadata.packages_distributions().get(top, [])  # reads every package's list of files, so it comes last
        return {each: metadata.version(each) for each in found}


def module_file(module: str) -> Path | None:
    """Return the source file of a module that is not part of an installed package; None where there is none."""
    top = module.partition(".")[0]
    place = SOURCE if top == "convatlas" else _own_place(top)
    found = _module_files(module, place) if place else []
    return found[-1] if found else None


@cache
def _module_files(module: str, place: Path) -> list[Path]:
    """Return the file of a module, or of the class in it, and those of the packages around it."""
    parts = module.split(".")
    found = []
    for length in range(1, len(parts) + 1):
        path = place.joinpath(*parts[:length])
        found += [file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()][:1]
    return found


def _relative_files(name: str, file: Path) -> list[Path]:
    dots = len(name) - len(name.lstrip("."))
    return _module_files(name[dots:], file.parents[dots - 1]) if name[dots:] else []


def _name(file: Path, places: Mapping[str, Path]) -> str:
    if PROJECT in file.parents:
        return file.relative_to(PROJECT).as_posix()
    place = next(place for place in places.values() if place in file.parents)
    return ".".join(file.relative_to(place).with_suffix("").parts)


# ---- one file -------------------------------------------------------------------------------------------------------


class Facts(NamedTuple):
    """What is read from one file: its fingerprint, the modules it imports, the templates it names."""

    fingerprint: str
    imports: list[str]
    templates: list[str]


def fingerprint(file: Path) -> str:
    """Return the sha256 of what Python makes of a file: comments, layout and docstrings do not count."""
    return _facts(file).fingerprint


def _facts(file: Path) -> Facts:
    state = file.stat()
    stamp = [state.st_mtime_ns, state.st_size]
    known = _known()["files"]
    if known.get(str(file), [None])[0] != stamp:
        known[str(file)] = [stamp, _read(file)]
        _known()["changed"] = True
    return Facts(*known[str(file)][1])


def _read(file: Path) -> Facts:
    text = file.read_text(encoding="utf-8")
    templates = [each.name for each in _templates() if each.name in text and each != file]
    if file.suffix != ".py":
        return Facts(hashlib.sha256(text.encode()).hexdigest(), [], templates)
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise UserError(f"{file}, line {error.lineno}: {error.msg}; correct it.") from error
    imports = sorted({name for node in _nodes_that_run(tree) for name in _imported(node)})
    for node in ast.walk(tree):
        has_docstring = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        if has_docstring and ast.get_docstring(node, clean=False) is not None:  # type: ignore[arg-type]
            node.body = node.body[1:] or [ast.Pass()]  # type: ignore[attr-defined]
    return Facts(hashlib.sha256(ast.unparse(tree).encode()).hexdigest(), imports, templates)


@cache
def _templates() -> tuple[Path, ...]:
    return tuple(sorted(TEMPLATES.iterdir()))


def _nodes_that_run(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield every node but those under `if TYPE_CHECKING`; imports inside functions count."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield other
                yield from _nodes_that_run(other)
            continue
        yield node
        yield from _nodes_that_run(node)


def _imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        module = "." * node.level + (node.module or "")
        stem = module if not module or module.endswith(".") else f"{module}."
        yield module
        yield from (f"{stem}{alias.name}" for alias in node.names)


# ---- what was read before -------------------------------------------------------------------------------------------

KEPT = PROJECT / ".work" / "fingerprints.json"


@cache
def _known() -> dict[str, Any]:
    """Return what was read before, by the same Python and the same version of this file; filled and saved later."""
    own = Path(__file__).stat()
    reader = [sys.version, own.st_mtime_ns, own.st_size, sorted(each.name for each in _templates())]
    with suppress(OSError, ValueError, KeyError, TypeError):
        saved = json.loads(KEPT.read_text(encoding="utf-8"))
        if saved["reader"] == reader:
            return {"reader": reader, "files": dict(saved["files"]), "changed": False}
    return {"reader": reader, "files": {}, "changed": False}


def _save() -> None:
    """Keep what was read, where this is a project's folder that can be written."""
    known = _known()
    if known["changed"] and (PROJECT / "dvc.yaml").is_file():
        with suppress(OSError):
            write_text(KEPT, json.dumps({"reader": known["reader"], "files": known["files"]}))
    known["changed"] = False
