"""What the scripts share: options before the configuration's own, and errors as one message and an exit code."""

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jax_cifar.config import Config
from jax_cifar.config.files import help_text, load_config
from jax_cifar.errors import ConfigError, UserError, check, printable
from jax_cifar.files import expand


class Parser(argparse.ArgumentParser):
    """An argument parser that never shortens options, takes each once, and whose complaints are `ConfigError`s.

    In the name of an option `-` and `_` are the same.
    """

    def __init__(self, description: str | None, **options: Any) -> None:
        super().__init__(
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,
        )

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}. --help shows the options.")

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As argparse does, but an option that is given twice is refused: the second would silently take its place."""
        words = list(map(self._spelled, sys.argv[1:] if args is None else args))
        given = [name for word in words if (name := word.partition("=")[0]) in self._option_string_actions]
        for name in given:
            if given.count(name) > 1:
                self.error(f"{name} is given twice: choose one")
        return super().parse_known_args(words, namespace)

    def _spelled(self, word: str) -> str:
        """An argument with the name of its option, if it has one, as it was added."""
        name, equals, value = word.partition("=")
        spellings = (name, name.replace("_", "-"), f"--{name[2:].replace('-', '_')}")
        known = self._option_string_actions if name.startswith("--") else {}
        return next((spelling for spelling in spellings if spelling in known), name) + equals + value

    def add_json(self, meaning: str) -> None:
        """Add `--json FILE`, refused before anything is computed where the file could not be written."""
        self.add_argument("--json", metavar="FILE", type=_writable_file, help=meaning)


class ExperimentParser(Parser):
    """The options of a script that works on what a config file says: `--config FILE`, and every field of it.

    parser = ExperimentParser(__doc__)
    parser.add_argument("--workdir", ...)  # the script's own options
    options, config = parser.read(arguments)
    """

    def __init__(self, description: str | None, **options: Any) -> None:
        super().__init__(description, add_help=False, **options)
        self.add_argument("--config", metavar="FILE", help="config file, such as configs/quickstart.py")
        self.add_argument("-h", "--help", action="store_true", help="show this and every field of the configuration")

    def read(self, arguments: Sequence[str]) -> tuple[argparse.Namespace, Config]:
        """The script's own options, and the configuration with all other arguments applied to it.

        Raises:
            ConfigError: no or several config files, or one that cannot be; an argument that is nobody's.
            SystemExit: --help, after printing it.
        """
        options, overrides = self.parse_known_args(arguments)
        if options.help:
            config = load_config(options.config) if options.config else Config(name="default")
            print(self.format_help(), help_text(config, "fields of the configuration"), sep="\n")
            sys.exit()
        if options.config is None:
            file = next((f": say --config {word}" for word in overrides if word.partition(":")[0].endswith(".py")), "")
            self.error(f"--config FILE is missing{file}")
        return options, load_config(options.config, overrides)


def _writable_file(text: str) -> Path:
    path = expand(text)
    good = os.access(path.parent, os.W_OK) and path.parent.is_dir() and not path.is_dir()
    check(good, "--json", text, "it must be a file in a folder that can be written to")
    return path


def run(main: Callable[[Sequence[str]], object]) -> None:
    """Call `main(arguments)`; a user's own mistake ends in one message and an exit code, never in a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name in an alphabet that this output has not is shown by numbers; it is no reason to stop.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(printable(f"error: {error}" if error.exit_code != 75 else str(error)), file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader (head, less) has seen enough.
        sys.stderr.close()
        sys.exit(0)
