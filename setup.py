"""What pyproject.toml cannot say: the scripts and the experiments lie beside the library, and inside it in a wheel."""

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

BESIDE = ("scripts", "configs")
# These need the rest of the repository.
CHECKOUT_ONLY = ("audit", "benchmark")


class BuildPy(build_py):
    """Leaves out what is of no use in a wheel."""

    def find_package_modules(self, package, package_dir):
        modules = super().find_package_modules(package, package_dir)
        return [module for module in modules if package != "jax_cifar.scripts" or module[1] not in CHECKOUT_ONLY]


setup(
    packages=[*find_packages(include=["jax_cifar*", "torch_ref*"]), *(f"jax_cifar.{name}" for name in BESIDE)],
    package_dir={f"jax_cifar.{name}": name for name in BESIDE},
    cmdclass={"build_py": BuildPy},
)
