"""Several processes as one: each runs the same command, and their devices make one mesh.

Process 0 alone has the run folder, the console and the checkpoints; what it decides or reads, all others are told
(`on_main`), and what any of them finds at fault ends all of them (`together`). In a single process nothing here costs
or changes anything.
"""

import contextlib
import importlib.util
import inspect
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np

from jax_cifar import errors
from jax_cifar.config import DistributedConfig
from jax_cifar.errors import ConfigError, Interrupted, UserError

T = TypeVar("T")

HEARTBEAT_SECONDS = 30  # until a process that is gone is missed, and the others end
CONNECT_SECONDS = 120  # that the processes of a run wait for one another at the start
TIMEOUTS: dict[str, Any] = {
    "initialization_timeout": CONNECT_SECONDS,
    "heartbeat_timeout_seconds": HEARTBEAT_SECONDS,
    "shutdown_timeout_seconds": HEARTBEAT_SECONDS,
}
# How many processes a launcher has started with this one: Slurm's srun, Open MPI's mpirun.
COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
# In the words of what carries arrays between processes.
SIGNS_OF_A_LOSS = ("Gloo", "closed by peer", "NCCL", "UNAVAILABLE", "heartbeat", "CoordinationService")
TPU_HOSTS = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")  # of a pod, separated by commas


def connect(config: DistributedConfig) -> None:
    """Join the other processes of this run, where there are any: once, before anything asks JAX for its devices.

    They are those that `config` names, or that Slurm, Open MPI, Kubernetes or GKE has started with this one; where
    those are runs of their own, `num_processes` 1 says so.

    Raises:
        ConfigError: half of what is needed is given, or the others cannot be reached.
    """
    given = (config.coordinator, config.num_processes, config.process_id)
    alone = config.num_processes == 1 or (given == (None, None, None) and not started_by_launcher())
    if alone or jax.distributed.is_initialized():
        return
    if None in given and given != (None, None, None):
        raise ConfigError(
            "distributed.coordinator, num_processes and process_id belong together: give all three, or none of them"
            " where Slurm, Open MPI, Kubernetes or GKE starts the processes."
        )
    known = inspect.signature(jax.distributed.initialize).parameters  # jax 0.7 has not all of them
    try:
        with _own_sigterm():
            jax.distributed.initialize(*given, **{name: value for name, value in TIMEOUTS.items() if name in known})
    except (RuntimeError, ValueError) as error:
        told = str(error).splitlines()[0].rstrip(".")
        if "must be called before" in told:
            raise ConfigError(
                "The processes of this run have to join one another before JAX is asked for devices, and it was asked"
                " already: by the config file, it seems. Name the variant that it chooses by them, as in"
                " configs/cifar10_speedrun.py:94."
            ) from error
        where = f" at {config.coordinator}" if config.coordinator else ""
        raise ConfigError(
            f"The processes of this run could not join one another{where}: {told}. Start the same command"
            f" {config.num_processes or ''} times within {CONNECT_SECONDS} s, each with its own"
            " --distributed.process-id from 0 on, and see that the address of process 0 can be reached."
        ) from error


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Inside, JAX joins processes without its own answer to SIGTERM, which would take the place of this project's."""
    if hasattr(jax.config, "jax_enable_preemption_service"):
        jax.config.update("jax_enable_preemption_service", False)
        yield
        return
    # In jax 0.7 it cannot be switched off; only the main thread may take the signal back.
    handler = signal.getsignal(signal.SIGTERM)
    yield
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def parting() -> Iterator[None]:
    """Inside, all processes end together: a `UserError`, which all raise, ends their connection in order.

    Raises:
        Interrupted: another process has gone, and what was sent to it came to nothing.
    """
    try:
        yield
    except UserError:
        if several():
            jax.distributed.shutdown()  # else who is last would be told that another has died
        raise
    except (jax.errors.JaxRuntimeError, ValueError) as error:  # the latter in jax 0.7
        if not (several() and any(sign in str(error) for sign in SIGNS_OF_A_LOSS)):
            raise
        told = str(error).splitlines()[0]
        raise Interrupted(
            f"Another process of this run has ended ({told}). What was saved before is kept: to go on, start all of"
            " them again with the same command."
        ) from error


