"""Which version of the compressed-tensors library a checkpoint needs."""

from importlib.metadata import PackageNotFoundError, version

from torchqat.errors import UserError

_DENSE = (0, 18)


def has_dense_widths(config: dict) -> bool:
    """Whether a ``quantization_config`` has packed codes of a width that 32 bits are no multiple of."""
    groups = config.get("config_groups")
    return isinstance(groups, dict) and any(_straddles(group, config) for group in groups.values())


def check_reads_dense_widths() -> None:
    """Whether the installed library reads such codes as they are; older ones take them for others, without a word.

    Raises:
        UserError: It does not.
    """
    try:
        found = version("compressed-tensors")
    except PackageNotFoundError:
        return  # which is said where it is needed
    if tuple(int(part) for part in found.split(".")[:2]) < _DENSE:
        raise UserError(
            f"compressed-tensors-0.18 is read by compressed-tensors 0.18 and newer, but {found} is installed: run pip "
            "install -U compressed-tensors, or take compressed-tensors, which every version reads."
        )


def _straddles(group: object, config: dict) -> bool:
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(weights, dict) or weights.get("type") != "int":
        return False
    bits = weights.get("num_bits")
    packed = (group.get("format") or config.get("format")) == "pack-quantized"
    return packed and isinstance(bits, int) and bits > 0 and 32 % bits != 0
