"""The update rules of a configuration: PyTorch's own optimizers, and the two that it lacks, Muon and Lookahead."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer

from jax_cifar.config import OptimConfig
from jax_cifar.errors import ConfigError
from torch_ref.convert import jax_path

# airbench94_muon's.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 3


def make_optimizers(config: OptimConfig, parameters: Mapping[str, nn.Parameter]) -> list[Optimizer]:
    """The optimizer of `config`; for muon two: Muon for convolution kernels, SGD with Nesterov's momentum for the rest.

    Args:
        config: rule and settings; its multipliers are applied to JAX paths ("group1/bn1/bias").
        parameters: by PyTorch name (`dict(model.named_parameters())`); those without `requires_grad` are left out.

    Raises:
        ConfigError: a multiplier's pattern matches no parameter, or the rule is a function of one's own.
    """
    paths = {jax_path(name, parameter.ndim): parameter for name, parameter in parameters.items()}
    rate = _match(config.lr_multipliers, paths, "optim.lr_multipliers")
    decay = _match(config.decay_multipliers, paths, "optim.decay_multipliers")

    def groups(lr: float, chosen: Iterable[str] = paths) -> list[dict[str, Any]]:
        members = defaultdict(list)
        for path in chosen:
            if paths[path].requires_grad:
                members[rate.get(path, 1.0), decay.get(path, 1.0)].append(paths[path])
        return [
            {"params": group, "lr": lr * factor, "weight_decay": config.weight_decay * decay_factor}
            for (factor, decay_factor), group in members.items()
        ]

    match config.name:
        case "sgd":
            return [SGD(groups(config.lr), momentum=config.momentum, nesterov=config.nesterov)]
        case "adam":
            return [Adam(groups(config.lr), betas=(config.b1, config.b2), eps=config.eps)]
        case "adamw":
            return [AdamW(groups(config.lr), betas=(config.b1, config.b2), eps=config.eps)]
        case "adagrad":
            return [Adagrad(groups(config.lr), eps=config.eps)]
        case "muon":
            kernels = [path for path, parameter in paths.items() if parameter.ndim == 4]
            others = [path for path in paths if path not in kernels]
            # SGD refuses Nesterov's form without momentum, where it changes nothing.
            momentum, nesterov = config.aux_momentum, config.aux_momentum > 0
            aux = SGD(groups(config.aux_lr, others), momentum=momentum, nesterov=nesterov)
            return [Muon(groups(config.lr, kernels), momentum=config.momentum), aux]
        case function:
            expected = "an optax transformation has no twin in PyTorch; choose one of the rules by name"
            raise ConfigError(f"optim.name = {getattr(function, '__name__', function)} is not allowed: {expected}.")


class Muon(Optimizer):
    """Muon for convolution kernels as in airbench94_muon (K. Jordan, 2024).

    The Nesterov direction of a kernel, taken as a matrix [out, in * height * width], is orthogonalised; the kernel is
    brought to the norm sqrt(out), decayed (decoupled) and moved. `torch.optim.Muon` differs: matrices only,
    5 iterations in bfloat16, a rate scaled by the matrix's shape, no renormalisation.
    """

    def __init__(self, params: Any, lr: float = 0.24, momentum: float = 0.6, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of every kernel that has a gradient."""
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for kernel in group["params"]:
                if kernel.grad is None:
                    continue
                state = self.state[kernel]
                if not state:
                    state["buffer"] = torch.zeros_like(kernel)
                buffer = state["buffer"].mul_(momentum).add_(kernel.grad)
                direction = kernel.grad.add(buffer, alpha=momentum)
                kernel.mul_(renormalising_factor(kernel) * (1 - lr * group["weight_decay"]))
                kernel.sub_(lr * newton_schulz(direction.reshape(len(kernel), -1)).view_as(kernel))


def newton_schulz(matrix: Tensor) -> Tensor:
    """Push the singular values of a matrix to about 1, keeping its singular vectors, in the dtype given."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix  # the Gram matrix of the short side is the small one
    x = x / (x.norm() + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def renormalising_factor(kernel: Tensor) -> Tensor:
    """The factor that gives a kernel [out, in, height, width] the norm sqrt(out); 1 for a kernel of zeros."""
    norm = kernel.norm()
    return torch.where(norm > 0, len(kernel) ** 0.5 / norm, 1.0)


class Lookahead:
    """Lookahead (Zhang et al. 2019): every so many updates slow += alpha * (fast - slow), then fast = slow."""

    def __init__(self, parameters: Iterable[Tensor], every: int, alpha: float) -> None:
        self.fast = list(parameters)
        self.slow = [fast.detach().clone() for fast in self.fast]
        self.every, self.alpha, self.updates = every, alpha, 0

    @torch.no_grad()
    def step(self) -> None:
        """To be called after every update of the parameters, which are the fast weights."""
        self.updates += 1
        if self.updates % self.every == 0:
            for slow, fast in zip(self.slow, self.fast, strict=True):
                slow.lerp_(fast, self.alpha)
                fast.copy_(slow)


def _match(rules: Sequence[tuple[str, float]], paths: Collection[str], field: str) -> dict[str, float]:
    """The factor of every path that a rule matches, by the first such rule."""
    factors: dict[str, float] = {}
    for pattern, factor in rules:
        matching = [path for path in paths if re.search(pattern, path)]
        if not matching:
            some = ", ".join(list(paths)[:4])
            raise ConfigError(f"{field}: {pattern!r} matches no parameter; their paths look like {some}.")
        factors = dict.fromkeys(matching, factor) | factors
    return factors