def started_by_launcher() -> bool:
    """Whether a launcher has started several processes, of which this is one; `jax.distributed` finds the others."""
    counts, hosts = ([os.environ.get(name, "") for name in names] for names in (COUNTS, TPU_HOSTS))
    # JAX asks Kubernetes itself, which takes the package of that name (pip install 'jax[k8s]').
    indexed = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= os.environ.keys()
    kubernetes = indexed and importlib.util.find_spec("kubernetes") is not None
    return kubernetes or any(map("1".__ne__, filter(str.isdigit, counts))) or any("," in names for names in hosts)


def is_main() -> bool:
    """Whether this is the process that writes: the only one, or number 0."""
    return not several() or jax.process_index() == 0


def several() -> bool:
    """Whether there are other processes."""
    # To be asked how many there are JAX looks for its devices, and where they are missing `find_devices` says so.
    return jax.distributed.is_initialized() and jax.process_count() > 1


def on_main(function: Callable[[], T]) -> T:
    """What `function` returns in process 0, a JSON value, in every process; a `UserError` is raised in all of them."""
    if not several():
        return function()
    told = _attempt(function) if is_main() else {}
    return _outcome(json.loads(_broadcast(json.dumps(told).encode())))


def together(function: Callable[[], T]) -> T:
    """What `function` returns here, once it has returned in every process.

    Raises:
        UserError: it raised one here, or elsewhere: then the message names that process.
    """
    if not several():
        return function()
    try:
        result, fault = function(), None
    except UserError as error:
        result, fault = None, error
    failed = _gather(int(fault is not None))
    if fault is not None:
        raise fault
    if failed.any():
        raise ConfigError(f"Process {int(failed.argmax())} of this run has ended with an error: see what it says.")
    return result  # pyright: ignore[reportReturnType]


def least(value: int) -> int:
    """The smallest of the values that the processes have."""
    return int(_gather(value).min()) if several() else value


def greatest(value: int) -> int:
    """The largest of the values that the processes have."""
    return int(_gather(value).max()) if several() else value


def require_same_everywhere(what: str, checksum: int) -> None:
    """Raise `ConfigError` in every process where they have not all the same."""
    checksum &= 0x7FFFFFFF  # what is exchanged has 31 bits
    if least(checksum) != greatest(checksum):
        raise ConfigError(f"The processes of this run differ in their {what}: start all with the same command.")


def from_main(arrays: Any) -> Any:
    """The arrays of process 0, NumPy, in every process; elsewhere `arrays` tells structure, shapes and dtypes."""
    if not several():
        return arrays
    from jax.experimental import multihost_utils

    def send(array: np.ndarray) -> np.ndarray:
        # As bytes: what JAX sends is a sum, in which -0.0 would become 0.0.
        sent = multihost_utils.broadcast_one_to_all(np.frombuffer(np.asarray(array).tobytes(), np.uint8))
        return np.frombuffer(np.asarray(sent).tobytes(), array.dtype).reshape(array.shape)

    return jax.tree.map(send, arrays)


def _attempt(function: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"value": function()}
    except UserError as error:
        return {"error": type(error).__name__, "message": str(error)}


def _outcome(told: dict[str, Any]) -> Any:
    if "error" in told:
        raise getattr(errors, told["error"])(told["message"])
    return told["value"]


def _gather(value: int) -> np.ndarray:
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(np.int32(value)))


def _broadcast(content: bytes) -> bytes:
    size = greatest(len(content))
    padded = np.frombuffer(content.ljust(size), np.uint8) if is_main() else np.zeros(size, np.uint8)
    return from_main(padded).tobytes().rstrip()
