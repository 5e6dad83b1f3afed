"""Where a model computes, and in which numbers."""

import torch

from tailorbird.errors import ConfigError


def find_device(device: str | torch.device) -> str:
    """Raises ConfigError for a device that is not here."""
    if str(device) == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device '{device}' cannot be used ({str(error).splitlines()[0]}): name cpu, cuda, cuda:1 or auto"
        ) from None
    return str(device)


def find_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Raises ConfigError for what is no floating-point type."""
    found = getattr(torch, dtype, dtype) if isinstance(dtype, str) else dtype
    if found is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        hint = " int8 and int4 are for the engine openvino" if str(dtype) in ("int8", "int4") else ""
        raise ConfigError(f"weights cannot be loaded as {dtype}: name bfloat16, float16 or float32.{hint}")
    return found
