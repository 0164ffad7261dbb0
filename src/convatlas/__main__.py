"""`convatlas COMMAND ...`, or `python -m convatlas COMMAND ...`: every entry point under one name.

`convatlas train model=lenet5` is `python -m convatlas.train model=lenet5`. Shells complete commands, options and their
values after `eval "$(convatlas completion bash)"`; zsh alike, and fish by `convatlas completion fish | source`.
"""

from __future__ import annotations

import glob
import importlib
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import click
from click.shell_completion import BashComplete, add_completion_class, get_completion_class

from convatlas import __version__
from convatlas.core.cli import run
from convatlas.core.errors import UserError, near_matches
from convatlas.core.processes import run_program

GROUPS: dict[str, dict[str, str]] = {
    "One net": {
        "train": "train a net; --multirun trains several",
        "evaluate": "test a trained net again, also with several views of each image",
        "predict": "use a trained net on pictures, DICOM or NIfTI",
        "export": "write a trained net as ONNX, torch.export, safetensors or timm's weights",
        "measure": "measure latency, throughput and memory of trained nets",
    },
    "Studies": {
        "plan": "choose the studies, scale and seeds of the pipeline",
        "repro": "run the pipeline: what changed, and nothing else",
        "experiments": "compare the experiments of `dvc exp run` in a few columns",
        "calibrate": "choose optimiser and rate of every variant on validation",
        "decide": "add seeds until the claims are decided",
        "report": "write the reports of the planned studies",
        "track": "send finished runs to MLflow again",
        "ui": "open the runs in MLflow",
    },
    "Searches": {
        "tune": "search hyper-parameters",
        "search": "search an architecture",
    },
    "Data and nets": {
        "prepare": "read, check and split a data set",
        "models": "list the nets",
        "atlas": "draw every net, and how the nets grew out of one another",
        "show": "print a net's layers with shapes, parameters and multiply-adds",
        "profile": "count what a net costs, without training it",
    },
    "Shell": {"completion": "print the completion for bash, zsh or fish"},
}
SHELLS = ("bash", "zsh", "fish")


class Commands(click.Group):
    """The commands, listed by their groups; each is imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the groups."""
        return [name for group in GROUPS.values() for name in group]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Make the command of a name: it hands all words on as they are."""
        texts = {name: text for group in GROUPS.values() for name, text in group.items()}
        if name not in texts:
            return None
        own: dict[str, Callable[[list[str]], None]] = {
            "repro": repro,
            "experiments": experiments,
            "completion": completion,
        }
        words = click.Argument(["words"], nargs=-1, type=click.UNPROCESSED, shell_complete=_suggestions)
        return click.Command(
            name,
            callback=lambda words: own[name](list(words)) if name in own else enter(name, list(words)),
            params=[words],
            help=texts[name],
            add_help_option=False,
            context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
        )

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[Any, Any, list[str]]:
        """Find the command that is named first."""
        if args[0] not in self.list_commands(ctx) and not ctx.resilient_parsing:
            raise UserError(
                f"{args[0]}: there is no such command. {near_matches(args[0], self.list_commands(ctx))} "
                "`convatlas --help` lists them."
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands under the headings of their groups."""
        for title, group in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([*group.items()], col_max=12)


def enter(name: str, words: list[str]) -> None:
    """Run an entry point in this process, as `python -m convatlas.<name>` does."""
    sys.argv[1:] = words
    runpy.run_module(f"convatlas.{name}", run_name="__main__", alter_sys=True)


def repro(words: list[str]) -> None:
    """Run `dvc repro` with this environment's programs first on the path.

    Raises:
        UserError: this is no git repository, without which DVC does nothing.
    """
    if {"-h", "--help"} & set(words):
        print("convatlas repro [TARGETS] [OPTIONS]: `dvc repro`, whose words it takes.\n", flush=True)
    elif (
        shutil.which("git") is None or subprocess.run(["git", "rev-parse"], capture_output=True, check=False).returncode
    ):
        raise UserError("DVC needs a git repository: clone convatlas, or run `git init` here first.")
    _dvc("repro", *words)


NO_RESULT = (
    r"(conf|src|plan|data|runs|reports|searches|docs)(/|$)|.*\.(yaml|lock|json)$|(data|runs)\.|Created|trainings"
)
"""What `dvc exp show` has columns for that say nothing of a result, such as the hash of each dependency."""


