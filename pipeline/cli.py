"""The command line: picks the command, turns errors into one line and an exit code, sets up logging once.

Light at the start: a command's own module is imported only when it is the one asked for, and a stage (torch,
torchvision) only when the command runs. Exit codes: 0 done, 1 failed, 2 the user's mistake, 75 stopped by a
time limit or a signal with everything saved, 130 interrupted.
"""

import argparse
import difflib
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import NoReturn

from store_schema.errors import ButdError

COMMANDS = {
    "scenes": "draw a data set of scenes with captions, questions and boxes",
    "prepare": "turn a published data set into the standard tables",
    "train": "train a detector, a captioner or a VQA model; go on where a run stopped",
    "convert-weights": "published weights into a model folder",
    "submit": "train in a queue: a job script that goes on until the run is done",
    "detect": "stage one: regions of every picture into a store",
    "store": "what is in a store, whether it is whole, one picture's regions",
    "caption": "describe pictures with a trained captioner",
    "answer": "answer a question about a picture with a trained VQA model",
    "evaluate": "score trained models on any tables and store",
    "export": "one folder of a trained model, to use or give away",
    "report": "write the report of evaluated models",
    "runs": "list training runs, compare them in a plot",
    "demo": "the whole pipeline on generated scenes",
    "demo-photos": "the pipeline on real photographs",
}

EXIT_INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line with the closest option named."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 and one line that says what was wrong."""
        if message.startswith("unrecognized arguments: "):
            given = message.removeprefix("unrecognized arguments: ").split()[0]
            close = difflib.get_close_matches(given, list(self._option_string_actions), n=1)
            message = f"unknown argument {given!r}" + (f"; did you mean {close[0]}?" if close else "")
        self.exit(2, f"{self.prog}: {message}; see '{self.prog} --help'\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"butd {_version()}")
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f" (did you mean '{close[0]}'?)" if close else ""
        print(f"butd: unknown command {name!r}{hint}; see 'butd --help'", file=sys.stderr)
        return 2
    return _run(name, arguments[1:])


def _run(name: str, arguments: list[str]) -> int:
    command = importlib.import_module(f"pipeline.commands.{name.replace('-', '_')}")
    parser = Parser(
        prog=f"butd {name}",
        description=command.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--verbose", action="store_true", help="log more")
    command.add_arguments(parser)
    try:
        options = parser.parse_args(arguments)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    _set_up_logging(verbose=options.verbose)
    try:
        return int(command.run(options))
    except ButdError as error:
        # One line, also where a library's own text with line breaks is quoted.
        print(f"butd {name}: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"butd {name}: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away (`butd runs | head`): nothing is left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        # A full disk, a folder that may not be written: the system says what and where.
        logging.getLogger(__name__).debug("where it came from", exc_info=True)
        print(f"butd {name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1


def _overview() -> str:
    lines = [
        "usage: butd COMMAND [options]",
        "",
        "Bottom-up / top-down vision and language: regions once, experiments many times.",
        "",
        "commands, in the order of the data:",
        *(f"  {name:<15} {text}" for name, text in COMMANDS.items()),
        "",
        "example: butd demo          (everything end to end on generated scenes, with a report)",
        "'butd COMMAND --help' says more about each; 'butd --version' names the version.",
    ]
    return "\n".join(lines)


def _version() -> str:
    try:
        return version("butd")
    except PackageNotFoundError:
        return "unknown (not installed)"


def _set_up_logging(*, verbose: bool) -> None:
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    for noisy in ("matplotlib", "PIL", "distributed", "asyncio", "fsspec", "numcodecs"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
