"""What harmonization launches, and what it costs in time and memory: forms of one step, interleaved in one run."""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from gh_downstream.gpu_check import networks
from gh_downstream.gpu_check.networks import Adapted, Losses, backward_of_sum
from gh_downstream.gpu_check.setting import Setting
from gh_downstream.harmonization import GHPlusPlusOfficial, Harmonizer, fork
from gh_downstream.harmonization.published import ThreePasses
from gh_downstream.reporting import Cell, Table

PERIOD = 4
"""Steps of each form in a round: what works in a period of them is measured over all of it."""

Backward = Callable[[Losses], object]


def timed(setting: Setting, run: Callable[[], object], repeats: int = 1) -> tuple[float, float]:
    """Milliseconds of a run on the GPU, by its events, and on the host until it returned; on a CPU both are these."""
    if setting.on_gpu:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
    began = time.perf_counter()
    for _ in range(repeats):
        run()
    host = 1e3 * (time.perf_counter() - began) / repeats
    if not setting.on_gpu:
        return host, host
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / repeats, host


def pairs_steps(setting: Setting) -> Iterator[Table]:
    """Whole steps of a CLIP of the size of ViT-B/32, with 256 pairs of each domain."""
    yield from _steps(setting, "CLIP ViT-B/32, 256 + 256 pairs", partial(networks.Pairs, setting))


def detector_steps(setting: Setting) -> Iterator[Table]:
    """Whole steps of a Faster R-CNN with ResNet-50-FPN, with 2 + 2 images of 600 by 1200."""
    yield from _steps(setting, "Faster R-CNN R50-FPN, 2 + 2 images of 600 x 1200", partial(networks.Detector, setting))


def _steps(setting: Setting, name: str, build: Callable[[], Adapted]) -> Iterator[Table]:
    """A table for each precision."""
    model = networks.placed(setting, build)
    batch, shared = model.batch(), list(model.shared)
    # So slow that the weights stay what they are: every form steps from the same ones.
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-12, momentum=0.9)
    finite = True
    for precision, dtype in setting.precisions().items():
        scaler = setting.scaler(dtype)
        losses = partial(networks.losses_in, dtype, scaler, model, batch)
        harmonizer = partial(Harmonizer, shared=shared, model=model)
        published = ThreePasses(GHPlusPlusOfficial(), shared, model=model, scope="all")
        step = partial(_step, optimizer, scaler)
        steps = {
            "plain sum": partial(step, losses, backward_of_sum),
            "GH, exact": partial(step, losses, harmonizer("gh").backward),
            "GH++, exact": partial(step, losses, harmonizer("gh++").backward),
            f"GH++, exact, period {PERIOD}": partial(step, losses, harmonizer("gh++", period=PERIOD).backward),
            "GH++, fork at the features": partial(step, partial(losses, fork), backward_of_sum),
            "GH++ as published, three backward passes": partial(step, losses, published.backward),
        }
        yield _costs(setting, f"{name}, {precision}", steps)
        with torch.no_grad():
            finite &= bool(torch.stack([*losses().values()]).isfinite().all())
    if not finite:
        raise AssertionError("wrong: a loss is not finite")


def _step(
    optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, losses: Callable[[], Losses], backward: Backward
) -> None:
    optimizer.zero_grad()
    backward(losses())
    scaler.step(optimizer)
    scaler.update()


def _costs(setting: Setting, title: str, steps: Mapping[str, Callable[[], None]]) -> Table:
    """Time and memory of steps in turn, as ratios to the first in the same round; a first round warms up."""
    names, rounds = list(steps), setting.size(5, 1)
    spent: dict[str, list[float]] = {name: [] for name in names}
    peaks = dict.fromkeys(names, 0)
    for number in range(rounds + setting.size(1, 0)):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            if setting.on_gpu:
                torch.cuda.reset_peak_memory_stats()
            spent[name].append(timed(setting, steps[name], PERIOD)[0])
            if setting.on_gpu:
                peaks[name] = max(peaks[name], torch.cuda.max_memory_allocated())
    rows: list[list[Cell]] = []
    for name in names:
        times, plain = spent[name][-rounds:], spent[names[0]][-rounds:]
        ratios = [one / other for one, other in zip(times, plain, strict=True)]
        lower, median, upper = statistics.quantiles(ratios, n=4, method="inclusive") if rounds > 1 else ratios * 3
        memory = [round(peak / 2**20) for peak in (peaks[name], peaks[name] - peaks[names[0]])]
        rows.append([name, statistics.median(times), median, lower, upper, *memory])
    columns = ["step", "ms", "ratio", "lower quartile", "upper quartile", "peak MiB", "extra MiB"]
    clock = "events of the GPU" if setting.on_gpu else "elapsed time"
    return Table(title, columns, rows, [f"{rounds} rounds of {PERIOD} steps of each, interleaved; {clock}"], digits=3)


