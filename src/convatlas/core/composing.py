"""From Hydra to a checked configuration: finds `conf/`, composes, names the run."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convatlas.core.config import RunConfig, in_current_form, read_config
from convatlas.core.digests import digest, flat
from convatlas.core.errors import UserError, near_matches

if TYPE_CHECKING:
    from omegaconf import DictConfig

LAUNCHER_EXTRAS = {"joblib": "joblib", "submitit_slurm": "slurm", "submitit_local": "slurm", "ray": "ray"}
"""The extra of pyproject.toml that brings each of Hydra's launchers."""


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

    return run_config(compose(config_name="train", overrides=current_overrides(overrides)), "", named)


def composed_net(overrides: Sequence[str]) -> dict[str, Any]:
    """Compose a net of `conf/model` alone, inside `hydra_ready`; returns the sections `about` and `model`."""
    from hydra import compose
    from omegaconf import OmegaConf

    composed: Any = OmegaConf.to_container(compose("profile", current_overrides(overrides)), resolve=True)
    values = in_current_form(composed)
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
    plain = {key: value for key, value in plain.items() if key not in {"seed", "hydra"}} | dict(named or {})
    if plain["variant"] is None:
        trial = read_config(plain | {"variant": "unnamed", "output_dir": "unnamed"})
        plain["variant"] = f"{model_name}-{trial.data.name}-{digest(trial.identity)[:8]}"
    if plain["output_dir"] is None:
        plain["output_dir"] = f"runs/{plain['study']}/{plain['variant']}"
    return read_config(plain)


def explain_hydra(error: Exception, config_name: str) -> str | None:
    """Turn Hydra's and OmegaConf's errors into a sentence that names the key and the near ones; None for others."""
    from hydra.errors import HydraException, MissingConfigException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, wrong = str(error.missing_cfg_file).rpartition("/")
        if group == "hydra/launcher" and wrong in LAUNCHER_EXTRAS:
            extra = LAUNCHER_EXTRAS[wrong]
            return f"{group}={wrong} needs more packages: `pip install 'convatlas[{extra}]'` adds them."
        return f"{group}={wrong}: there is no such choice. {near_matches(wrong, error.options)}"
    if not isinstance(error, (HydraException, OmegaConfBaseException)):
        return None
    message = str(error)
    if (unknown_group := re.search(r"Could not override '([\w/@.]+)'\.\s*No match in the defaults list", message)) or (
        unknown_group := re.search(r"Could not find '([\w/]+)'", message)
    ):
        groups = [path.name for path in conf_dir().iterdir() if path.is_dir()]
        return f"{unknown_group[1]}: there is no such group of choices. {near_matches(unknown_group[1], groups)}"
    if unknown := re.search(r"Could not override '([\w.@]+)'", message):
        known = _known_keys(config_name)
        groups = [
            path.name
            for path in conf_dir().iterdir()
            if path.is_dir() and path.name in {k.split(".")[0] for k in known}
        ]
        return f"{unknown[1]}: there is no such option. {near_matches(unknown[1], known + groups)}"
    return " ".join(message.split()) + " Correct the command or the file under conf/."


def _known_keys(config_name: str) -> list[str]:
    """List the options of an entry point, with the groups that the command line chooses."""
    from hydra import compose
    from omegaconf import OmegaConf

    chosen = [word for word in sys.argv[1:] if re.match(r"^[\w/]+=[\w-]+$", word)]
    for overrides in (chosen, []):
        try:
            with hydra_ready():
                return list(flat(OmegaConf.to_container(compose(config_name=config_name, overrides=overrides))))  # type: ignore[arg-type]
        except Exception:  # noqa: S112 - a wrong choice among them: list the keys of the defaults instead
            continue
    return []
