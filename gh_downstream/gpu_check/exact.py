"""Values against float64 on the CPU, overflows that a loss scaler must see, and steps that never wait for the GPU."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gh_downstream.gpu_check.networks import Losses, backward_of_sum, gradient, losses_in, placed, small_classifier
from gh_downstream.gpu_check.setting import Checks, Setting, relative_error
from gh_downstream.harmonization import Harmonizer, fork, gramian, parse_weighting
from gh_downstream.reporting import Table

WORDS: dict[str, dict[str, Any]] = {
    word: {"word": word} for word in ("gh", "gh++", "gh++:adaptive", "gh++:guard", "gh++:official")
}
"""Each as a case: options by name."""

BOUND = 1e-4
"""Of gradients in float32: what a small network and its weights lose against float64."""


def correctness(setting: Setting) -> Iterator[Table]:
    """Weights and gradients of every way to harmonize in float32, against their definition in float64."""
    torch.backends.cudnn.allow_tf32 = False
    checks = Checks("Against float64 on the CPU", f"float32 on {setting.device.type}, largest relative error")
    cases = {
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
    checks.add("an overflow gives weights of one, and stays", 0, partial(_overflow, setting))
    torch.backends.cuda.matmul.allow_tf32 = True  # The Gramian must not heed it.
    for dtype, bound in {torch.float32: 1e-6, torch.bfloat16: 1e-5, torch.float16: 1e-5}.items():
        name = f"cosine of nearly opposite gradients, {str(dtype).removeprefix('torch.')}"
        checks.add(name, bound, partial(_opposite, setting, dtype))
    yield from checks.report()


def _harmonized(
    setting: Setting, word: str = "gh++", third: bool = False, channels_last: bool = False, **options: Any
) -> float:
    model = placed(setting, partial(small_classifier, third))
    batches = [model.batch() for _ in range(3)]
    exact = copy.deepcopy(model).cpu().double()
    if channels_last:
        model.to(memory_format=torch.channels_last)
        batches = [[*(part.to(memory_format=torch.channels_last) for part in b[:2]), b[2]] for b in batches]
    harmonizer = Harmonizer(word, model.trunk, tasks=model.tasks, **options)
    trunk = sum(parameter.numel() for parameter in exact.trunk.parameters())  # They come first.
    weights: Tensor | None = None
    errors = []
    for batch in batches:
        model.zero_grad()
        report = harmonizer.backward(model(batch))
        rows = _rows(exact(_in_double(batch)), list(exact.parameters()))
        shared, private = rows[:, :trunk], rows[:, trunk:]
        if weights is None or "period" not in options:
            weights = parse_weighting(word)(shared @ shared.T)
        if not (report.conflict.item() and (weights - 1).abs().max() > 1e-2):
            raise AssertionError("the gradients do not conflict: this would check nothing")
        found, of_private = gradient(model.parameters()), weights if "scope" in options else torch.ones_like(weights)
        errors.append(relative_error(found[:trunk], weights @ shared))
        errors.append(relative_error(found[trunk:], of_private @ private))
        errors.append(relative_error(report.weights, weights))
    return max(errors)


def _forked(setting: Setting) -> float:
    model = placed(setting, small_classifier)
    batch = model.batch()
    backward_of_sum(model(batch, fork))
    exact = copy.deepcopy(model).cpu().double()
    features: list[Tensor] = []

    def keep(both: Sequence[Tensor]) -> Sequence[Sequence[Tensor]]:
        features.extend(both)
        return both, both

    rows = _rows(exact(_in_double(batch), keep), features)
    joined = parse_weighting("gh++")(rows @ rows.T) @ rows
    expected = torch.autograd.grad(_flat(features), list(exact.trunk.parameters()), joined)
    return relative_error(gradient(model.trunk.parameters()), _flat(expected))


def _in_double(batch: Sequence[Tensor]) -> list[Tensor]:
    return [part.cpu().double() if part.is_floating_point() else part.cpu() for part in batch]


def _rows(losses: Losses, inputs: Sequence[Tensor]) -> Tensor:
    """The gradient of each loss as one row."""
    options: dict[str, Any] = {"retain_graph": True, "materialize_grads": True}
    return torch.stack([_flat(torch.autograd.grad(loss, inputs, **options)) for loss in losses.values()])


def _flat(parts: Iterable[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


def _overflow(setting: Setting) -> float:
    model = placed(setting, small_classifier)
    losses = model(model.batch())
    report = Harmonizer("gh++", model.trunk).backward({**losses, "task": losses["task"] * float("inf")})
    if gradient(model.trunk.parameters()).isfinite().all():
        raise AssertionError("the overflow does not reach the gradients")
    return (report.weights - 1).abs().max().item()


def _opposite(setting: Setting, dtype: torch.dtype) -> float:
    """Of a gradient in several tensors and one that is nearly its opposite."""
    torch.manual_seed(0)
    sizes = [setting.size(1 << 24, 1 << 18), setting.size(1 << 21, 1 << 15), 1000, 1]
    parts = [torch.randn(size, device=setting.device) for size in sizes]
    rows = [[p.to(dtype) for p in parts], [(1e-2 * torch.randn_like(p) - p).to(dtype) for p in parts]]
    wide = torch.stack([_flat(row).double() for row in rows])
    expected, found = (g[0, 1] / g[0, 0].sqrt() / g[1, 1].sqrt() for g in (wide @ wide.T, gramian(rows)))
    return (expected - found).abs().item()


def loss_scaling(setting: Setting) -> Iterator[Table]:
    """Steps in the lowest precision of the device: one is made to overflow, must be skipped, and the next not."""
    dtype = torch.float16 if setting.on_gpu else torch.bfloat16
    checks = Checks("An overflow under a loss scaler", f"autocast to {dtype} on {setting.device.type}")
    model = placed(setting, partial(small_classifier, smooth=False))
    batch = model.batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler(setting.device.type, init_scale=256.0)
    harmonizer = Harmonizer("gh++", model.trunk)
    weights = []

    def step(factor: float) -> bool:
        """Whether the step was taken."""
        before = _flat(model.parameters())
        optimizer.zero_grad()
        losses = losses_in(dtype, scaler, model, batch)
        weights.append(harmonizer.backward({task: loss * factor for task, loss in losses.items()}).weights)
        scaler.step(optimizer)
        scaler.update()
        return not torch.equal(before, _flat(model.parameters()))

    checks.add("an ordinary step is taken", 0, lambda: float(not step(1.0)))
    checks.add("an overflow is skipped", 0, lambda: float(step(1e38)))
    checks.add("the scale is halved", 0, lambda: abs(scaler.get_scale() - 128.0))
    checks.add("the next step is taken", 0, lambda: float(not step(1.0)))
    checks.add("with the weights as before, 1 %", 1e-2, lambda: relative_error(weights[-1], weights[0]))
    yield from checks.report()


def no_waiting(setting: Setting) -> Iterator[Table]:
    """Backward passes under torch's guard against synchronization, in every precision, and that the guard works."""
    watched = 'set_sync_debug_mode("error")' if setting.on_gpu else "no GPU: the passes ran, and nothing watched them"
    checks = Checks("Passes that would wait for the GPU", watched)
    for name, dtype in setting.precisions().items():
        cases = {**WORDS, "scope all": {"scope": "all"}, "period": {"period": 2}, "fork": {"forked": True}}
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
    model = placed(setting, partial(small_classifier, smooth=False))
    batch, scaler = model.batch(), setting.scaler(dtype)
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
