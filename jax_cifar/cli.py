"""What the scripts share: options before the configuration's own, and errors as one message and an exit code."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from jax_cifar.errors import ConfigError, UserError


class Parser(argparse.ArgumentParser):
    """An argument parser that never shortens options and whose complaints are `ConfigError`s."""

    def __init__(self, description: str | None, **options: object) -> None:
        super().__init__(
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,  # type: ignore[arg-type]
        )

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}. --help shows the options.")


def run(main: Callable[[Sequence[str]], object]) -> None:
    """Call `main(arguments)`; a user's own mistake ends in one message and an exit code, never in a traceback."""
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}" if error.exit_code != 75 else str(error), file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader (head, less) has seen enough.
        sys.stderr.close()
        sys.exit(0)