def experiments(words: list[str]) -> None:
    """Show experiments by `dvc exp show`, without the columns that say nothing of a result."""
    _dvc("exp", "show", "--no-pager", "--drop", NO_RESULT, *words)


def _dvc(*words: str) -> NoReturn:
    """Run DVC with this environment's programs first on the path, and end as it does."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    command = [sys.executable, "-m", "dvc", *words]
    sys.exit(run_program(command, env=os.environ | {"PATH": programs}))


# ---- completion -----------------------------------------------------------------------------------------------------


class WholeWords(BashComplete):
    """Bash takes `key=value` for one word, and writes no blank after what goes on."""

    source_template = (
        "COMP_WORDBREAKS=${COMP_WORDBREAKS//=}\n"
        + BashComplete.source_template.replace("-o nosort", "-o nosort -o nospace")
    )  # fmt: skip


def completion(words: list[str]) -> None:
    """Print the script that a shell reads.

    Raises:
        UserError: the shell is none of `SHELLS`.
    """
    if len(words) != 1 or words[0] not in SHELLS:
        raise UserError(f"completion takes the name of your shell: {', '.join(SHELLS)}.")
    add_completion_class(WholeWords)
    shell = get_completion_class(words[0])
    assert shell is not None
    print(shell(main, {}, "convatlas", "_CONVATLAS_COMPLETE").source())


def _suggestions(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return what a word after a command may become."""
    name, before = str(ctx.info_name), list(ctx.params.get("words") or ())
    try:
        if name == "completion":
            found = list(SHELLS)
        elif _is_composed(name):
            found = _of_hydra(name, [*before, incomplete])
        else:
            module = importlib.import_module(f"convatlas.{name.replace('models', 'catalogue')}")
            found = [*_of_options(module, incomplete)]
    except Exception:  # a shell that waits for suggestions has no use for a message
        return []
    return [word for word in found if word.startswith(incomplete)]


def _is_composed(name: str) -> bool:
    """Say whether Hydra composes what a command does; `plan` reads its file by itself."""
    from convatlas.core.composing import conf_dir

    return (conf_dir() / f"{name}.yaml").is_file() and name != "plan"


def _of_hydra(config_name: str, words: list[str]) -> list[str]:
    """Let Hydra complete the last of the words that follow a command."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.plugins.completion_plugin import DefaultCompletionPlugin

    from convatlas.core.composing import hydra_ready

    with hydra_ready():
        plugin = DefaultCompletionPlugin(GlobalHydra.instance().config_loader())
        return plugin._query(config_name, " ".join(words))


def _of_options(module: Any, incomplete: str) -> Iterator[str]:
    """Complete the options of an entry point that has a class of them: their names, choices and files."""
    from convatlas.core.cli import choices_of

    key, equals, value = incomplete.partition("=")
    fields = module.Options.model_fields
    if not equals:
        yield from (f"{name}=" for name in fields)
    elif key in fields:
        yield from (f"{key}={choice}" for choice in choices_of(fields[key].annotation))
        if "Path" in str(fields[key].annotation):
            yield from (f"{key}={path}" for path in _paths(value))


def _paths(start: str) -> list[str]:
    """Return the files and folders, these with a slash, whose paths begin like this; hidden ones are left out."""
    return [f"{path}{'/' * os.path.isdir(path)}" for path in sorted(glob.glob(f"{glob.escape(start)}*"))]  # noqa: PTH112, PTH207 - pathlib drops the slash of `a/`


# ---- the command ----------------------------------------------------------------------------------------------------


main = Commands(
    name="convatlas",
    help="Train and compare the convolutional nets of a lecture course, each beside its paper. Options are key=value; "
    "`convatlas COMMAND --help` lists those of a command.",
    subcommand_metavar="COMMAND [OPTIONS]",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=True,
)
click.version_option(__version__, prog_name="convatlas", message="%(prog)s %(version)s")(main)


def command() -> None:
    """Run the command line."""
    add_completion_class(WholeWords)
    run(_dispatch, "train")


def _dispatch() -> None:
    try:
        main(prog_name="convatlas", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.ctx.get_help())
    except click.ClickException as error:
        raise UserError(f"{error.format_message().rstrip('.')}. `convatlas --help` lists what there is.") from error


if __name__ == "__main__":
    command()
