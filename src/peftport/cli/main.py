"""The ``peftport`` command: which groups exist, and what an error looks like.

A command's module is imported when that command is called, so that ``peftport --help`` needs
neither torch nor transformers. Exit codes: 0 done, 1 a run failed, 2 the input cannot be used,
130 interrupted.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from peftport import __version__
from peftport.errors import InputError, PeftportError, UnknownName
from peftport.escape import visible

#: command -> where its click object is, and the line that `peftport --help` shows
_COMMANDS = {
    "assess": ("peftport.cli.assess:assess", "Say what an adapter is worth on another host."),
    "hosts": ("peftport.cli.hosts:hosts", "List, inspect and build hosts."),
    "list": ("peftport.cli.lists:lists", "List methods, strategies, datasets or families."),
    "migrate": ("peftport.cli.migrate:migrate", "Port, assess and write a folder of adapters."),
    "port": ("peftport.cli.port:port", "Port an adapter to another host, folder to folder."),
    "predict": ("peftport.cli.predict:predict", "Predict whether an adapter will port."),
    "report": ("peftport.cli.report:report", "Write a study's report as HTML, and its table."),
    "study": ("peftport.cli.study:study", "Run, resume, inspect and export a study."),
    "track": ("peftport.cli.track:track", "Write a study's results into a tracker."),
    "train": ("peftport.cli.train:train", "Train one module and save it."),
}
#: what the user can mend (exit 2), among the errors of the operating system
_USERS_ERRNO = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR,
    errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip
_LONGEST_ERROR = 1200  # characters


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        where, _, name = _COMMANDS[cmd_name][0].partition(":")
        command = getattr(import_module(where), name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            raise UnknownName("command", args[0], _COMMANDS)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _COMMANDS[name][1]) for name in sorted(_COMMANDS)])


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="peftport", message="%(prog)s %(version)s")
def peftport() -> None:
    """Move PEFT modules between pretrained hosts, and measure what they are worth there.

    Everything can be interrupted: the same command goes on where it stopped.

    \b
    Example:
      peftport study run quick --store runs/quick
      peftport report runs/quick -o runs/quick/report.html
    """


def run(args: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    What the user can mend is one line on stderr; anything unforeseen keeps its traceback.
    """
    try:
        result: Any = peftport.main(
            args=list(args) if args is not None else None,
            prog_name="peftport",
            standalone_mode=False,
        )
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 0
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "peftport"
        return _fail(f"{error.format_message()} See '{where} --help'.", InputError.exit_code)
    except click.ClickException as error:
        return _fail(error.format_message(), InputError.exit_code)
    except PeftportError as error:
        return _fail(str(error), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted; the same command goes on where it stopped", 130)
    except OSError as error:
        if error.filename is None or error.errno not in _USERS_ERRNO | {errno.ENOSPC}:
            raise
        code = InputError.exit_code if error.errno in _USERS_ERRNO else 1
        return _fail(f"'{error.filename}': {error.strerror}", code)
    return result if isinstance(result, int) else 0


def _fail(message: str, code: int) -> int:
    """One line on stderr, whatever the names in it hold."""
    click.echo(f"error: {visible(message, _LONGEST_ERROR)}", err=True)
    return code


def main() -> None:
    """Entry point of the ``peftport`` command."""
    sys.exit(run())
