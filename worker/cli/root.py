"""
The command line: which commands there are, and how every one of them ends.

Owns the exit codes: 0 all is well, 1 something was found wrong, 2 wrong usage, configuration,
nobody to reach or a job that failed, 130 after Ctrl-C or SIGTERM, 141 when the reader of a pipe
has left. A user's mistake is one sentence on stderr, never a traceback; a defect of ours is a
traceback.
"""

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Callable, Collection, Sequence
from inspect import BoundArguments
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Group, Parameter
from cyclopts.exceptions import UnusedCliTokensError

from worker.cli.commands import add_commands
from worker.cli.configuration import Sources
from worker.cli.interrupts import INTERRUPTED
from worker.cli.output import say
from worker.errors import TransientError, WorkerError

OK, FOUND, REFUSED, PIPE_CLOSED = 0, 1, 2, 141

OPTIONS = Group("Options", sort_key=9)
ConfigFlag = Annotated[
    Path | None,
    Parameter(
        group=OPTIONS,
        help="TOML file [default: $EMBEDFLEET_CONFIG, else ./embedfleet.toml if there].",
    ),
]
Parsed = tuple[Callable[..., Any], BoundArguments, dict[str, Any]]
Rest = Annotated[str, Parameter(show=False, allow_leading_hyphen=True)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    secrets: set[str] = set()
    # The library logs what it raises, too, and again at every retry; `run` sets up its own log.
    logging.getLogger("aiokafka").addHandler(logging.NullHandler())
    try:
        code = _run(sys.argv[1:] if arguments is None else arguments, secrets)
        sys.stdout.flush()  # here, where a closed pipe is still ours to notice
    except BaseException as error:  # noqa: BLE001 - what is not a user's mistake is raised again
        code = _code_of(error, secrets)
        try:
            sys.stdout.flush()  # what was shown before; whoever read it may have ended, too
        except OSError:
            _give_up_stdout()
    return code


def _code_of(error: BaseException, secrets: Collection[str]) -> int:
    """Return the exit code for what ended a command, and say it; a defect is raised again."""
    match _of_group(error):
        case CycloptsError() as refused:
            return _refuse(_sentence(refused), secrets)
        case TransientError() as away:
            return _refuse(f"{away} (`embedfleet doctor` looks closer)", secrets)
        case WorkerError() as refused:
            return _refuse(str(refused), secrets)
        case KeyboardInterrupt():
            return INTERRUPTED
        case BrokenPipeError():
            _give_up_stdout()
            return PIPE_CLOSED
        case OSError(errno=errno.ENOSPC | errno.EDQUOT) as full:
            _give_up_stdout()
            say(f"embedfleet: cannot write: {full.strerror}", secrets=secrets)
            return FOUND
    raise error


def _give_up_stdout() -> None:
    # Python flushes stdout once more at exit.
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _of_group(error: BaseException) -> BaseException:
    """Return the first error of a group that holds no defect, any other error as it is."""
    if isinstance(error, BaseExceptionGroup) and error.split(WorkerError)[1] is not None:
        return error
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def build() -> App:
    """Return the application with all its commands."""
    app = App(
        name="embedfleet",
        help="Documents on Kafka become searchable vectors in PostgreSQL (pgvector).",
        help_epilogue="Start with `embedfleet doctor`. Each command has its own --help.",
        help_format="plaintext",
        version=_version,
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    app["--help"].group = app["--version"].group = OPTIONS
    add_commands(app)
    return app


def _run(arguments: Sequence[str], secrets: set[str]) -> int:
    app = build()

    @app.meta.default
    def launch(*tokens: Rest, config: ConfigFlag = None) -> int:
        sources = Sources(config)
        app.config = (sources,)
        try:
            command, bound, ignored = _parsed(app, tokens)
        finally:
            secrets.update(sources.secrets)
        if "sources" in ignored:
            bound.arguments["sources"] = sources
        return command(*bound.args, **bound.kwargs) or OK

    command, bound, _ = _parsed(app.meta, arguments)
    return command(*bound.args, **bound.kwargs) or OK


def _parsed(app: App, tokens: Sequence[str]) -> Parsed:
    return app.parse_args(tokens, exit_on_error=False, print_error=False, verbose=False)


def _refuse(sentence: str, secrets: Collection[str]) -> int:
    say(f"embedfleet: {sentence}", secrets=secrets)
    return REFUSED


def _sentence(error: CycloptsError) -> str:
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        return f"{error.unused_tokens[0]!r} is one argument too many."
    return str(error)


def _version() -> str:
    from importlib.metadata import version

    return version("embedfleet")
