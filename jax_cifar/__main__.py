"""The scripts under one name, from any folder: `python -m jax_cifar train --config quickstart`."""

from jax_cifar.process import begin

if __name__ == "__main__":
    begin()  # before all that takes long to import

import ast
import difflib
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from jax_cifar.cli import run
from jax_cifar.errors import ConfigError
from jax_cifar.files import shipped


def main(arguments: Sequence[str]) -> None:
    """Hand over to the script that is named, with all words behind its name; without one say which there are."""
    scripts = {path.stem: path for path in sorted(shipped("scripts").glob("[a-z]*.py"))}
    command, *rest = arguments or ["--help"]
    if command in ("-h", "--help"):
        print(usage(scripts))
        return
    if command not in scripts:
        near = difflib.get_close_matches(command, scripts, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"There are {', '.join(scripts)}."
        raise ConfigError(f"{command} is no command. {hint}")
    sys.argv = [str(scripts[command]), *rest]
    runpy.run_path(str(scripts[command]), run_name="__main__")


def usage(scripts: dict[str, Path]) -> str:
    """Every command with the first sentence of its script, and the experiments that are found by name."""
    width = max(map(len, scripts))
    lines = ["usage: python -m jax_cifar COMMAND [options]; COMMAND --help shows the options", ""]
    lines += [f"  {name:<{width}}  {_purpose(path)}" for name, path in scripts.items()]
    lines += ["", f"--config takes a file, or the name of an experiment: {', '.join(experiments())}"]
    return "\n".join(lines)


def experiments() -> list[str]:
    """The names that `--config` takes for the experiments that ship."""
    return sorted(path.stem for path in shipped("configs").glob("[a-z]*.py"))


def _purpose(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_bytes())) or "").partition("\n")[0]


if __name__ == "__main__":
    run(main)