def launches(setting: Setting) -> Iterator[Table]:
    """What the harmonizer itself launches: all of its backward, less what two plain backward passes do."""
    repeats = setting.size(10, 2)
    own_kernels = Counter[str]()
    measured_networks: dict[str, Callable[[Setting], Adapted]] = {
        "80 small tensors": networks.small_tensors,
        "ResNet-50": networks.resnet50,
        "CLIP ViT-B/32": networks.Pairs,
    }
    for name, build in measured_networks.items():
        model = networks.placed(setting, partial(build, setting))
        losses = partial(_fresh_losses, setting, model, model.batch())
        harmonizer = Harmonizer("gh++", list(model.shared), model=model)
        passes: dict[str, Backward] = {
            "two plain backwards": partial(_two_passes, harmonizer.shared),
            "Harmonizer.backward": harmonizer.backward,
        }
        counts = {key: _count(setting, losses, run) for key, run in passes.items()}
        spent: dict[str, list[tuple[float, float]]] = {key: [] for key in passes}
        for _ in range(repeats):
            for key, run in passes.items():
                spent[key].append(timed(setting, partial(run, losses())))
        measured = {
            key: [operations, sum(kernels.values()), waits, *map(statistics.median, zip(*spent[key], strict=True))]
            for key, (operations, kernels, waits) in counts.items()
        }
        plain, ours = measured.values()
        measured["own"] = [a - b for a, b in zip(ours, plain, strict=True)]
        kernels = counts["Harmonizer.backward"][1] - counts["two plain backwards"][1]
        own_kernels += Counter({f"{name}: {kernel}": count for kernel, count in kernels.items()})
        of = f"{len(harmonizer.shared)} shared tensors, float32 on {setting.device.type}; GH++"
        yield Table(
            f"What the harmonizer launches: {name}",
            ["pass", "operations", "kernels", "waits", "ms", "host ms", "ratio"],
            [[key, *row, row[3] / plain[3]] for key, row in measured.items()],
            [f"{of}; backward alone, the median of {repeats}"],
            [
                "operations: those that torch dispatches; kernels: those of the GPU, with copies; waits: for the GPU",
                "own: Harmonizer.backward less two plain backwards; ratio: of the ms to those of two plain backwards",
            ],
            digits=3,
        )
    most: list[list[Cell]] = [[name[:110], count] for name, count in own_kernels.most_common(10)]
    yield Table("Its own kernels, the most launched", ["kernel", "launches"], most)


def _fresh_losses(setting: Setting, model: Adapted, batch: Sequence[Tensor]) -> Losses:
    """The losses of a new forward pass, which is done."""
    model.zero_grad()
    losses = model(batch)
    setting.wait()
    return losses


def _two_passes(shared: Sequence[Tensor], losses: Losses) -> None:
    for task, retain in (("alignment", True), ("task", False)):
        for parameter in shared:
            parameter.grad = None
        losses[task].backward(retain_graph=retain)


def _count(setting: Setting, losses: Callable[[], Losses], run: Backward) -> tuple[int, Counter[str], int]:
    """Operations, kernels and waits of a backward, which is run to warm up, to be counted, and under the profiler."""
    run(losses())
    found = losses()
    with _Operations() as operations:
        run(found)
    found = losses()
    gpu = [ProfilerActivity.CUDA] if setting.on_gpu else []
    with profile(activities=[ProfilerActivity.CPU, *gpu]) as profiled:
        run(found)
        setting.wait()
    events = profiled.events() or []
    kernels = Counter(event.name for event in events if event.device_type == torch.autograd.DeviceType.CUDA)
    return operations.count, kernels, sum(event.name in ("cudaStreamSynchronize", "cudaMemcpy") for event in events)


class _Operations(TorchDispatchMode):
    """Counts the operations that are dispatched."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += 1
        return func(*args, **(kwargs or {}))
