"""What the scripts share: options before the configuration's own, and errors as one message and an exit code."""

import argparse
import contextlib
import io
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO, cast

from jax_cifar.config import Config
from jax_cifar.config.files import help_text, load_config
from jax_cifar.config.modules import in_one_line, is_of_a_program, unreadable_setting
from jax_cifar.config.overrides import of_other_fields
from jax_cifar.errors import ConfigError, UserError, check, is_out_of_memory, printable
from jax_cifar.files import expand, shipped
from jax_cifar.signals import STOPPED, all_done, is_guarded, say


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

    def command_to_train(self, arguments: Sequence[str], config: Config, changes: Sequence[str]) -> str:
        """What trains the configuration of these arguments, but for `changes`, options of fields."""
        options, overrides = self.parse_known_args(arguments)
        changed = {word.removeprefix("--") for word in changes if word.startswith("--")}
        words = ["--config", options.config, *of_other_fields(overrides, config, changed), *changes]
        return f"{start_of('train')} {shlex.join(words)}"


def start_of(script: str) -> str:
    """How a command that runs a script begins; where a wheel was installed there is no folder of scripts to name."""
    installed = shipped("scripts").parent == Path(__file__).parent
    return f"python -m jax_cifar {script}" if installed else f"python scripts/{script}.py"


def without(arguments: Sequence[str], names: Sequence[str]) -> list[str]:
    """Arguments without these options and their values: what one script hands on to another."""
    kept, words = [], iter(arguments)
    for word in words:
        name, equals, _ = word.partition("=")
        if name not in names:
            kept.append(word)
        elif not equals:
            next(words, None)
    return kept


def _writable_file(text: str) -> Path:
    path = expand(text)
    good = os.access(path.parent, os.W_OK) and path.parent.is_dir() and (path.is_file() or not path.exists())
    check(good, "--json", text, "it must be a file in a folder that can be written to")
    return path


class LastingStream:
    """A standard stream that outlives its reader: once it cannot be written any more, nothing is, and work goes on.

    Where what is written is all the work there is (`needs_reader`), that raises the `OSError`, once.
    """

    def __init__(self, stream: TextIO, needs_reader: bool = False) -> None:
        self.within, self._needs_reader = stream, needs_reader

    def write(self, text: str) -> int:
        """Write as the stream does."""
        try:
            return self.within.write(text)
        except OSError as error:
            self._mute(error)
            return len(text)

    def flush(self) -> None:
        """Flush as the stream does."""
        try:
            self.within.flush()
        except OSError as error:
            self._mute(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.within, name)

    def _mute(self, error: OSError) -> None:
        # Whatever is still in buffers, of Python and of others, goes there too.
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), self.within.fileno())
        if self._needs_reader:
            raise error
        say(f"The output cannot be written any more ({error.strerror}); the work goes on without it.")


@contextlib.contextmanager
def lasting_streams(needs_reader: bool = False) -> Iterator[None]:
    """Inside, standard output and errors are `LastingStream`s; one that was closed at the start takes what comes."""
    with contextlib.ExitStack() as stack:
        streams = []
        for stream, needed in ((sys.stdout, needs_reader), (sys.stderr, False)):
            stream = stream or stack.enter_context(open(os.devnull, "w"))
            if isinstance(stream, LastingStream):  # of `python -m jax_cifar`, which knows less of the script's needs
                stream = stream.within
            streams.append(cast(TextIO, LastingStream(stream, needed)))
        stack.enter_context(contextlib.redirect_stdout(streams[0]))
        stack.enter_context(contextlib.redirect_stderr(streams[1]))
        try:
            yield
        finally:
            for stream in streams:
                stream.flush()


def run(main: Callable[[Sequence[str]], object], needs_reader: bool = False) -> None:
    """Call `main(arguments)`; what a user can put right ends in one message and an exit code, never in a traceback.

    `needs_reader`: with an output that cannot be written the work is in vain, and `main` gets the `OSError`.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name in an alphabet that this output has not is shown by numbers; it is no reason to stop.
        sys.stdout.reconfigure(errors="backslashreplace")
    with lasting_streams(needs_reader):
        code = exit_code(main)
        all_done(code)
    if code == STOPPED and is_guarded():
        os._exit(code)  # the devices may still be at work on what nobody waits for any more
    if code:
        sys.exit(code)


def exit_code(main: Callable[[Sequence[str]], object]) -> int:
    """Call `main(arguments)`, and print why it ended before its time. What is a fault of ours keeps its traceback."""
    try:
        main(sys.argv[1:])
        return 0
    except UserError as error:
        message, code = str(error), error.exit_code
    except KeyboardInterrupt:  # nothing guards this process
        message, code = "Stopped by SIGINT.", STOPPED
    except OSError as error:
        message, code = f"{error.strerror}: {error.filename}" if error.filename else str(error), 2
    except Exception as error:
        if is_out_of_memory(error):
            told = str(error).splitlines()[:1] or ["the machine gave no more"]
            way_out = (
                "A smaller --train.batch_size (scripts/find_batch_size.py finds one) or --eval.batch_size needs less."
            )
            message, code = f"Out of memory ({told[0]}). {way_out}", 2
        elif (setting := unreadable_setting(error)) is not None:
            message, code = setting, 2
        elif is_of_a_program(error):
            message, code = f"{in_one_line(error)}.", 2
        else:
            raise
    print(printable(message if code == STOPPED else f"error: {message}"), file=sys.stderr)
    return code
