"""`python -m deeplab_edu COMMAND ...`: what the course does in notebooks, from a shell.

A command NAME lives in the module that `COMMANDS` gives, as two functions: `NAME_arguments(parser)` adds its options,
help text and examples; `NAME(arguments)` does the work and returns the exit status, None meaning 0. The module is
imported only when its command is asked for, so that `--help` answers at once.

Exit status: 0, done; 1, done in part (the output says what is missing); 2, refused, with the reason in one sentence;
130, interrupted.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("deeplab_edu.cli_train", "train a network, into a folder that it can go on from"),
    "evaluate": ("deeplab_edu.cli_train", "score a trained network on a whole split"),
    "segment": ("deeplab_edu.cli_segment", "label photographs with a trained network"),
}
REFUSALS = (ValueError, TypeError, OSError, FloatingPointError)
"""What this package raises with a sentence for the reader, whom a traceback would only confuse."""

EXAMPLES = """
Every command explains itself and shows examples:

  python -m deeplab_edu train --help
  python -m deeplab_edu segment --help
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line, without the program's name; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser(next((word for word in words if not word.startswith("-")), None))
    arguments = parser.parse_args(words)
    module, _ = COMMANDS[arguments.command]
    try:
        return getattr(importlib.import_module(module), arguments.command)(arguments) or 0
    except REFUSALS as error:
        if arguments.traceback:
            raise
        print(f"{parser.prog} {arguments.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        print(f"\n{str(stopped) or 'Stopped.'}", file=sys.stderr)
        return 130


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """The parser of the program, with the options of one command only: the others need not be imported."""
    parser = argparse.ArgumentParser(
        "python -m deeplab_edu",
        description="Semantic segmentation from FCN to DeepLab v3+, from a shell.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, summary) in COMMANDS.items():
        one = commands.add_parser(
            name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )
        if name == command:
            getattr(importlib.import_module(module), f"{name}_arguments")(one)
    return parser
