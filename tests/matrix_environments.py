"""The environments of `make matrix`: what is installed in each, in a folder of its own, and whether it stayed so."""

import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from jax_cifar.errors import UserError

ROOT = Path(__file__).parents[1]
PLACE = ROOT / ".matrix"
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
# Installed for the tests, where they are not about a package alone that is not there.
EXTRAS = ("dev", "torch")
# Of these the newest is taken that comes without CUDA; the tests can do without them.
TORCH = ("torch", "onnxscript")
CUDA = ("nvidia", "cuda", "triton")  # how the packages begin that a CUDA build of PyTorch asks for


class Environment(NamedTuple):
    """Packages of certain versions on one Python."""

    python: str
    what: str
    pins: tuple[str, ...]  # requirements that narrow what pip may choose
    preinstalled: bool = False  # they are there before this project is installed, which must leave them as they are


def project() -> dict[str, Any]:
    """The table `project` of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def extra(name: str) -> Iterator[Requirement]:
    """The packages of an extra, those of the extras that it names among them."""
    for requirement in map(Requirement, project()["optional-dependencies"][name]):
        if requirement.name == project()["name"]:
            for inner in sorted(requirement.extras):
                yield from extra(inner)
        else:
            yield requirement


def lowest(requirement: Requirement) -> str:
    """The requirement with its lower bound as the only version: "jax==0.7" of "jax>=0.7"."""
    (version,) = [each.version for each in requirement.specifier if each.operator in (">=", "==")]
    named = f"{requirement.name}=={version}"
    return f"{named}; {requirement.marker}" if requirement.marker else named


def needed() -> list[Requirement]:
    """All that the project and its tests need."""
    return [*map(Requirement, project()["dependencies"]), *(one for name in EXTRAS for one in extra(name))]


ENVIRONMENTS = {
    "colab": Environment(
        "3.13",
        "what Google Colab preinstalls, before this project",
        (
            "jax==0.7.2",
            "jaxlib==0.7.2",
            "flax==0.11.2",
            "optax==0.2.8",
            "orbax-checkpoint==0.12.4",
            "numpy==2.1.3",
            "scipy==1.16.3",
            "scikit-learn==1.6.1",
            "matplotlib==3.10.0",
            "rich==13.9.4",
            "tensorflow-datasets==4.9.10",
            "array_record==0.8.3",
        ),
        preinstalled=True,
    ),
    "oldest": Environment(
        "3.11",
        "the lower bounds of pyproject.toml",
        tuple(sorted({lowest(one) for one in needed() if one.name not in TORCH})),
    ),
    "newest": Environment("3.13", "the newest of everything", ("jax>=0.12", "flax>=0.12.12", "numpy>=2.5")),
    "default": Environment(HERE, "what `make setup` installs", ()),
}


class Built(NamedTuple):
    """An environment that is there."""

    place: Path
    versions: dict[str, str]  # of every package
    added: tuple[str, ...]  # packages that installing this project added to what was there before

    @property
    def python(self) -> Path:
        """Its Python."""
        return self.place / "bin" / "python"


def find_python(version: str) -> Path:
    """The Python of a version, such as "3.13", on the path or among those of pyenv.

    Raises:
        UserError: there is none.
    """
    root = Path.home() / ".pyenv"
    if shutil.which("pyenv"):
        root = Path(subprocess.run(["pyenv", "root"], capture_output=True, text=True, check=True).stdout.strip())
    candidates = [sys.executable, shutil.which(f"python{version}"), *root.glob(f"versions/{version}.*/bin/python")]
    for candidate in filter(None, candidates):
        # On the path there may be a pyenv's word that another version is chosen.
        asked = [str(candidate), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        if subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() == version:
            return Path(candidate)
    raise UserError(f"There is no python{version} on the path or in {root}. Install it: pyenv install {version}")


def build(name: str, environment: Environment) -> Built:
    """The environment, made anew where its recipe is another than that of the one that is there.

    Raises:
        UserError: a Python is missing, pip fails, a release was withdrawn, or what was preinstalled has been replaced.
    """
    place = PLACE / name
    made, python = place / "recipe.json", place / "bin" / "python"
    recipe = [environment.python, environment.pins, list(map(str, needed()))]
    if made.exists() and json.loads(made.read_text())["recipe"] == json.loads(json.dumps(recipe)):
        return Built(place, installed(python), tuple(json.loads(made.read_text())["added"]))
    shutil.rmtree(place, ignore_errors=True)
    execute([find_python(environment.python), "-m", "venv", place], place)
    pip(place, "--upgrade", "pip")
    added = install(place, environment)
    made.write_text(json.dumps({"recipe": recipe, "added": added}, indent=2) + "\n")
    return Built(place, installed(python), tuple(added))


def install(place: Path, environment: Environment) -> list[str]:
    """Install the project, and what its tests need; returns what the project added to the preinstalled packages."""
    pins = place / "pins.txt"
    pins.write_text("\n".join(environment.pins) + "\n")
    python = place / "bin" / "python"
    before: dict[str, str] = {}
    if environment.preinstalled:
        pip(place, "--requirement", pins)
        before = installed(python)
        pip(place, "--editable", ROOT)  # as a user does it: no word of what must stay
    after = installed(python)
    tools = [str(one) for name in EXTRAS for one in extra(name) if one.name not in TORCH]
    pip(place, "--editable", ROOT, *tools, *torch_without_cuda(place, pins), "--constraint", pins)
    for found in (after, installed(python)):
        replaced = [name for name in before if found.get(name) != before[name]]
        if not replaced:
            continue
        changes = ", ".join(f"{name} {before[name]} by {found.get(name)}" for name in replaced)
        raise UserError(f"Installing this project replaces what is preinstalled: {changes}.")
    return sorted(after.keys() - before.keys() - {project()["name"]}) if environment.preinstalled else []


def torch_without_cuda(place: Path, pins: Path) -> list[str]:
    """What to ask pip for to have PyTorch without gigabytes of CUDA; nothing where there is no such build."""
    wanted = [str(one) for one in extra("torch") if one.name in TORCH]
    report = place / "torch.json"
    pip(place, "--dry-run", "--ignore-installed", "--report", report, *wanted, "--constraint", pins)
    found = [one["metadata"]["name"] for one in json.loads(report.read_text())["install"]]
    return [] if any(name.startswith(CUDA) for name in found) else wanted


def installed(python: Path) -> dict[str, str]:
    """The version of every package of an environment, and of its Python."""
    asked = (
        "import json, platform, importlib.metadata as m;"
        "print(json.dumps([['python', platform.python_version()], *([d.name, d.version] for d in m.distributions())]))"
    )
    found = subprocess.run([python, "-c", asked], capture_output=True, text=True, check=True).stdout
    return {canonicalize_name(name): version for name, version in json.loads(found)}


def pip(place: Path, *arguments: object) -> None:
    """Let pip of an environment install; raises `UserError` where it fails, or takes a release that was withdrawn."""
    told = execute([place / "bin" / "python", "-m", "pip", "install", *arguments], place)
    withdrawn = [line for line in told.splitlines() if "is a yanked version" in line]
    if withdrawn:
        raise UserError(f"{place.name}: raise the lower bound of what has been withdrawn.\n" + "\n".join(withdrawn))


def execute(command: Sequence[object], place: Path) -> str:
    """What a command prints, run at the root of the project; raises `UserError` with its last words where it fails."""
    streams: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(list(map(str, command)), cwd=ROOT, check=False, **streams)
    if done.returncode:
        told = "\n".join(done.stdout.strip().splitlines()[-12:])
        raise UserError(f"{place.name}: {' '.join(map(str, command[:6]))} ... failed:\n{told}")
    return done.stdout
