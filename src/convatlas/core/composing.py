"""From Hydra to a checked configuration: finds `conf/`, composes, names the run."""

from __future__ import annotations

import re
import shlex
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from convatlas.core.config import RunConfig, keys_of, read_config
from convatlas.core.digests import digest, flat
from convatlas.core.errors import UserError, near_matches
from convatlas.core.older import upgraded
from convatlas.core.unused import check_used

if TYPE_CHECKING:
    from omegaconf import DictConfig

LAUNCHER_EXTRAS = {"joblib": "joblib", "submitit_slurm": "slurm", "submitit_local": "slurm", "ray": "ray"}
"""The extra of pyproject.toml that brings each of Hydra's launchers."""


WRITTEN = "Options are written as key=value; --help lists them."


def flags_and_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return Hydra's flags of a command line with their values, and the overrides: it takes no flags between them.

    Raises:
        UserError: there is no such flag, or its value is missing.
    """
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}. {WRITTEN}")

    parser.error = refuse  # type: ignore[method-assign]
    overrides = parser.parse_intermixed_args(words).overrides or []
    flags, left = [], list(overrides)
    for word in words:
        if left and word == left[0]:
            left.pop(0)
        else:
            flags.append(word)
    return flags, overrides


def without_flags(words: Sequence[str]) -> list[str]:
    """Return a command line as Hydra's compose API takes it, which has no flags: with a search path for `--config-dir`.

    Raises:
        UserError: there are other flags.
    """
    flags, overrides = flags_and_overrides(words)
    folder = user_dir(flags)
    for flag in flags:
        if flag.startswith("-") and not re.match(r"--config-dir|-cd", flag):
            raise UserError(f"{flag}: this command takes no such flag; leave it out.")
    return [*([] if folder is None else [f"hydra.searchpath=['{folder.resolve()}']"]), *overrides]


OTHER_NAMES = {"study": "experiment"}
"""Options that Hydra would take for the choice of a group, which has the same name, with the key they stand for."""


def as_hydra_reads(override: str) -> str:
    """Return an override with the name of its key that Hydra takes.

    Raises:
        UserError: it has no key, changes nothing, or chooses null or a number of a group, which Hydra cannot tell from
            a key.
    """
    key, equals, value = override.partition("=")
    name = key.lstrip("+")
    if equals and not name:
        raise UserError(f"{override}: the name of the option is missing before the equals sign.")
    if re.fullmatch(r"\s*\{\s*\}\s*", value) and len(key) - len(name) != 1 and not name.startswith("~"):
        raise UserError(
            f"{override} changes nothing: the entries of a mapping are added to those that are there. "
            f"~{name}.<entry> takes one of them away, and ~{name} all."
        )
    if name in OTHER_NAMES:
        return f"{key[: -len(name)]}{OTHER_NAMES[name]}{equals}{value}"
    group = name.partition("@")[0]
    if equals and re.fullmatch(r"(?i)null|true|false|[-\d.]*", value) and (conf_dir() / group).is_dir():
        raise UserError(f"{override}: there is no such choice. {near_matches(value, _choices(group))}")
    return override


def _choices(group: str) -> list[str]:
    """Return the files of a group, those of the user's folder among them."""
    folders = [conf_dir(), *filter(None, [user_dir(sys.argv[1:])])]
    return [path.stem for folder in folders for path in (folder / group).glob("*.yaml")]


def user_dir(arguments: Sequence[str]) -> Path | None:
    """Return the folder that Hydra's `--config-dir` names on a command line.

    Raises:
        UserError: it does not exist.
    """
    flag = next((n for n, word in enumerate(arguments) if re.match(r"(--config-dir|-cd)(=|$)", word)), None)
    if flag is None:
        return None
    _, equals, value = arguments[flag].partition("=")
    folder = Path(value if equals else "".join(arguments[flag + 1 : flag + 2]))
    if not folder.is_dir():
        raise UserError(f"--config-dir {folder} does not exist or is no folder; correct the path.")
    return folder


def conf_dir() -> Path:
    """Return the configuration folder.

    The one in the working directory comes first: a DVC experiment runs in a copy of the project, and must not read
    the original's files.

    Raises:
        UserError: there is none.
    """
    for root in (Path.cwd(), Path(__file__).resolve().parents[3]):
        if (root / "conf" / "train.yaml").is_file():
            return root / "conf"
    raise UserError("There is no folder conf/ here; start the command in the project's folder.")


