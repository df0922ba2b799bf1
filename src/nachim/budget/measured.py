"""What `nachim measure` found out about this machine, and where it is kept."""

from __future__ import annotations

from pathlib import Path

from nachim.budget.step_cost import StepCost
from nachim.spec import Device, UserError

HERE = Path.home() / ".cache" / "nachim" / "device.json"


def measured_device(path: Path = HERE) -> Device:
    """The device that `nachim measure` wrote to `path`; its watts and its price are None.

    Raises UserError when it is not there, broken, or something else.
    """
    if not path.exists():
        raise UserError(f"this machine has not been measured: there is no {path}; run `nachim measure` first")
    return Device.load(path)


def steps_path(device: Path = HERE) -> Path:
    """Where the measured training steps of the device at `device` are kept: beside it."""
    return device.with_name(f"{device.stem}.steps.json")


def measured_steps(path: Path = HERE) -> StepCost | None:
    """Rates of real training steps on the machine whose device stands at `path`; None where none were measured.

    For one process that trains on all cores of a CPU: they say its seconds better than any roof does.
    Raises UserError when the file is broken.
    """
    beside = steps_path(path)
    return StepCost.load(beside) if beside.exists() else None
