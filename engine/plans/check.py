"""Check whether a plan can run here, and give the command that builds one that can."""

from pathlib import Path

import torch

from ..errors import InputError
from ..runtime.signature import Signature
from .edition import EDITIONS, architecture_names, gpu_architecture
from .record import PlanRecord, find_damage, read_record


def check_plan(plan: Path, signature: Signature, device: torch.device | None = None) -> PlanRecord:
    """Read a plan's record, and check that the plan can run on this device.

    Raises:
        InputError: the plan is damaged, or for another network, TensorRT or GPU. The message has
            the command that builds it again.
    """
    record = read_record(plan)
    key = record.key
    if key.network != signature.kind:
        found, wanted = (kind.replace("_", " ") for kind in (key.network, signature.kind))
        raise InputError(
            f"{plan} is the plan of a(n) {found}; expected that of a(n) {wanted}, built with "
            f"python -m engine.build {wanted.replace(' ', '-')} FILE"
        )
    again = f"build it again: {build_command(plan, record)}"
    damage = find_damage(plan, record)
    if damage:
        raise InputError(f"{plan} is damaged ({damage}); {again} --force")
    edition = EDITIONS.get(key.edition)
    if edition is None:
        expected = " or ".join(EDITIONS)
        raise InputError(f"{plan} was built by {key.edition!r}; expected {expected}")
    if not edition.installed:
        raise InputError(
            f"{plan} needs {edition.name} {key.version}, which is not installed; "
            f"{edition.how_to_install}"
        )
    if edition.version() != key.version:
        raise InputError(
            f"{plan} was built by {edition.name} {key.version} and runs with no other version; "
            f"{edition.version()} is installed; {again}"
        )
    here = gpu_architecture(device)
    if here is not None and here not in key.architectures:
        raise InputError(
            f"{plan} is for {architecture_names(key.architectures)}, but the GPU here is "
            f"SM{here}; {again}"
        )
    return record


def build_command(plan: Path, record: PlanRecord) -> str:
    """Return the command that builds a plan again, for the GPU of this machine."""
    kind = record.key.network.replace("_", "-")
    batch = " ".join(str(size) for size in record.key.batch)
    return (
        f"python -m engine.build {kind} {plan.with_name(record.source)} -o {plan} "
        f"--precision {record.key.precision} --batch {batch}"
    )
