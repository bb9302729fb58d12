"""The devices that a server uses, and their memory."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.device.host_memory import available_bytes
from engine.errors import InputError

from .config import Config

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """A device.

    Attributes:
        gpu: number of the GPU; 0 for the CPU.
        name: "cuda:0", "cuda:1", ... or "cpu".
        limit: bytes that avatars may take: max_memory_gb, else what the device has; None if the
            system does not say how much that is.
    """

    gpu: int
    name: str
    limit: int | None


def find_devices(config: Config) -> tuple[Device, ...]:
    """Return the devices of a configuration: GPUs, or the CPU if there are none or none are wanted.

    Raises:
        InputError: more GPUs are wanted than there are, or a model wants one that is not used.
    """
    there, wanted = torch.cuda.device_count(), config.gpus.count
    if wanted is not None and wanted > there:
        raise InputError(f"gpus.count is {wanted}; expected at most {there}, which PyTorch finds")
    gpus = there if wanted is None else wanted
    devices = [_device(config, number, f"cuda:{number}") for number in range(gpus)]
    devices = devices or [_device(config, 0, "cpu")]
    for name, model in config.models.items():
        if model.preferred_gpu >= len(devices):
            raise InputError(
                f"model {name!r}: preferred_gpu is {model.preferred_gpu}; "
                f"expected {numbers_of(devices)}"
            )
    return tuple(devices)


def numbers_of(devices: Sequence[Device]) -> str:
    """Return what `gpu` may be, for an error line."""
    return f"0 to {len(devices) - 1}, or -1 for any" if len(devices) > 1 else "0, or -1 for any"


def device_name(config: Config, gpu: int) -> str:
    """Return PyTorch's name of a device, by its number."""
    on_gpus = config.gpus.count != 0 and torch.cuda.is_available()
    return f"cuda:{gpu}" if on_gpus else "cpu"


def _device(config: Config, gpu: int, name: str) -> Device:
    given = config.capacity.max_memory_gb
    if given is not None:
        return Device(gpu, name, int(given * GIB))
    return Device(gpu, name, available_bytes() if name == "cpu" else _total_bytes(gpu))


def _total_bytes(gpu: int) -> int:
    return int(torch.cuda.get_device_properties(gpu).total_memory)
