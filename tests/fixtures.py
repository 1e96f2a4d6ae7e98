"""How JAX computes while a test runs; for both folders of tests."""

import gc
import importlib.util

import jax
import pytest
from clocks import Clock

WITHOUT_TORCH = importlib.util.find_spec("torch") is None


def pytest_collection_finish() -> None:
    """What has been imported stays: it is not searched for garbage again and again, and what is new is more seldom."""
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """A file of tests that imports PyTorch, or what does, is skipped as a whole where there is none."""
    report = yield
    if WITHOUT_TORCH and report.failed and "No module named 'torch'" in str(report.longrepr):
        report.outcome, report.longrepr = "skipped", (str(collector.path), 0, "Skipped: PyTorch is not installed")
    return report


@pytest.fixture
def clock():
    """A `Clock`, for what tells the time."""
    return Clock()


@pytest.fixture
def x64():
    """Float64 is there, and the default."""
    from jax_cifar.backend.precision import float64

    with float64():
        yield


@pytest.fixture(autouse=True)
def quick_compile(request):
    """Programs are compiled quickly, as most run a few times only; as in use where a test is marked `optimised`."""
    quick = request.node.get_closest_marker("optimised") is None
    if quick == jax.config.read("jax_disable_most_optimizations"):
        yield
        return
    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", quick)
    yield
    jax.config.update("jax_disable_most_optimizations", not quick)
    jax.clear_caches()


@pytest.fixture(autouse=True)
def images_are_arguments():
    """No program has images in it as a constant, which jaxlib 0.7 on a CPU folds wrongly: JAX warns of so many bytes.

    The images that `small_config` trains on are a little more; an exported program has its weights in it.
    """
    before = jax.config.jax_captured_constants_warn_bytes  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_captured_constants_warn_bytes", 600_000)
    yield
    jax.config.update("jax_captured_constants_warn_bytes", before)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """The `Result` of a run of `small_config()`, for all to read; who spoils its folder takes a copy."""
    # Imported only now: what is imported before the tests are collected escapes the checks of shapes.
    from small_runs import loop, small_config

    return loop.train(small_config(), tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def warnings():
    """What `saved` warns of, line by line."""
    return []


@pytest.fixture
def saved(tmp_path, warnings):
    """The `Checkpoints` of a run that hold steps 1 to 3."""
    from checkpoint_states import three_checkpoints

    with three_checkpoints(tmp_path / "run", warnings.append) as checkpoints:
        yield checkpoints
