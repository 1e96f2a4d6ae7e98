"""Which layers of a network that ships read one another, and so may have any number of filters."""


def chains(name: str, convs_per_group: int | None = None) -> tuple[tuple[str, ...], ...]:
    """Paths of layers, each reading the one before it in its chain and nobody else's output.

    All but the last of a chain may have any number of filters (of a dense layer: features): only the next one sees
    them. The last writes what others read too, a residual stream, or the logits. What stands in no chain has a number
    of filters that others depend on: stems, shortcuts, the whitening of speedrun_net.

    Args:
        name: the architecture, as `ModelConfig.name`.
        convs_per_group: of speedrun_net; default: its own, 2.
    """
    return _CNNS[name] if name in _CNNS else _blocks(name) if name in _RESNETS else _groups(convs_per_group or 2)


_CNNS = {
    "tiny_cnn": (("conv1", "conv2", "conv3", "fc"),),
    "simple_cnn": (("conv1", "conv2", "fc1", "fc2"),),
    "cifar_cnn": ((*(f"block{i}/conv{j}" for i in (1, 2, 3, 4) for j in (1, 2)), "fc1", "fc2", "fc3"),),
}
# Blocks of each stage, and convolutions of each block.
_RESNETS = {"resnet18": ((2, 2, 2, 2), 2), "resnet34": ((3, 4, 6, 3), 2), "resnet50": ((3, 4, 6, 3), 3)}


def _blocks(name: str) -> tuple[tuple[str, ...], ...]:
    stages, convs = _RESNETS[name]
    blocks = [f"layer{stage}_{i}" for stage, count in enumerate(stages, start=1) for i in range(count)]
    return tuple(tuple(f"{block}/conv{j}" for j in range(1, convs + 1)) for block in blocks)


def _groups(convs: int) -> tuple[tuple[str, ...], ...]:
    groups = [f"group{i}" for i in (1, 2, 3)]
    if convs == 3:  # the first writes a residual stream too
        return tuple((f"{group}/conv2", f"{group}/conv3") for group in groups)
    return ((*(f"{group}/conv{j}" for group in groups for j in range(1, convs + 1)), "head"),)
