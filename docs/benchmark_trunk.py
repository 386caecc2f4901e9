"""What it costs to harmonize two losses that run through the whole network, beside the plain sum of them.

``python docs/benchmark_trunk.py`` measures a ResNet-18, and 80 tensors of 16 x 16; TorchJD is measured where it is
installed. The ways are interleaved, on one thread, in CPU time.
"""

import copy
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from gh_downstream import GH, GHPlusPlus, GHPlusPlusOfficial, Harmonizer
from gh_downstream.harmonization.published import ThreePasses

Way = Callable[[Mapping[str, Tensor]], object]
ROUNDS, PERIOD = 8, 4


def plain(model: nn.Module) -> Way:
    """One backward pass, of the sum."""
    return lambda losses: torch.stack(list(losses.values())).sum().backward()


def two(model: nn.Module) -> Way:
    """A backward pass for each loss, and nothing else."""
    return lambda losses: [loss.backward(retain_graph=name == "alignment") for name, loss in losses.items()]


def autojac(model: nn.Module) -> Way:
    """PCGrad of TorchJD, of the whole gradients."""
    from torchjd import autojac
    from torchjd.aggregation import PCGrad

    def backward(losses: Mapping[str, Tensor]) -> None:
        autojac.backward(list(losses.values()))
        autojac.jac_to_grad(list(model.parameters()), PCGrad())

    return backward


def autogram(model: nn.Module) -> Way:
    """PCGrad of TorchJD, of a Gramian that is made module by module."""
    from torchjd import autogram
    from torchjd.aggregation import PCGradWeighting

    engine, weighting = autogram.Engine(model, batch_dim=None), PCGradWeighting()

    def backward(losses: Mapping[str, Tensor]) -> None:
        values = torch.stack(list(losses.values()))
        values.backward(weighting(engine.compute_gramian(values)))

    return backward


WAYS: dict[str, Callable[[nn.Module], Way]] = {
    "plain sum, one backward pass": plain,
    "two backward passes, nothing else": two,
    "GH, exact": lambda model: Harmonizer(GH(), model).backward,
    "GH++, exact": lambda model: Harmonizer(GHPlusPlus(), model).backward,
    f"GH++, exact, measured every {PERIOD} steps": lambda model: Harmonizer("gh++", model, period=PERIOD).backward,
    "the published recipe, three backward passes": lambda model: ThreePasses(GHPlusPlusOfficial(), model).backward,
    "PCGrad of TorchJD, autojac": autojac,
    "PCGrad of TorchJD, autogram": autogram,
}


def measure(model: nn.Module, batch: Tensor, repeat: int) -> None:
    """Print for each way the ratios of its backward pass and of its step to those of the plain sum, with quartiles."""
    runs: dict[str, tuple[nn.Module, Way, list[tuple[float, float]]]] = {}
    for name, make in WAYS.items():
        network = copy.deepcopy(model)
        try:
            runs[name] = (network, make(network), [])
        except ImportError as error:
            print(f"{name}: {error}")
    for _ in range(1 + ROUNDS):
        for network, backward, times in runs.values():
            optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)
            passes = steps = 0.0
            for _ in range(PERIOD * repeat):
                optimizer.zero_grad()
                begun = time.process_time()
                outputs = network(batch)
                losses = {"alignment": (outputs - 1).square().mean(), "task": outputs.abs().mean()}
                forwarded = time.process_time()
                backward(losses)
                passes += time.process_time() - forwarded
                optimizer.step()
                steps += time.process_time() - begun
            times.append((passes, steps))
    base = next(iter(runs.values()))[2]
    for name, (_, _, times) in runs.items():
        cells = [name]
        for k in (0, 1):
            ratios = [mine[k] / plain_sum[k] for mine, plain_sum in zip(times[1:], base[1:], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            cells.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("ResNet-18, 16 images of 64 x 64: backward, step")
    measure(resnet18(num_classes=64), torch.randn(16, 3, 64, 64), repeat=1)
    print("80 tensors of 16 x 16 and 16: backward, step")
    layers = [layer for _ in range(40) for layer in (nn.Linear(16, 16), nn.Tanh())]
    measure(nn.Sequential(*layers), torch.randn(8, 16), repeat=10)
