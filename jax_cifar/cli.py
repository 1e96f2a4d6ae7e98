"""What the scripts share: options before the configuration's own, and errors as one message and an exit code."""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO, cast

from jax_cifar.config import Config
from jax_cifar.config.files import help_text, load_config
from jax_cifar.errors import ConfigError, UserError, check
from jax_cifar.signals import STOPPED, all_done, is_guarded, say


class Parser(argparse.ArgumentParser):
    """An argument parser that never shortens options and whose complaints are `ConfigError`s."""

    def __init__(self, description: str | None, **options: Any) -> None:
        super().__init__(
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,
        )

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}. --help shows the options.")

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
        self.add_argument("--config", metavar="FILE", action=_Once, help="config file, such as configs/quickstart.py")
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
            self.error("--config FILE is missing")
        return options, load_config(options.config, overrides)


class _Once(argparse.Action):
    """Stores an option's value; a second one, which would silently take its place, is refused."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        earlier = getattr(namespace, self.dest)
        if earlier is not None:
            parser.error(f"{option} is given twice, {earlier} and {values}: choose one")
        setattr(namespace, self.dest, values)


def _writable_file(text: str) -> Path:
    path = Path(text).expanduser()
    good = os.access(path.parent, os.W_OK) and path.parent.is_dir() and not path.is_dir()
    check(good, "--json", text, "it must be a file in a folder that can be written to")
    return path


class LastingStream:
    """A standard stream that outlives its reader: once it cannot be written any more, nothing is, and work goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write as the stream does."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._mute(error)
            return len(text)

    def flush(self) -> None:
        """Flush as the stream does."""
        try:
            self._stream.flush()
        except OSError as error:
            self._mute(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _mute(self, error: OSError) -> None:
        # Whatever is still in buffers, of Python and of others, goes there too.
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())
        say(f"The output cannot be written any more ({error.strerror}); the work goes on without it.")


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """Inside, standard output and errors are `LastingStream`s; one that was closed at the start takes what comes."""
    with contextlib.ExitStack() as stack:
        streams = []
        for stream in (sys.stdout, sys.stderr):
            stream = stream or stack.enter_context(open(os.devnull, "w"))
            streams.append(cast(TextIO, LastingStream(stream)))
        stack.enter_context(contextlib.redirect_stdout(streams[0]))
        stack.enter_context(contextlib.redirect_stderr(streams[1]))
        try:
            yield
        finally:
            for stream in streams:
                stream.flush()


def run(main: Callable[[Sequence[str]], object]) -> None:
    """Call `main(arguments)`; what a user can put right ends in one message and an exit code, never in a traceback."""
    with lasting_streams():
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
        if not (isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)):
            raise
        told = str(error).splitlines()[:1] or ["the machine gave no more"]
        message, code = f"Out of memory ({told[0]}). A smaller --train.batch_size or --eval.batch_size needs less.", 2
    print(message if code == STOPPED else f"error: {message}", file=sys.stderr)
    return code
