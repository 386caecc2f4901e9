"""What harmonization launches, and what it costs in time and memory: forms of one step, interleaved in one run."""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from gh_downstream.gpu_check.networks import Adapted, Detector, Losses, Pairs, resnet50, small_tensors
from gh_downstream.gpu_check.setting import Setting
from gh_downstream.harmonization import GHPlusPlus, GHPlusPlusOfficial, Harmonizer, Weighting
from gh_downstream.harmonization.published import ThreePasses
from gh_downstream.reporting import Cell, Table

PERIOD = 4
"""Steps of each form in a round: what works in a period of them is measured over all of it."""


def pairs_steps(setting: Setting) -> Iterator[Table]:
    """Whole steps of a CLIP of the size of ViT-B/32, with 256 pairs of each domain."""
    yield from _steps(setting, "CLIP ViT-B/32, 256 + 256 pairs", Pairs(setting))


def detector_steps(setting: Setting) -> Iterator[Table]:
    """Whole steps of a Faster R-CNN with ResNet-50-FPN, with 2 + 2 images of 600 by 1200."""
    yield from _steps(setting, "Faster R-CNN R50-FPN, 2 + 2 images of 600 x 1200", Detector(setting))


@dataclass(frozen=True)
class Form:
    """A way to make a step.

    Attributes:
        backward: From the scaled losses to the gradients.
        weighting: Of the fork at the features; None for none.
    """

    backward: Callable[[Losses], object]
    weighting: Weighting | None = None


def _forms(model: Adapted) -> dict[str, Form]:
    shared = list(model.shared)

    def backward_of_sum(losses: Losses) -> None:
        torch.stack([*losses.values()]).sum().backward()

    return {
        "plain sum": Form(backward_of_sum),
        "GH, exact": Form(Harmonizer("gh", shared, model=model).backward),
        "GH++, exact": Form(Harmonizer("gh++", shared, model=model).backward),
        f"GH++, exact, period {PERIOD}": Form(Harmonizer("gh++", shared, model=model, period=PERIOD).backward),
        "GH++, fork at the features": Form(backward_of_sum, GHPlusPlus()),
        "GH++ as published, three backward passes": Form(
            ThreePasses(GHPlusPlusOfficial(), shared, model=model, scope="all").backward
        ),
    }


def _steps(setting: Setting, name: str, model: Adapted) -> Iterator[Table]:
    """A table for each precision."""
    torch.manual_seed(0)
    model = model.to(setting.device).train()
    batch = [part.to(setting.device) for part in model.inputs()]
    # So slow that the weights stay what they are: every form steps from the same ones.
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-12, momentum=0.9)
    finite = True
    for precision, dtype in setting.precisions().items():
        scaler = torch.amp.GradScaler(setting.device.type, init_scale=256.0, enabled=dtype == torch.float16)

        def step(form: Form, dtype: torch.dtype = dtype, scaler: torch.amp.GradScaler = scaler) -> None:
            optimizer.zero_grad()
            with torch.autocast(setting.device.type, dtype, enabled=dtype != torch.float32):
                losses = model(batch, form.weighting)
            form.backward({task: scaler.scale(loss) for task, loss in losses.items()})
            scaler.step(optimizer)
            scaler.update()

        forms = _forms(model)
        spent, peaks = _interleaved(setting, {key: partial(step, form) for key, form in forms.items()})
        with torch.no_grad(), torch.autocast(setting.device.type, dtype, enabled=dtype != torch.float32):
            losses = torch.stack([*model(batch).values()])
        finite &= bool(losses.isfinite().all())
        yield _cost_table(setting, f"{name}, {precision}", spent, peaks)
    if not finite:
        raise AssertionError("wrong: a loss is not finite")