@contextmanager
def hydra_ready() -> Iterator[None]:
    """Let Hydra's compose API read `conf/`; a program that uses Hydra itself finds it afterwards as it was."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(conf_dir().resolve()), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = outer


def compose_run(overrides: Sequence[str], named: Mapping[str, Any]) -> RunConfig:
    """Compose one run of `conf/train.yaml` inside `hydra_ready`; `named` sets study, variant, seeds and folders."""
    from hydra import compose

    return run_config(
        compose(config_name="train", overrides=current_overrides([*map(as_hydra_reads, overrides)])), "", named
    )


def composed_net(overrides: Sequence[str]) -> dict[str, Any]:
    """Compose a net of `conf/model` alone, inside `hydra_ready`; returns the sections `about` and `model`."""
    from hydra import compose
    from omegaconf import OmegaConf

    composed: Any = OmegaConf.to_container(compose("profile", current_overrides(overrides)), resolve=True)
    values = upgraded(composed)
    return {"about": values["about"], "model": values["model"]}


def current_overrides(overrides: Sequence[str]) -> list[str]:
    """Return overrides with `model.weights` and `model.about` under their present names `weights` and `about`."""
    return [re.sub(r"^(\+{0,2}|~)model\.(weights|about)(?=[.=]|$)", r"\1\2", override) for override in overrides]


def run_config(config: DictConfig, model_name: str, named: Mapping[str, Any] | None = None) -> RunConfig:
    """Check a composed configuration, and give the run a name and a folder where it has none.

    Args:
        config: what Hydra composed from `conf/train.yaml`.
        model_name: the chosen file of `conf/model`, for the name.
        named: values that replace composed ones.
    """
    from omegaconf import OmegaConf

    plain: Any = OmegaConf.to_container(config, resolve=True)
    ignored = {"seed", "experiment", "hydra"}
    plain = with_task({key: value for key, value in plain.items() if key not in ignored} | dict(named or {}))
    seeds = plain["seeds"] if isinstance(plain["seeds"], list) else [0]  # anything else is refused below
    if config.get("seed", 0) not in (0, *seeds):
        raise UserError(f"seed={config.seed} and seeds={plain['seeds']} name different seeds; give one of them.")
    if plain["variant"] is None:
        trial = read_config(plain | {"variant": "unnamed", "output_dir": "unnamed"})
        target = trial.task["_target_"]
        name = model_name if target.startswith("convatlas.") else target.rpartition(".")[2]
        plain["variant"] = f"{name}-{trial.data.name}-{digest(trial.identity)[:8]}"
    if plain["output_dir"] is None:
        plain["output_dir"] = f"runs/{plain['study']}/{plain['variant']}"
    checked = read_config(plain)
    check_used(checked)
    return checked


def read_run(values: Any, where: str) -> RunConfig:
    """Read the whole configuration of a run from a file's values, also from one of an earlier version.

    Raises:
        UserError: it is not valid; the message names `where`.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where} holds no configuration of a run; compose it again.")
    return read_config(with_task(values, where), where)


def with_task(values: dict[str, Any], where: str = "the configuration") -> dict[str, Any]:
    """Return a run's values with the section `task`: that of its data, where none is chosen.

    Raises:
        UserError: there is no such task.
    """
    from omegaconf import OmegaConf

    data = values.get("data")
    if "task" in values or not isinstance(data, dict) or "task" not in data:
        return values
    files = {path.stem: path for path in (conf_dir() / "task").glob("*.yaml")}
    if data["task"] not in files:
        raise UserError(
            f"{where}: data.task={data['task']}: there is no such task. {near_matches(str(data['task']), files)}"
        )
    merged = OmegaConf.merge({"data": data}, {"task": OmegaConf.load(files[data["task"]])})
    section: Any = OmegaConf.to_container(merged, resolve=True)
    return {**values, "task": section["task"]}


