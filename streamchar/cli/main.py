"""The command line: every expected failure is one line on standard error and exit code 2.

Commands import what is heavy inside themselves, so that `--help` answers at once.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from types import FrameType

import typer

from streamchar.cli.bench import bench
from streamchar.cli.convert import convert
from streamchar.cli.evaluate import app as evaluate
from streamchar.cli.info import info
from streamchar.cli.say import say
from streamchar.cli.serve import serve
from streamchar.cli.train import train
from streamchar.cli.world import world
from streamchar.errors import StreamCharError

BAD_INPUT = 2
INTERRUPTED = 130
_GOES_ON = "what is finished is kept: the same command goes on"
KEPT = {
    "eval": _GOES_ON, "convert": _GOES_ON, "train": "the last checkpoint is kept: go on with --resume",
    "world": "finished shards are kept, and nothing else was written",
}
"""Command -> what an interruption leaves; the others leave nothing."""

# what typer raises for a bad option; its click may be its own copy, so the class is reached by descent
_UsageError: type[Exception] = typer.BadParameter.__base__ or typer.BadParameter

app = typer.Typer(
    help="Text in, a talking character out, live.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(say)
app.command()(info)
app.command()(world)
app.command()(train)
app.command()(serve)
app.command()(bench)
app.command()(convert)
app.add_typer(evaluate, name="eval")


@app.callback()
def options(verbose: bool = typer.Option(False, "--verbose", "-v", help="Log one line per chunk.")) -> None:
    """Text in, a talking character out, live."""
    if verbose:
        logging.getLogger("streamchar").setLevel(logging.INFO)


class OneLine(logging.Formatter):
    """`warning: ...`, as the errors look."""

    def format(self, record: logging.LogRecord) -> str:
        text = " ".join(record.getMessage().split())
        return text if record.levelno == logging.INFO else f"{record.levelname.lower()}: {text}"


def one_line(error: BaseException) -> str:
    """A message without line breaks, however deep it came from."""
    return " ".join(str(error).split()) or type(error).__name__


def fail(message: str) -> int:
    """Print `error: ...`; the exit code of bad input."""
    print(f"error: {message}", file=sys.stderr)
    return BAD_INPUT


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; nothing expected is raised."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = app(given or ["--help"], prog_name="streamchar", standalone_mode=False)
    except StreamCharError as error:
        return fail(one_line(error))
    except _UsageError as error:
        message = " ".join(error.format_message().split())  # pyright: ignore[reportAttributeAccessIssue]
        return fail(f"{message} (see streamchar --help)")
    except BrokenPipeError:
        raise
    except OSError as error:  # a folder that is a file, a name too long, a full disk
        return fail(one_line(error))
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    if code == INTERRUPTED:
        kept = next((KEPT[word] for word in given[:2] if word in KEPT), "no output was written")
        print(f"interrupted: {kept}", file=sys.stderr)
    return int(code or 0)


def _terminated(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + signal.SIGTERM)  # unwinds, so that unfinished files go


def entry() -> None:
    """The `streamchar` command: sets up the process, then `main`."""
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # libraries' notes to developers are not for users
    signal.signal(signal.SIGTERM, _terminated)
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # `streamchar info | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)
