"""Values against float64 on the CPU, overflows that a loss scaler must see, and steps that never wait for the GPU."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gh_downstream.gpu_check.networks import Classifier, backward_of_sum, flat, gradient, losses_in, small_classifier
from gh_downstream.gpu_check.setting import Checks, Setting, relative_error
from gh_downstream.harmonization import Harmonizer, fork, gramian
from gh_downstream.reporting import Table

WORDS = {word: {"word": word} for word in ("gh", "gh++", "gh++:adaptive", "gh++:guard", "gh++:official")}
"""Each as a case: options by name."""

BOUND = 1e-4
"""Of gradients in float32: what a small network and its weights lose against float64."""


def correctness(setting: Setting) -> Iterator[Table]:
    """Weights and gradients of every way to harmonize in float32, against those in float64 on the CPU."""
    torch.backends.cudnn.allow_tf32 = False
    checks = Checks("Against float64 on the CPU", f"float32 on {setting.device.type}, largest relative error")
    cases: dict[str, Any] = {
        **WORDS,
        "gh++, scope all": {"scope": "all"},
        "gh++, channels last": {"channels_last": True},
        "gh++, held for a period": {"period": 3},
        "gh, three tasks": {"word": "gh", "third": True},
        "gh++, three tasks": {"third": True},
    }
    for name, options in cases.items():
        checks.add(name, BOUND, partial(_harmonized, setting, **options))
    checks.add("gh++, fork", BOUND, partial(_forked, setting))
    torch.backends.cuda.matmul.allow_tf32 = True  # The Gramian must not heed it.
    for dtype, bound in {torch.float32: 1e-6, torch.bfloat16: 1e-5, torch.float16: 1e-5}.items():
        name = f"cosine of nearly opposite gradients, {str(dtype).removeprefix('torch.')}"
        checks.add(name, bound, partial(_opposite, setting, dtype))
    yield from checks.report()


def _harmonized(
    setting: Setting, word: str = "gh++", third: bool = False, channels_last: bool = False, **options: Any
) -> float:
    model = small_classifier(setting, third)
    batches = [model.batch() for _ in range(3)]
    exact = copy.deepcopy(model).cpu().double()
    if channels_last:
        model.to(memory_format=torch.channels_last)
        batches = [[*(part.to(memory_format=torch.channels_last) for part in b[:2]), b[2]] for b in batches]
    harmonizers = [Harmonizer(word, network.trunk, tasks=model.tasks, **options) for network in (model, exact)]
    errors = []
    for batch in batches:
        (found, weights), (expected, right) = (
            _step(network, harmonizer, batch) for network, harmonizer in zip((model, exact), harmonizers, strict=True)
        )
        if (right - 1).abs().max() < 1e-2:
            raise AssertionError("the gradients do not conflict: this would check nothing")
        errors += [relative_error(found, expected), relative_error(weights, right)]
    return max(errors)


def _step(network: Classifier, harmonizer: Harmonizer, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The gradient of all parameters, and the weights."""
    network.zero_grad()
    weights = harmonizer.backward(network(batch)).weights
    return gradient(network.parameters()), weights


def _forked(setting: Setting) -> float:
    model = small_classifier(setting)
    batch, exact = model.batch(), copy.deepcopy(model).cpu().double()
    for network in (model, exact):
        backward_of_sum(network(batch, fork))
    return relative_error(gradient(model.parameters()), gradient(exact.parameters()))


def _opposite(setting: Setting, dtype: torch.dtype) -> float:
    """Of a gradient in several tensors and one that is nearly its opposite."""
    torch.manual_seed(0)
    sizes = [setting.size(1 << 24, 1 << 18), setting.size(1 << 21, 1 << 15), 1000, 1]
    parts = [torch.randn(size, device=setting.device) for size in sizes]
    rows = [[p.to(dtype) for p in parts], [(1e-2 * torch.randn_like(p) - p).to(dtype) for p in parts]]
    wide = torch.stack([flat(row).double() for row in rows])
    expected, found = (g[0, 1] / g[0, 0].sqrt() / g[1, 1].sqrt() for g in (wide @ wide.T, gramian(rows)))
    return (expected - found).abs().item()


def loss_scaling(setting: Setting) -> Iterator[Table]:
    """Steps in the lowest precision of the device: one is made to overflow, must be skipped, and the next not."""
    dtype = torch.float16 if setting.on_gpu else torch.bfloat16
    checks = Checks("An overflow under a loss scaler", f"autocast to {dtype} on {setting.device.type}")
    model = small_classifier(setting)
    batch = model.batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler(setting.device.type, init_scale=256.0)
    harmonizer = Harmonizer("gh++", model.trunk)
    weights = []

    def step(factor: float) -> bool:
        """Whether the step was taken."""
        before = flat(model.parameters())
        optimizer.zero_grad()
        losses = losses_in(dtype, scaler, model, batch)
        weights.append(harmonizer.backward({task: loss * factor for task, loss in losses.items()}).weights)
        scaler.step(optimizer)
        scaler.update()
        return not torch.equal(before, flat(model.parameters()))

    checks.add("an ordinary step is taken", 0, lambda: float(not step(1.0)))
    checks.add("an overflow is skipped", 0, lambda: float(step(1e38)))
    checks.add("its weights are one", 0, lambda: (weights[-1] - 1).abs().max().item())
    checks.add("the scale is halved", 0, lambda: abs(scaler.get_scale() - 128.0))
    checks.add("the next step is taken", 0, lambda: float(not step(1.0)))
    checks.add("with the weights as before, 1 %", 1e-2, lambda: relative_error(weights[-1], weights[0]))
    yield from checks.report()


def no_waiting(setting: Setting) -> Iterator[Table]:
    """Backward passes under torch's guard against synchronization, in every precision, and that the guard works."""
    watched = 'set_sync_debug_mode("error")' if setting.on_gpu else "no GPU: the passes ran, and nothing watched them"
    checks = Checks("Passes that would wait for the GPU", watched)
    for name, dtype in setting.precisions().items():
        cases: dict[str, Any] = {
            **WORDS,
            "scope all": {"scope": "all"},
            "period": {"period": 2},
            "fork": {"forked": True},
        }
        for case, options in cases.items():
            checks.add(f"{name}: {case}", 0, partial(_watched, setting, dtype, **options))
    if setting.on_gpu:
        checks.add("a deliberate .item() is noticed", 0, partial(_unnoticed, setting))
    yield from checks.report()


@contextmanager
def _guarded(setting: Setting) -> Iterator[None]:
    """Waiting for the GPU raises."""
    if setting.on_gpu:
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if setting.on_gpu:
            torch.cuda.set_sync_debug_mode("default")


def _unnoticed(setting: Setting) -> float:
    one = torch.ones((), device=setting.device)
    try:
        with _guarded(setting):
            one.item()
    except RuntimeError as error:
        return float("synchroniz" not in str(error))
    return 1.0


def _watched(setting: Setting, dtype: torch.dtype, word: str = "gh++", forked: bool = False, **options: Any) -> float:
    model = small_classifier(setting)
    batch = model.batch()
    scaler = torch.amp.GradScaler(setting.device.type, init_scale=256.0, enabled=dtype == torch.float16)
    harmonizer = Harmonizer(word, model.trunk, **options)

    def split(features: Sequence[Tensor]) -> Sequence[Sequence[Tensor]]:
        with _guarded(setting):
            return fork(features) if forked else (features, features)

    for _ in range(3):
        model.zero_grad()
        losses = losses_in(dtype, scaler, model, batch, split)
        with _guarded(setting):
            (backward_of_sum if forked else harmonizer.backward)(losses)
    return 0.0