def _interleaved(
    setting: Setting, steps: Mapping[str, Callable[[], None]]
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Milliseconds a step in each round, and the peak of memory, of each form; a first round warms up."""
    names = list(steps)
    spent: dict[str, list[float]] = {name: [] for name in names}
    peaks = dict.fromkeys(names, 0)
    warm_up = setting.size(1, 0)
    for number in range(warm_up + setting.size(5, 1)):
        first = number % len(names)
        clocks = {}
        for name in names[first:] + names[:first]:
            if setting.on_gpu:
                torch.cuda.reset_peak_memory_stats()
            clocks[name] = clock = Clock(setting)
            for _ in range(PERIOD):
                steps[name]()
            clock.stop()
            if setting.on_gpu:
                peaks[name] = max(peaks[name], torch.cuda.max_memory_allocated())
        if number >= warm_up:
            for name, clock in clocks.items():
                spent[name].append(clock.milliseconds() / PERIOD)
    return spent, peaks


class Clock:
    """Time between two points in the work of the GPU, which is not waited for; on a CPU elapsed time."""

    def __init__(self, setting: Setting) -> None:
        self._on_gpu = setting.on_gpu
        self._began = self._mark()

    def stop(self) -> None:
        """Mark the end."""
        self._ended = self._mark()

    def milliseconds(self) -> float:
        """Wait for the end, and return the time."""
        if isinstance(self._began, float):
            return 1e3 * (self._ended - self._began)
        self._ended.synchronize()
        return self._began.elapsed_time(self._ended)

    def _mark(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _cost_table(setting: Setting, title: str, spent: Mapping[str, Sequence[float]], peaks: Mapping[str, int]) -> Table:
    plain, *_ = spent
    rows: list[list[Cell]] = []
    for name, times in spent.items():
        ratios = [one / other for one, other in zip(times, spent[plain], strict=True)]
        lower, median, upper = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        memory = [round(peak / 2**20) for peak in (peaks[name], peaks[name] - peaks[plain])]
        rows.append([name, statistics.median(times), median, lower, upper, *memory])
    columns = ["step", "ms", "ratio", "lower quartile", "upper quartile", "peak MiB", "extra MiB"]
    rounds = len(spent[plain])
    clock = "events of the GPU" if setting.on_gpu else "elapsed time"
    return Table(title, columns, rows, [f"{rounds} rounds of {PERIOD} steps of each, interleaved; {clock}"], digits=3)


def launches(setting: Setting) -> Iterator[Table]:
    """What the harmonizer itself launches: all of its backward, less what two plain backward passes do."""
    own_kernels = Counter[str]()
    networks = {"80 small tensors": small_tensors, "ResNet-50": resnet50, "CLIP ViT-B/32": Pairs}
    for name, build in networks.items():
        torch.manual_seed(0)
        model = build(setting).to(setting.device).train()
        batch = [part.to(setting.device) for part in model.inputs()]
        harmonizer = Harmonizer("gh++", list(model.shared), model=model)

        def two_passes(losses: Losses, shared: Sequence[Tensor] = harmonizer.shared) -> None:
            for task, retain in (("alignment", True), ("task", False)):
                for parameter in shared:
                    parameter.grad = None
                losses[task].backward(retain_graph=retain)

        passes: dict[str, Callable[[Losses], object]] = {
            "two plain backwards": two_passes,
            "Harmonizer.backward": harmonizer.backward,
        }
        measured = {key: _Launched.of(setting, model, batch, run) for key, run in passes.items()}
        _time(setting, model, batch, passes, measured)
        own = measured["Harmonizer.backward"] - measured["two plain backwards"]
        shown = {**measured, "own": own}
        plain = measured["two plain backwards"].milliseconds
        rows: list[list[Cell]] = [[key, *of.cells(), of.milliseconds / plain] for key, of in shown.items()]
        own_kernels += Counter({f"{name}: {kernel}": count for kernel, count in own.kernels.items()})
        header = [
            f"{len(harmonizer.shared)} shared tensors, float32 on {setting.device.type}; GH++; backward alone, the "
            f"median of {_repeats(setting)}"
        ]
        columns = ["pass", "operations", "kernels", "waits", "ms", "host ms", "ratio"]
        notes = [
            "operations: those that torch dispatches; kernels: those of the GPU, with copies; waits: for the GPU",
            "own: Harmonizer.backward less two plain backwards; ratio: of the ms to those of two plain backwards",
        ]
        yield Table(f"What the harmonizer launches: {name}", columns, rows, header, notes, digits=3)
    most: list[list[Cell]] = [[name[:110], count] for name, count in own_kernels.most_common(40)]
    yield Table("Its own kernels, by name", ["kernel", "launches"], most)


@dataclass
class _Launched:
    """What one backward launches."""

    operations: int
    kernels: Counter[str]
    waits: int
    milliseconds: float = float("nan")
    host: float = float("nan")

    @classmethod
    def of(
        cls, setting: Setting, model: Adapted, batch: Sequence[Tensor], run: Callable[[Losses], object]
    ) -> "_Launched":
        """Run it three times: to warm up, to count operations, and under the profiler."""
        run(_fresh(setting, model, batch))
        losses = _fresh(setting, model, batch)
        with _Operations() as counted:
            run(losses)
        losses = _fresh(setting, model, batch)
        gpu = [ProfilerActivity.CUDA] if setting.on_gpu else []
        with profile(activities=[ProfilerActivity.CPU, *gpu]) as profiled:
            run(losses)
            setting.wait()
        events = profiled.events() or []
        kernels = Counter(event.name for event in events if event.device_type == torch.autograd.DeviceType.CUDA)
        waits = sum(event.name in ("cudaStreamSynchronize", "cudaMemcpy") for event in events)
        return cls(counted.count, kernels, waits)

    def __sub__(self, other: "_Launched") -> "_Launched":
        return _Launched(
            self.operations - other.operations,
            self.kernels - other.kernels,
            self.waits - other.waits,
            self.milliseconds - other.milliseconds,
            self.host - other.host,
        )

    def cells(self) -> list[Cell]:
        """Its columns."""
        return [self.operations, sum(self.kernels.values()), self.waits, self.milliseconds, self.host]


class _Operations(TorchDispatchMode):
    """Counts the operations that are dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += 1
        return func(*args, **(kwargs or {}))


def _fresh(setting: Setting, model: Adapted, batch: Sequence[Tensor]) -> Losses:
    """The losses of a new forward pass, which is done."""
    model.zero_grad()
    losses = model(batch)
    setting.wait()
    return losses


def _repeats(setting: Setting) -> int:
    return setting.size(10, 2)


def _time(
    setting: Setting,
    model: Adapted,
    batch: Sequence[Tensor],
    passes: Mapping[str, Callable[[Losses], object]],
    measured: Mapping[str, _Launched],
) -> None:
    """Measure the passes in turn."""
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in passes}
    for _ in range(_repeats(setting)):
        for name, run in passes.items():
            losses = _fresh(setting, model, batch)
            began, clock = time.perf_counter(), Clock(setting)
            run(losses)
            clock.stop()
            host = 1e3 * (time.perf_counter() - began)
            spent[name].append((clock.milliseconds(), host))
    for name, times in spent.items():
        measured[name].milliseconds, measured[name].host = (
            statistics.median(kind) for kind in zip(*times, strict=True)
        )