def explain_hydra(error: Exception, config_name: str) -> str | None:
    """Turn Hydra's and OmegaConf's errors into a sentence that names the key and the near ones; None for others."""
    from hydra.errors import HydraException, MissingConfigException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import MarkedYAMLError

    if isinstance(error, MissingConfigException) and error.missing_cfg_file is not None:
        group, _, wrong = str(error.missing_cfg_file).rpartition("/")
        return _explain_choice(group, wrong, error.options or _choices(group))
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1}, is not readable as YAML ({error.problem}); correct the file."
    if isinstance(error, OverrideParseException):
        return f"{error.override} cannot be read. {_quoted(error.override)}"
    if isinstance(error, (HydraException, OmegaConfBaseException)) or _raised_by_hydra(error):
        return _explain_message(str(error), config_name)
    return None


def _raised_by_hydra(error: Exception) -> bool:
    """Say whether Hydra raised an error of Python's own, as of a group to which a number is given."""
    folders = Path(traceback.extract_tb(error.__traceback__)[-1].filename).parts[-3:-1]
    return isinstance(error, (TypeError, ValueError)) and (folders[-1] == "hydra" or folders == ("hydra", "_internal"))


def _explain_choice(group: str, wrong: str, known: Sequence[str]) -> str:
    if group == "hydra/launcher" and wrong in LAUNCHER_EXTRAS:
        extra = LAUNCHER_EXTRAS[wrong]
        return f"{group}={wrong} needs more packages: `pip install 'convatlas[{extra}]'` adds them."
    return f"{group}={wrong}: there is no such choice. {near_matches(wrong, known)}"


def _explain_message(message: str, config_name: str) -> str:
    if ambiguous := re.search(r"Ambiguous value for argument '(.*)'", message):
        more = "Several trainings take --multirun, and a list takes brackets."
        return f"{ambiguous[1]} has several values. {more} {_quoted(ambiguous[1])}"
    conf = conf_dir()
    groups = [path.relative_to(conf).as_posix() for path in conf.rglob("*") if path.is_dir()]
    if (unknown_group := re.search(r"Could not override '([\w/@.]+)'\.\s*No match in the defaults list", message)) or (
        unknown_group := re.search(r"Could not (?:find|override) '(\w*/[\w/]*)'", message)
    ):
        near = near_matches(unknown_group[1], {*groups} - {unknown_group[1]})
        return f"{unknown_group[1]}: there is no such group of choices. {near}"
    if unknown := re.search(r"Could not override '([\w.@]+)'", message):
        known = _known_keys(config_name)
        used = [group for group in groups if group in {key.partition(".")[0] for key in known}]
        if unknown[1] in keys_of(RunConfig):
            return f"{unknown[1]} has no value in the files that were chosen; +{unknown[1]}=... gives it one."
        near = near_matches(unknown[1], {*known, *used} - {unknown[1]})
        section = f"{unknown[1].rpartition('.')[0]}._target_"
        adding = f" +{unknown[1]}=... adds an argument that its class takes." if section in known else ""
        return f"{unknown[1]}: there is no such option. {near}{adding}"
    return " ".join(message.split()) + " Correct the command or the file under conf/."


def _quoted(override: str) -> str:
    """Say how a value is written that Hydra's grammar would take apart; the last sentence of a message."""
    key, equals, value = override.partition("=")
    if not equals:
        return WRITTEN
    quoted = value.strip("'\"").replace('"', r"\"")
    text = shlex.quote(f'{key}="{quoted}"')
    return f"Text with commas, brackets, quotes, equals signs or accents is quoted twice, for the shell too: {text}"


def _known_keys(config_name: str) -> list[str]:
    """List the options of an entry point, with the groups that the command line chooses."""
    from hydra import compose
    from omegaconf import OmegaConf

    chosen = [word for word in sys.argv[1:] if re.match(r"^[\w/]+=[\w-]+$", word)]
    folder = user_dir(sys.argv[1:])
    theirs = [] if folder is None else [f"hydra.searchpath=['{folder.resolve()}']"]
    for overrides in ([*theirs, *chosen], []):
        try:
            with hydra_ready():
                return list(flat(OmegaConf.to_container(compose(config_name=config_name, overrides=overrides))))  # type: ignore[arg-type]
        except Exception:  # noqa: S112 - a wrong choice among them: list the keys of the defaults instead
            continue
    return []
