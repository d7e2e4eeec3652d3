"""The command line: `sgfbias list | run | reproduce | robustness | sweep | status |
show | cite | explore | new | bench`.

Each command is a dataclass in a module of this folder. Its fields are its options,
their docstrings are the help texts, and its method `run` returns the exit status. Only
the module of the command that is asked for is imported.
"""

from __future__ import annotations

import _thread
import contextlib
import dataclasses
import importlib
import inspect
import os
import sys
import time
import typing
from collections.abc import Iterator
from typing import Annotated, Any

from sgfbias.core.kept import keep_compiled
from sgfbias.core.names import did_you_mean
from sgfbias.core.provenance import version

# A claim that must hold fails, or a cell of a sweep raised an error.
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_STORE = 74
EXIT_STOPPED = 130  # by Ctrl-C, as shells have it
EXIT_PIPE = 141  # the reader of the output has gone
EXIT_INTERRUPTED = 75
ABOUT = (
    "Which solution does the training algorithm pick, and does theory predict it? "
    "sgfbias --version prints the version."
)
COMMANDS = {
    "list": ("list", "List the studies, with the question and the duration of each."),
    "run": (
        "run",
        "Run a study and compare it with theory. sgfbias run --help lists the studies; sgfbias "
        "run NAME --help shows the options of one.",
    ),
    "reproduce": (
        "reproduce",
        "Run all studies, or some, and write one HTML page about them. All take about 25 minutes "
        "on two CPU cores.",
    ),
    "robustness": (
        "robustness",
        "Run studies on other draws, and count how often each claim holds.",
    ),
    "sweep": (
        "sweep",
        "Run a grid of hyperparameters x data draws x seeds. It can be interrupted and resumed.",
    ),
    "status": (
        "status",
        "Print the progress of a sweep: the runs that are done, running, failed and diverged in "
        "each cell, the speed, and the time left.",
    ),
    "show": ("show", "Print the claims or results in a store, and draw its picture again."),
    "cite": ("cite", "Print the BibTeX entries to cite for studies and stores."),
    "explore": (
        "explore",
        "Open a page with sliders and live pictures, on this machine only; or export one.",
    ),
    "new": ("new", "Write a new system or a new study to start from."),
    "bench": (
        "bench",
        "Measure the speed, next to other libraries, and whether it reaches its targets. sgfbias "
        "bench --list lists the measurements.",
    ),
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    **Arguments:**

    - `arguments`: the words after `sgfbias`; by default those of this process.

    **Returns:** the exit status:

    - 0: all went well.
    - 1: a claim that must hold fails, or a cell of a sweep raised an error.
    - 2: the input was refused.
    - 74: the store of a sweep cannot be written.
    - 75: a sweep was asked to stop.
    - 130: Ctrl-C was pressed in another command.
    - 141: nobody reads the output any more.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        with _no_interrupt_is_lost():
            return _main(arguments)
    except KeyboardInterrupt:
        print("sgfbias: stopped by Ctrl-C; nothing of this run is kept", file=sys.stderr)
        return EXIT_STOPPED
    except BrokenPipeError:
        # Python would complain again when it flushes the output at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE


def _interrupt_soon() -> None:
    """Press Ctrl-C after a twentieth of a second."""
    time.sleep(0.05)
    _thread.interrupt_main()


@contextlib.contextmanager
def _no_interrupt_is_lost() -> Iterator[None]:
    """Press Ctrl-C again if it fell into a place where Python drops exceptions.

    Such places are the functions that JAX has called at every collection of garbage.
    """
    before = sys.unraisablehook

    def hook(dropped: Any) -> None:
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            # Here it would be dropped once more. A `threading.Timer` would wait for its
            # own start, in which the second one may fall.
            _thread.start_new_thread(_interrupt_soon, ())
        else:
            before(dropped)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def _main(arguments: list[str]) -> int:
    from sgfbias.ensemble.disk import StoreError
    from sgfbias.ensemble.driver import SweepInterrupted

    try:
        command = parse(arguments)
        if arguments[0] != "bench":  # which measures how long compilation takes
            keep_compiled()
        status = command.run()
        sys.stdout.flush()  # while an error can still be told
        return status
    except SweepInterrupted as error:
        print(f"sgfbias: {error}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except (ValueError, OSError, StoreError) as error:
        if "--verbose" in arguments or isinstance(error, BrokenPipeError):
            raise
        print(f"sgfbias: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT


def parse(arguments: list[str]) -> Any:
    """The command that the arguments ask for, with its options.

    **Raises:** `SystemExit` if help was asked for, or if there is no such command or
    option; `ValueError` for values that make no sense.
    """
    if arguments and arguments[0] in ("--version", "-V"):
        print(f"sgfbias {version()}")
        raise SystemExit(0)
    if arguments and arguments[0] not in COMMANDS and not arguments[0].startswith("-"):
        raise ValueError(
            f"there is no command {arguments[0]!r}; {did_you_mean(arguments[0], COMMANDS)}the "
            f"commands are {', '.join(COMMANDS)}"
        )
    if not arguments or arguments[0] not in COMMANDS:
        _help(arguments or ["--help"])
    name, *rest = arguments
    module = importlib.import_module(f"sgfbias.cli.{COMMANDS[name][0]}")
    return module.parse(rest)


def parsed(command: Any, name: str, arguments: list[str]) -> Any:
    """Parse the options of a command into its dataclass `command`.

    The class docstring is the description in the command's help.
    """
    import tyro

    from sgfbias.cli.values import registry

    return tyro.cli(
        tyro.conf.OmitArgPrefixes[with_help(command)],  # type: ignore[misc]
        registry=registry(),
        args=arguments,
        prog=f"sgfbias {name}",
        description=inspect.cleandoc(command.__doc__),
    )


def with_help(options: type) -> type:
    """The dataclass `options`, with each field's docstring as its help text.

    Tyro finds these texts by itself, but it keeps the line breaks of the source.
    """
    import docstring_parser
    import tyro

    from sgfbias.cli.values import metavar

    texts: dict[str, str] = {}
    for base in reversed(options.__mro__[:-1]):
        for entry in docstring_parser.parse_from_object(base).params:
            texts[entry.arg_name] = " ".join((entry.description or "").split())
    hints = typing.get_type_hints(options, include_extras=True)
    fields = [
        (
            field.name,
            Annotated[
                hints[field.name],
                tyro.conf.arg(help=texts.get(field.name), metavar=metavar(hints[field.name])),
            ],
            dataclasses.field(default=field.default, default_factory=field.default_factory),
        )
        for field in dataclasses.fields(options)
    ]
    return dataclasses.make_dataclass(
        options.__name__,
        fields,
        bases=(options,),
        namespace={"__doc__": options.__doc__},
        frozen=True,
    )


def _help(arguments: list[str]) -> None:
    """Print the list of commands, or that there is no such command, and exit."""
    import tyro

    app = tyro.extras.SubcommandApp()
    for name, (_, text) in COMMANDS.items():

        def command() -> None: ...

        command.__doc__ = text
        app.command(name=name)(command)
    app.cli(args=arguments, prog="sgfbias", description=ABOUT)
