"""Values against float64 on the CPU, overflows that a loss scaler must see, and steps that never wait for the GPU."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from gh_downstream.gpu_check.networks import Adapted, Classifier, small_classifier
from gh_downstream.gpu_check.setting import Checks, Setting, relative_error
from gh_downstream.harmonization import Harmonizer, fork, gramian, parse_weighting
from gh_downstream.reporting import Table

WORDS = ("gh", "gh++", "gh++:adaptive", "gh++:guard", "gh++:official")

BOUND = 1e-4
"""Of gradients in float32: what a small network and its weights lose against float64."""


def correctness(setting: Setting) -> Iterator[Table]:
    """Weights and gradients of every way to harmonize in float32, against their definition in float64."""
    torch.backends.cudnn.allow_tf32 = False
    checks = Checks("Against float64 on the CPU", [f"float32 on {setting.device.type}, largest relative error"])
    for word in WORDS:
        checks.add(word, BOUND, partial(_harmonized, setting, word))
    checks.add("gh++, scope all", BOUND, partial(_harmonized, setting, "gh++", scope="all"))
    checks.add("gh++, channels last", BOUND, partial(_harmonized, setting, "gh++", channels_last=True))
    checks.add("gh++, held for a period", BOUND, partial(_harmonized, setting, "gh++", period=3))
    checks.add("gh, three tasks", BOUND, partial(_harmonized, setting, "gh", third=True))
    checks.add("gh++, three tasks", BOUND, partial(_harmonized, setting, "gh++", third=True))
    checks.add("gh++, fork", BOUND, partial(_forked, setting, "gh++"))
    for dtype, bound in {torch.float32: 1e-6, torch.bfloat16: 1e-5, torch.float16: 1e-5}.items():
        name = f"cosine of nearly opposite gradients, {str(dtype).removeprefix('torch.')}"
        checks.add(name, bound, partial(_opposite, setting, dtype))
    checks.add("an overflow gives weights of one, and stays", 0, partial(_overflow, setting))
    yield checks.table()
    checks.settle()


def _placed(
    setting: Setting, model: Classifier, channels_last: bool = False
) -> tuple[Classifier, list[list[Tensor]], Classifier, list[list[Tensor]]]:
    """The model with three batches on the device, and the same in float64 on the CPU."""
    batches = [model.inputs() for _ in range(3)]
    exact = copy.deepcopy(model).double()
    in_double = [[part.double() if part.is_floating_point() else part for part in batch] for batch in batches]
    layout = torch.channels_last if channels_last else torch.preserve_format
    on_device = [[part.to(setting.device) for part in batch] for batch in batches]
    if channels_last:
        on_device = [[part.to(memory_format=layout) if part.ndim == 4 else part for part in b] for b in on_device]
    return model.to(setting.device).to(memory_format=layout), on_device, exact, in_double


def _harmonized(
    setting: Setting,
    word: str,
    scope: str = "shared",
    period: int = 1,
    third: bool = False,
    channels_last: bool = False,
) -> float:
    torch.manual_seed(0)
    model, batches, exact, in_double = _placed(setting, small_classifier(third), channels_last)
    harmonizer = Harmonizer(word, model.trunk, tasks=model.tasks, scope=scope, period=period)
    weights: Tensor | None = None
    errors = []
    for batch, wide in zip(batches, in_double, strict=True):
        model.zero_grad()
        report = harmonizer.backward(model(batch))
        gradients = _gradients(exact, exact(wide))
        trunk = len(list(exact.trunk.parameters()))
        if weights is None or period == 1:
            measured = torch.stack([torch.cat([g.flatten() for g in row[:trunk]]) for row in gradients])
            weights = parse_weighting(word)(measured @ measured.T)
        if not (report.conflict.item() and (weights - 1).abs().max() > 1e-2):
            raise AssertionError("the gradients do not conflict: this would check nothing")
        for part in (slice(None, trunk), slice(trunk, None)):
            tau = weights if part.start is None or scope == "all" else torch.ones_like(weights)
            expected = sum(
                t * torch.cat([g.flatten() for g in row[part]]) for t, row in zip(tau, gradients, strict=True)
            )
            errors.append(relative_error(_flat(list(model.parameters())[part]), expected))
        errors.append(relative_error(report.weights, weights))
    return max(errors)


def _forked(setting: Setting, word: str) -> float:
    torch.manual_seed(0)
    model, (batch, *_), exact, (wide, *_) = _placed(setting, small_classifier())
    torch.stack([*model(batch, parse_weighting(word)).values()]).sum().backward()
    features = exact.features(wide)
    losses = exact.losses(features, features[0], wide[2])
    received = [
        torch.autograd.grad(losses[task], features, retain_graph=True, materialize_grads=True) for task in exact.tasks
    ]
    flat = torch.stack([torch.cat([g.flatten() for g in row]) for row in received])
    weights = parse_weighting(word)(flat @ flat.T)
    joined = [weights[0] * a + weights[1] * t for a, t in zip(*received, strict=True)]
    trunk = list(exact.trunk.parameters())
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(features, trunk, joined)])
    return relative_error(_flat(list(model.trunk.parameters())), expected)


def _opposite(setting: Setting, dtype: torch.dtype) -> float:
    """Of a gradient in several tensors and one that is nearly its opposite, under the switch for TF32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        torch.manual_seed(0)
        sizes = [setting.size(1 << 24, 1 << 18), setting.size(1 << 21, 1 << 15), 1000, 1]
        parts = [torch.randn(size, device=setting.device) for size in sizes]
        rows = [[p.to(dtype) for p in parts], [(1e-2 * torch.randn_like(p) - p).to(dtype) for p in parts]]
        wide = torch.stack([torch.cat([part.double() for part in row]) for row in rows])
        expected, found = wide @ wide.T, gramian(rows)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    cosines = [g[0, 1] / g[0, 0].sqrt() / g[1, 1].sqrt() for g in (expected, found)]
    return (cosines[0] - cosines[1]).abs().item()


