"""What the harmonizer itself launches, and the clock."""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from gh_downstream.gpu_check.networks import Classifier, Losses, of_images, small_tensors
from gh_downstream.gpu_check.setting import Setting
from gh_downstream.harmonization import Harmonizer
from gh_downstream.reporting import Cell, Table


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


def launches(setting: Setting) -> Iterator[Table]:
    """What the harmonizer itself launches: all of its backward, less what two plain backward passes do."""
    own_kernels = Counter[str]()
    networks: dict[str, Callable[[Setting], Classifier]] = {
        "80 small tensors": small_tensors,
        "ResNet-50": partial(of_images, name="resnet50"),
        "ViT-B/32": partial(of_images, name="vit_b_32"),
    }
    for name, build in networks.items():
        model = build(setting)
        losses, harmonizer = partial(_fresh_losses, setting, model, model.batch()), Harmonizer("gh++", model.trunk)
        passes: dict[str, Callable[[Losses], object]] = {
            "two plain backwards": partial(_two_passes, harmonizer.shared),
            "Harmonizer.backward": harmonizer.backward,
        }
        counts, kernels = zip(*[_counted(setting, losses, run) for run in passes.values()], strict=True)
        own_kernels += Counter({f"{name}: {kernel}": count for kernel, count in (kernels[1] - kernels[0]).items()})
        # In turns, so that what else the machine does falls on both alike: of each the time on the GPU and on the host.
        rounds = [
            [timed(setting, partial(run, losses())) for run in passes.values()] for _ in range(setting.size(20, 2))
        ]
        spent = [
            [statistics.median(times) for times in zip(*found, strict=True)] for found in zip(*rounds, strict=True)
        ]
        ratios = [ours[0] / plain[0] for plain, ours in rounds]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        rows = {key: [*count, *times] for key, count, times in zip(passes, counts, spent, strict=True)}
        rows["own"] = [a - b for b, a in zip(*rows.values(), strict=True)]
        yield Table(
            f"What the harmonizer launches: {name}",
            ["pass", "operations", "kernels", "waits", "ms", "host ms"],
            [[key, *row] for key, row in rows.items()],
            [f"{len(harmonizer.shared)} shared tensors, float32 on {setting.device.type}; GH++; backward alone"],
            [
                "operations: those that torch dispatches; kernels: those of the GPU, with copies; waits: for the GPU",
                f"ms: medians of {len(rounds)} rounds; ratio of Harmonizer.backward to two plain backwards in a round: "
                f"{middle:.2f} ({low:.2f} to {high:.2f})",
            ],
            digits=3,
        )
    most: list[list[Cell]] = [[name[:110], count] for name, count in own_kernels.most_common(10)]
    yield Table("Its own kernels, the most launched", ["kernel", "launches"], most)


def _fresh_losses(setting: Setting, model: Classifier, batch: Sequence[Tensor]) -> Losses:
    """The losses of a new forward pass, which is done."""
    model.zero_grad()
    losses = model(batch)
    setting.wait()
    return losses


def _two_passes(shared: Sequence[Tensor], losses: Losses) -> None:
    losses["alignment"].backward(retain_graph=True)
    for parameter in shared:
        parameter.grad = None
    losses["task"].backward()


def _counted(
    setting: Setting, losses: Callable[[], Losses], run: Callable[[Losses], object]
) -> tuple[list[int], Counter[str]]:
    """Operations, kernels and waits of a backward, and its kernels by name."""
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
    waits = sum(event.name in ("cudaStreamSynchronize", "cudaMemcpy") for event in events)
    return [operations.count, kernels.total(), waits], kernels


class _Operations(TorchDispatchMode):
    """Counts the operations that are dispatched."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += 1
        return func(*args, **(kwargs or {}))
