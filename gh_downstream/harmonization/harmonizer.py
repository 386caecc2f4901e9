"""Measure, weigh and combine in a training loop that you own."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gh_downstream.harmonization.buckets import Buckets
from gh_downstream.harmonization.checks import (
    check_at_least,
    check_one_of,
    check_task_names,
    numbers_by_task,
    takes_losses,
)
from gh_downstream.harmonization.distributed import Agreement, Group, check_group, from_rank_zero, world_size
from gh_downstream.harmonization.gradients import average, explained, fresh_gradients
from gh_downstream.harmonization.gramian import home
from gh_downstream.harmonization.graph import nodes_again
from gh_downstream.harmonization.parameters import Selection, Shared
from gh_downstream.harmonization.passes import (
    Rows,
    Scale,
    Step,
    gradients_by_task,
    leave_combined,
    measured,
    ordered_losses,
    probed_gradients,
    read_losses,
    run_weighed,
)
from gh_downstream.harmonization.repeatable import check_repeatable
from gh_downstream.harmonization.report import Measurements, Report
from gh_downstream.harmonization.sharding import Ranks, local, spread
from gh_downstream.harmonization.weightings import Weighting, guarded
from gh_downstream.harmonization.words import checked_weighting

SCOPES = ("shared", "all")
SYNCHRONIZE = ("gradients", "gramian")


class Harmonizer:
    r"""Replaces ``(loss_1 + loss_2).backward()`` by the harmonized gradient of the losses.

    ::

        harmonizer = Harmonizer(GHPlusPlus(), shared=model.trunk)
        optimizer.zero_grad()
        harmonizer.backward({"task": task_loss, "alignment": alignment_loss})
        optimizer.step()

    The gradients :math:`g_i` of the tasks over the shared parameters are measured by their Gramian, the weighting turns
    it into weights :math:`\tau`, and the shared parameters get :math:`\sum_i \tau_i g_i`: two backward passes and one
    pass in place over the gradients of the shared parameters, no third backward pass, no host synchronization.

    In several processes (when ``torch.distributed`` is initialized) :meth:`backward` averages the gradients over the
    ranks itself, and every rank takes the same weights. ``DistributedDataParallel`` does not allow two backward passes
    after one forward pass: call the module inside it, or run the forward pass under ``ddp.no_sync()``, and pass
    ``model=ddp.module`` here, so that the private parameters are averaged too. A parameter that no loss reaches then
    gets a gradient of zeros instead of none. A contrastive loss has to gather its features with gradient: otherwise its
    scale, and with it the balance between the tasks, changes with the number of ranks.

    Under ``torch.distributed.fsdp.fully_shard``, of the whole model or of some modules, every rank measures and
    combines its own slices; ``fully_shard`` averages the gradients, in both backward passes. So it is with ``DTensor``
    parameters of tensor parallelism, under which ``process_group`` has to be that of data parallelism. Tensor
    parallelism with plain tensors, whose slices cannot be told from copies, gets other weights on each rank.

    Hooks of ``Tensor.register_hook`` on parameters run once a step, on the gradient of all losses, which in several
    processes is averaged by then; what is measured is without them. Hooks on modules and activations run in each of the
    backward passes. Where several losses share functions that are not torch's own, it is tried at the first call that
    they can run backward twice: two more passes, for which the host waits.

    With ``torch.amp.GradScaler`` give it as ``scale``: it does not change the weights, and an overflow reaches the
    scaler untouched. With gradient accumulation every micro-batch gets weights of its own; in several processes, what
    is accumulated already has to be averaged, as this method leaves it.

    Args:
        weighting: A word such as ``"gh++:adaptive"`` (:mod:`gh_downstream.harmonization.words`), or any callable from a
            Gramian ``[m, m]`` to weights ``[m]``: :class:`~gh_downstream.GHPlusPlus`, a Gramian weighting of TorchJD, a
            function of yours. One whose attribute ``takes_losses`` is true is called with the losses too, numbers by
            task: not scaled, with their fixed weights, the mean over the ranks.
        shared: Parameters that the tasks share: modules, parameters, or names and wildcards of parameters of ``model``
            (``["backbone", "neck.*.weight"]``); one of these or an iterable. A module and a name stand for the
            parameters that are theirs at each step: layers may be replaced or wrapped (LoRA) later.
        model: The whole model; needed for name patterns, and in several processes. Everything that the losses reach
            has to be in it then.
        tasks: Names of the tasks, in the order of the weighting's rows: the paper's first task is the alignment.
        scope: ``"shared"`` weighs the gradients of the shared parameters and leaves those of all others (heads,
            discriminators) as ``loss.backward()`` would make them. ``"all"`` weighs the whole losses, as the published
            recipe does; the weights then also multiply the learning rate of every private parameter.
        period: Measure at every ``period``-th call and hold the weights between, where the trunk is run backward once
            instead of once a task.
        loss_weights: Fixed weights of the losses by task, 1 by default; the same as multiplying the losses. They count
            before the Gramian is measured: applied after it, they would break the guarantee of the weighting.
        synchronize: In several processes, ``"gradients"`` averages each task's gradient before it is measured, so that
            the weights are those of the joined batch; ``"gramian"`` averages the Gramians of the ranks instead, which
            moves ``m`` times fewer bytes and over-estimates the norms by the variance of the gradients over the ranks.
        process_group: The ranks that see other samples each, over which gradients are averaged; all by default.

    Attributes:
        measurements: What was measured since they were last read, for a log.

    Raises:
        ValueError: An argument is out of its range, a pattern matches nothing, or the model is in a
            ``FullyShardedDataParallel``.
        TypeError: ``weighting``, ``shared`` or ``process_group`` is of another type.
    """

    def __init__(
        self,
        weighting: Weighting | str,
        shared: Shared | Iterable[Shared],
        *,
        model: nn.Module | None = None,
        tasks: Sequence[str] = ("alignment", "task"),
        scope: str = "shared",
        period: int = 1,
        loss_weights: Mapping[str, float] | None = None,
        synchronize: str = "gradients",
        process_group: Group = None,
    ) -> None:
        check_task_names(tasks)
        check_group(process_group)
        check_one_of("scope", scope, SCOPES)
        check_one_of("synchronize", synchronize, SYNCHRONIZE)
        check_at_least("period", period, 1)
        self.weighting = checked_weighting(weighting, len(tasks), losses=True)
        self.model = model
        self._selection = Selection(shared, model)
        self.tasks = tuple(tasks)
        self.scope = scope
        self.period = period
        self.loss_weights = numbers_by_task("loss_weights", loss_weights, tasks)
        self.synchronize = synchronize
        self.process_group = process_group
        self.measurements = Measurements()
        self._calls = 0
        self._agreement = Agreement()
        self._weights: Tensor | None = None  # Those that are held: of the last measurement that was finite.

    def backward(
        self, losses: Mapping[str, Tensor], trade_offs: Mapping[str, float] | None = None, scale: Scale = None
    ) -> Report:
        r"""Accumulate the harmonized gradient into ``.grad`` of every parameter that the losses reach.

        Args:
            losses: A scalar loss for each of the tasks, in any order. Their graphs are freed with them.
            trade_offs: Factors by task, 1 by default, that count *after* the weighing: the shared parameters get
                :math:`\sum_i \kappa_i \tau_i g_i`. For what rises during a training, such as the strength of a gradient
                reversal: the reversal itself stays at its full strength, and the discriminator learns at full rate from
                the start. Inside the loss a strength near zero is a small gradient, which weightings that look at
                directions alone (CAGrad, MGDA, IMTL-G) blow up: weights of 2217 and 6197 were seen in a first step of
                CDAN. What a weighting promises, to oppose no task say, it promises for factors of 1. With
                ``scope="all"`` they multiply the whole losses.
            scale: What scales each loss for its backward pass: a ``GradScaler``, or a function.

        Returns:
            The report of this call, or of the last one that measured, before ``trade_offs``; it stays on the device
            until it is read.

        Raises:
            TypeError: The losses are no mapping, or ``scale`` scales nothing.
            ValueError: The names are not those of the tasks, a loss is not a scalar, a factor is not finite, or a task
                reaches no shared parameter (in several processes: on none of them, where some are sharded: on one).
            RuntimeError: The forward pass went through synchronizing ``DistributedDataParallel``, reentrant
                checkpointing, or what runs backward only once and several losses share; the losses have run backward
                before; or another process failed.
        """
        step = self._agreed(losses, trade_offs, scale)
        with fresh_gradients(step.combined + step.private):
            if step.held is None:
                rows = gradients_by_task(step)
                report = self._weighed(step, rows, losses)
                leave_combined(step, rows, report.weights)
                self._keep(report)
            else:
                run_weighed(step, step.held)
            average(step.private if step.averaged else step.combined + step.private, step.ranks.group)
        return self._counted()

    def weigh(self, losses: Mapping[str, Tensor], scale: Scale = None) -> Report:
        """Measure and weigh alone: for a caller that runs backward itself, on the sum of the weighted losses.

        No ``.grad`` is touched, and nothing that hooks into it, such as ``DistributedDataParallel``; the graphs are
        kept. One backward pass more than :meth:`backward` needs, and the weights reach the private parameters too.
        What :meth:`backward` takes as ``trade_offs`` the caller multiplies the weights by.

        Args:
            losses: As for :meth:`backward`. Under ``static_graph`` of ``DistributedDataParallel`` they must be those
                that the module inside returned: the outputs of the wrapper start its reduction when differentiated.
            scale: As for :meth:`backward`.

        Returns:
            The report of this call, or of the last one that measured.

        Raises:
            ValueError: As :meth:`backward`.
            RuntimeError: The graph holds reentrant checkpointing, a compiled module, or a function that works in place
                on what it saved; or another process failed.
        """
        step = self._agreed(losses, scale=scale, weigh=True)
        if step.held is None:
            self._keep(self._weighed(step, probed_gradients(step), losses))
        return self._counted()

    def __repr__(self) -> str:
        shared = self.shared
        weights = sum(parameter.numel() for parameter in shared)
        named = f"shared={len(shared)} parameters ({weights} weights), tasks={list(self.tasks)}, scope={self.scope!r}"
        return f"{type(self).__name__}({self.weighting!r}, {named}, period={self.period})"

    @property
    def shared(self) -> list[Tensor]:
        """The shared parameters."""
        return self._selection.shared

    @property
    def report(self) -> Report | None:
        """The report of the last measurement; None before the first."""
        return self.measurements.report

    def state_dict(self) -> dict[str, Any]:
        """What has to survive a restart: place in the period, held weights, measurements, the weighting's own state."""
        return {
            "tasks": list(self.tasks),
            "calls": self._calls,
            "held": self._weights,
            "measurements": self.measurements.state_dict(),
            "weighting": getattr(self.weighting, "state_dict", dict)(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ValueError: ``state`` is no state of a harmonizer, or that of one with other tasks.
        """
        if lacking := self.state_dict().keys() - state.keys():
            raise ValueError(f"this is no state of a Harmonizer: it lacks {', '.join(sorted(lacking))}")
        if tuple(state["tasks"]) != self.tasks:
            raise ValueError(f"the state is of the tasks {state['tasks']}, this harmonizer has {list(self.tasks)}")
        self._calls = state["calls"]
        device = home(self.shared[0].device)
        self._weights = None if state["held"] is None else state["held"].to(device)
        self.measurements.load_state_dict(state["measurements"], device)
        if state["weighting"]:
            self.weighting.load_state_dict(state["weighting"])  # type: ignore[attr-defined]

    def _agreed(
        self,
        losses: Mapping[str, Tensor],
        trade_offs: Mapping[str, float] | None = None,
        scale: Scale = None,
        weigh: bool = False,
    ) -> Step:
        """Find out what to do, with every error that there may be, on all ranks alike."""
        ranks = self._selection.ranks(self.process_group)
        step, error = None, None
        try:
            ordered = ordered_losses(losses, self.loss_weights, scale)
            step = self._planned(ordered, trade_offs, weigh, ranks)
        except (ValueError, TypeError, RuntimeError) as found:
            if not ranks.groups:
                raise
            error = found
        flags = [False for _ in self.tasks] if step is None else [*step.reached.values()]
        missed = [not flag for flag in flags]
        if ranks.groups:
            flags = self._agreement.reach(ranks.groups, self._settings, error, [*flags, *missed])
            missed = flags[len(missed) :]
        assert step is not None
        # Where a rank has nothing for a task, the gradient there is zero.
        for task, is_reached, is_missed in zip(self.tasks, flags, missed, strict=False):
            if not is_reached:
                raise ValueError(
                    f"loss {task!r} reaches no shared parameter: is its path detached, computed under no_grad, or made "
                    "of other parameters than those given as shared? Parameters that were replaced, wrapped (LoRA) or "
                    "sharded since are others; a module or a name as shared follows them"
                )
            if is_missed and ranks.sharded:
                raise ValueError(
                    f"loss {task!r} reaches no shared parameter on some of the ranks, which would wait for each other "
                    "in fully_shard: add a term of zero there, 0 * output.sum()"
                )
        return step

    def _settings(self) -> dict[str, object]:
        """What has to be the same on all ranks."""
        settings = {name: getattr(self, name) for name in ("tasks", "scope", "period", "synchronize")}
        shared = sum(parameter.numel() for parameter in self.shared)
        return settings | {"the number of calls": self._calls, "the number of shared weights": shared}

    def _planned(
        self,
        ordered: dict[str, Tensor],
        trade_offs: Mapping[str, float] | None,
        weigh: bool,
        ranks: Ranks,
    ) -> Step:
        factors = list(numbers_by_task("trade_offs", trade_offs, self.tasks).values())
        selection = self._selection
        reaches = selection.reaches(ordered)
        again = nodes_again(reaches, apart=weigh)  # The caller's backward pass comes on top of the measurement.
        if self.measurements.total == 0:
            with explained():
                check_repeatable(ordered, reaches, again, apart=weigh)
            if self.scope == "shared":
                selection.warn_of_heads(reaches)
        shared = selection.trained
        combined, private = shared, list[Tensor]()
        if not weigh or ranks.sharded:
            private = selection.others(reaches, shared, several=bool(ranks.groups))
            if any([parameter._post_accumulate_grad_hooks for parameter in combined + private]):  # noqa: C419, faster
                raise RuntimeError(
                    "a parameter has a post-accumulate-grad hook (an optimizer step inside of backward?), which would "
                    "run on the gradient of a single loss; remove it and step the optimizer after backward"
                )
        if self.scope == "all" and not weigh:
            combined, private = combined + private, []
        # On a CPU a kernel costs nothing to launch, and a copy would be for nothing; over processes, a vector is sent.
        buckets, group = None, ranks.group
        held = self._weights if self._calls % self.period else None
        averaged = held is None and self.synchronize == "gradients" and world_size(group) > 1
        if ranks.groups or not all(parameter.is_cpu for parameter in combined):
            spreads = [spread(parameter, group, averaged) for parameter in combined]
            slices = [local(parameter) for parameter in combined]
            buckets = Buckets(slices, len(shared), bool(ranks.groups), spreads, world_size(group))
        return Step(
            ordered, factors, reaches, again, shared, combined, private, buckets, held, averaged=averaged, ranks=ranks
        )

    def _weighed(self, step: Step, rows: Rows, losses: Mapping[str, Tensor]) -> Report:
        gramian, groups = measured(step, rows), step.ranks.groups
        unscaled = ordered_losses(losses, self.loss_weights) if takes_losses(self.weighting) else None
        seen = None if unscaled is None else read_losses(unscaled, gramian, groups)
        return Report(self.tasks, gramian, from_rank_zero(guarded(self.weighting, gramian, seen), groups))

    def _keep(self, report: Report) -> None:
        """Keep a report, and its weights for the rest of the period unless an overflow made them ones."""
        if self.period > 1:
            held = report.weights if self._weights is None else self._weights
            self._weights = torch.where(report.gramian.isfinite().all(), report.weights, held)
        self.measurements.add(report)

    def _counted(self) -> Report:
        self._calls += 1
        assert self.report is not None
        return self.report