def _overflow(setting: Setting) -> float:
    torch.manual_seed(0)
    model = small_classifier().to(setting.device)
    batch = [part.to(setting.device) for part in model.inputs()]
    losses = model(batch)
    report = Harmonizer("gh++", model.trunk).backward({**losses, "task": losses["task"] * float("inf")})
    if _flat(list(model.trunk.parameters())).isfinite().all():
        raise AssertionError("the overflow does not reach the gradients")
    return (report.weights - 1).abs().max().item()


def _gradients(model: Classifier, losses: dict[str, Tensor]) -> list[tuple[Tensor, ...]]:
    parameters = list(model.parameters())
    return [
        torch.autograd.grad(losses[task], parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
        for task in model.tasks
    ]


def _flat(parameters: Sequence[Tensor]) -> Tensor:
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])


def loss_scaling(setting: Setting) -> Iterator[Table]:
    """Steps in the lowest precision of the device: one is made to overflow, must be skipped, and the next not."""
    torch.manual_seed(0)
    dtype = torch.float16 if setting.on_gpu else torch.bfloat16
    checks = Checks("An overflow under a loss scaler", [f"autocast to {dtype} on {setting.device.type}"])
    model = small_classifier(smooth=False).to(setting.device)
    batch = [part.to(setting.device) for part in model.inputs()]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler(setting.device.type, init_scale=256.0)
    harmonizer = Harmonizer("gh++", model.trunk)

    def step(factor: float) -> bool:
        """Whether the step was taken."""
        before = [parameter.detach().clone() for parameter in model.parameters()]
        with torch.autocast(setting.device.type, dtype):
            losses = model(batch)
        optimizer.zero_grad()
        harmonizer.backward({task: scaler.scale(loss) * factor for task, loss in losses.items()})
        scaler.step(optimizer)
        scaler.update()
        return not all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))

    checks.add("an ordinary step is taken", 0, lambda: float(not step(1.0)))
    expected = harmonizer.measurements.report
    assert expected is not None
    checks.add("an overflow is skipped", 0, lambda: float(step(1e38)))
    checks.add("the scale is halved", 0, lambda: abs(scaler.get_scale() - 128.0))
    checks.add("the next step is taken", 0, lambda: float(not step(1.0)))
    found = harmonizer.measurements.report
    assert found is not None
    checks.add("with the weights as before, 1 %", 1e-2, partial(relative_error, found.weights, expected.weights))
    yield checks.table()
    checks.settle()


def no_waiting(setting: Setting) -> Iterator[Table]:
    """Backward passes under torch's guard against synchronization, in every precision, and that the guard works."""
    header = [] if setting.on_gpu else ["no GPU: the passes ran, and nothing watched them"]
    checks = Checks("Passes that would wait for the GPU", header)
    for name, dtype in setting.precisions().items():
        for word in WORDS:
            checks.add(f"{name}: {word}", 0, partial(_watched, setting, dtype, word))
        checks.add(f"{name}: scope all", 0, partial(_watched, setting, dtype, "gh++", scope="all"))
        checks.add(f"{name}: period", 0, partial(_watched, setting, dtype, "gh++", period=2))
        checks.add(f"{name}: fork", 0, partial(_watched_fork, setting, dtype))
    if setting.on_gpu:
        one = torch.ones((), device=setting.device)
        checks.add("a deliberate .item() is noticed", 0, lambda: float(not _waits(setting, one.item)))
    yield checks.table()
    checks.settle()


@contextmanager
def _guarded(setting: Setting) -> Iterator[None]:
    """Waiting for the GPU raises."""
    if not setting.on_gpu:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _waits(setting: Setting, run: Callable[[], object]) -> bool:
    try:
        with _guarded(setting):
            run()
    except RuntimeError as error:
        return "synchroniz" in str(error)
    return False


def _watched(setting: Setting, dtype: torch.dtype, word: str, scope: str = "shared", period: int = 1) -> float:
    model, batch, scaler = _in_precision(setting, dtype)
    harmonizer = Harmonizer(word, model.trunk, scope=scope, period=period)
    for _ in range(3):
        model.zero_grad()
        losses = _scaled(setting, dtype, model, batch, scaler)
        with _guarded(setting):
            harmonizer.backward(losses)
    return 0.0


def _watched_fork(setting: Setting, dtype: torch.dtype) -> float:
    model, batch, scaler = _in_precision(setting, dtype)
    with torch.autocast(setting.device.type, dtype, enabled=dtype != torch.float32):
        features = model.features(batch)
        with _guarded(setting):
            for_alignment, (for_task, _) = fork(features)
        losses = model.losses(for_alignment, for_task, batch[2])
    total = scaler.scale(torch.stack([*losses.values()]).sum())
    with _guarded(setting):
        total.backward()
    return 0.0


def _in_precision(setting: Setting, dtype: torch.dtype) -> tuple[Classifier, list[Tensor], torch.amp.GradScaler]:
    torch.manual_seed(0)
    model = small_classifier(smooth=False).to(setting.device)
    batch = [part.to(setting.device) for part in model.inputs()]
    return model, batch, torch.amp.GradScaler(setting.device.type, enabled=dtype == torch.float16)


def _scaled(
    setting: Setting, dtype: torch.dtype, model: Adapted, batch: Sequence[Tensor], scaler: torch.amp.GradScaler
) -> dict[str, Tensor]:
    with torch.autocast(setting.device.type, dtype, enabled=dtype != torch.float32):
        losses = model(batch)
    return {task: scaler.scale(loss) for task, loss in losses.items()}
