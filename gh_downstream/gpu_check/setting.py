"""On what device and at what size a part of the check runs, and how it says what it found."""

import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from gh_downstream.reporting import Cell, Table

T = TypeVar("T")


class LeftOutError(Exception):
    """A part cannot run here, for the reason that it gives."""


@dataclass(frozen=True)
class Setting:
    """Where a part runs: on a GPU where there is one, and small on request."""

    small: bool

    @property
    def device(self) -> torch.device:
        """The first GPU, or the CPU."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def on_gpu(self) -> bool:
        """Whether there is a GPU."""
        return self.device.type == "cuda"

    def size(self, full: T, small: T) -> T:
        """One of two sizes."""
        return small if self.small else full

    def precisions(self) -> dict[str, torch.dtype]:
        """The types of autocast by name; float16, whose kernels a CPU partly lacks, on a GPU alone."""
        half = {"fp16": torch.float16} if self.on_gpu else {}
        return {"bf16": torch.bfloat16, "float32": torch.float32, **half}

    def wait(self) -> None:
        """Wait for the GPU."""
        if self.on_gpu:
            torch.cuda.synchronize()


@dataclass
class Checks:
    """Numbers that each have a bound."""

    title: str
    header: str
    rows: list[list[Cell]] = field(default_factory=list)

    def add(self, name: str, bound: float, measure: Callable[[], float]) -> None:
        """Measure a number that may not exceed its bound; where the measurement fails, so does the check."""
        try:
            found = measure()
            verdict = "right" if found <= bound else "WRONG"
        except Exception as error:
            traceback.print_exc()
            found, verdict = float("nan"), f"WRONG: {type(error).__name__}: {error}"
        self.rows.append([name, f"{found:.1e}", f"{bound:.0e}", verdict])

    def report(self) -> Iterator[Table]:
        """Give the table, and then raise an ``AssertionError`` that names the checks that are wrong, if any are."""
        yield Table(self.title, ["check", "error", "bound", "verdict"], self.rows, [self.header])
        if wrong := [str(name) for name, *_, verdict in self.rows if verdict != "right"]:
            raise AssertionError(f"wrong: {'; '.join(wrong)}")


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over that of what is expected, in float64; infinite for what is no number."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    error = ((found - expected).norm() / expected.norm()).item()
    return error if error == error else float("inf")
