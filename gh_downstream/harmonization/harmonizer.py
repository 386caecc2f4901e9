"""Measure, weigh and combine in a training loop that you own."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from gh_downstream.harmonization.checks import check_at_least, check_finite, check_one_of, check_task_names
from gh_downstream.harmonization.distributed import all_reduce_mean, from_rank_zero, world_size
from gh_downstream.harmonization.gradients import combine, materialized, run_backward, separate, total_loss
from gh_downstream.harmonization.gramian import gramian
from gh_downstream.harmonization.graph import Reach, reach, shared_nodes
from gh_downstream.harmonization.parameters import select_parameters
from gh_downstream.harmonization.report import Measurements, Report
from gh_downstream.harmonization.weightings import Weighting, guarded
from gh_downstream.harmonization.words import checked_weighting

SCOPES = ("shared", "all")
SYNCHRONIZE = ("gradients", "gramian")


class Harmonizer:
    r"""Replaces ``(loss_1 + loss_2).backward()`` by the harmonized gradient of the losses.

    ::

        harmonizer = Harmonizer(GHPlusPlus(), shared=model.trunk)
        ...
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

    With ``torch.amp.GradScaler`` pass scaled losses; the scale does not change the weights, and an overflow reaches the
    scaler untouched. With gradient accumulation every micro-batch gets weights of its own; in several processes, what
    is accumulated already has to be averaged, as this method leaves it.

    Args:
        weighting: A word such as ``"gh++:adaptive"`` (:mod:`gh_downstream.harmonization.words`), or any callable from a
            Gramian ``[m, m]`` to weights ``[m]``: :class:`~gh_downstream.GHPlusPlus`, a Gramian weighting of TorchJD, a
            function of yours.
        shared: Parameters that the tasks share: an iterable of parameters, a module, or names and wildcards of
            parameters of ``model`` (``["backbone", "neck.*.weight"]``).
        model: The whole model; needed for name patterns, and in several processes. Everything that the losses reach
            has to be in it then.
        tasks: Names of the tasks, in the order of the weighting's rows: the paper's first task is the alignment.
        scope: ``"shared"`` weighs the gradients of the shared parameters and leaves those of all others (heads,
            discriminators) as ``loss.backward()`` would make them. ``"all"`` weighs the whole losses, as the published
            recipe does; the weights then also multiply the learning rate of every private parameter.
        period: Measure at every ``period``-th call and hold the weights between, where the trunk is run backward once
            instead of once a task. Heads then run backward twice, which a function whose backward works in place on
            what it saved (some fused losses) does not survive.
        loss_weights: Fixed weights of the losses by task, 1 by default; the same as multiplying the losses. They count
            before the Gramian is measured: applied after it, they would break the guarantee of the weighting.
        synchronize: In several processes, ``"gradients"`` averages each task's gradient before it is measured, so that
            the weights are those of the joined batch; ``"gramian"`` averages the Gramians of the ranks instead, which
            moves ``m`` times fewer bytes and over-estimates the norms by the variance of the gradients over the ranks.

    Attributes:
        measurements: What was measured since they were last read, for a log.

    Raises:
        ValueError: An argument is out of its range, a pattern matches nothing, or the parameters are sharded.
        TypeError: ``weighting`` or ``shared`` is of another type.
    """

    def __init__(
        self,
        weighting: Weighting | str,
        shared: nn.Module | str | Iterable[Tensor | str],
        *,
        model: nn.Module | None = None,
        tasks: Sequence[str] = ("alignment", "task"),
        scope: str = "shared",
        period: int = 1,
        loss_weights: Mapping[str, float] | None = None,
        synchronize: str = "gradients",
    ) -> None:
        check_task_names(tasks)
        check_one_of("scope", scope, SCOPES)
        check_one_of("synchronize", synchronize, SYNCHRONIZE)
        check_at_least("period", period, 1)
        self.weighting = checked_weighting(weighting, len(tasks))
        self.shared = select_parameters(shared, model)
        self.model = model
        self.tasks = tuple(tasks)
        self.scope = scope
        self.period = period
        self.loss_weights = self._by_task("loss_weights", loss_weights)
        self.synchronize = synchronize
        self.measurements = Measurements()
        self._calls = 0
        self._weights: Tensor | None = None  # Those that are held: of the last measurement that was finite.

    def backward(self, losses: Mapping[str, Tensor], trade_offs: Mapping[str, float] | None = None) -> Report:
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

        Returns:
            The report of this call, or of the last one that measured, before ``trade_offs``; it stays on the device
            until it is read.

        Raises:
            ValueError: The names are not those of the tasks, a loss is not a scalar, a factor is not finite, or a task
                reaches no shared parameter. Raised before any gradient is written.
            RuntimeError: The forward pass went through synchronizing ``DistributedDataParallel``, reentrant
                checkpointing, or a compiled module that the losses share.
        """
        ordered = self._ordered(losses)
        factors = list(self._by_task("trade_offs", trade_offs).values())
        reaches = self._reaches(ordered)
        retain = shared_nodes(reaches, twice=self.period > 1 and self.scope == "shared")
        combined, private = self._partition(reaches)
        if any(getattr(parameter, "_post_accumulate_grad_hooks", None) for parameter in combined + private):
            raise RuntimeError(
                "a parameter has a post-accumulate-grad hook (an optimizer step inside of backward?), which would run "
                "on the gradient of a single loss; remove it and step the optimizer after backward"
            )
        if self._calls % self.period == 0:
            self._keep(self._measured(ordered, retain, combined, factors))
        else:
            self._held(ordered, combined, private, factors)
        if world_size() > 1:
            all_reduce_mean(materialized(private))
        return self._counted()

    def weigh(self, losses: Mapping[str, Tensor]) -> Report:
        """Measure and weigh alone: for a caller that runs backward itself, on the sum of the weighted losses.

        No ``.grad`` is touched, and nothing that hooks into it, such as ``DistributedDataParallel``; the graphs are
        kept. One backward pass more than :meth:`backward` needs, and the weights reach the private parameters too.
        What :meth:`backward` takes as ``trade_offs`` the caller multiplies the weights by.

        Args:
            losses: As for :meth:`backward`. Under ``static_graph`` of ``DistributedDataParallel`` they must be those
                that the module inside returned: the outputs of the wrapper start its reduction when differentiated.

        Returns:
            The report of this call, or of the last one that measured.

        Raises:
            ValueError: As :meth:`backward`.
            RuntimeError: The graph holds reentrant checkpointing or a compiled module.
        """
        ordered = self._ordered(losses)
        if self._calls % self.period == 0:
            self._keep(self._probed(ordered))
        return self._counted()

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
            KeyError: ``state`` is not a state of a harmonizer.
            ValueError: It is the state of one with other tasks.
        """
        if tuple(state["tasks"]) != self.tasks:
            raise ValueError(f"the state is of the tasks {state['tasks']}, this harmonizer has {list(self.tasks)}")
        self._calls = state["calls"]
        device = self.shared[0].device
        self._weights = None if state["held"] is None else state["held"].to(device)
        self.measurements.load_state_dict(state["measurements"], device)
        if state["weighting"]:
            self.weighting.load_state_dict(state["weighting"])  # type: ignore[attr-defined]

    def _by_task(self, name: str, given: Mapping[str, float] | None) -> dict[str, float]:
        """A number for each task, 1 where none is given."""
        for task, number in (given or {}).items():
            check_one_of(f"a task of {name}", task, self.tasks)
            check_finite(f"{name}[{task!r}]", number)
        return {task: (given or {}).get(task, 1.0) for task in self.tasks}

    def _ordered(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if set(losses) != set(self.tasks):
            raise ValueError(
                f"the tasks of this harmonizer are {list(self.tasks)}, got losses {list(losses)}: "
                "name them with Harmonizer(..., tasks=[...])"
            )
        for task, loss in losses.items():
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                what = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
                raise ValueError(f"loss {task!r} has to be a scalar tensor, got {what}")
        weights = self.loss_weights
        return {task: losses[task] if weights[task] == 1 else losses[task] * weights[task] for task in self.tasks}

    def _reaches(self, losses: dict[str, Tensor]) -> dict[str, Reach]:
        reaches = {task: reach(task, loss) for task, loss in losses.items()}
        shared = {id(parameter) for parameter in self.shared}
        for task, reached in reaches.items():
            if shared.isdisjoint(id(leaf) for leaf in reached.leaves):
                raise ValueError(
                    f"loss {task!r} reaches no shared parameter: is its path detached, computed under no_grad, or "
                    "made of other parameters than those given as shared?"
                )
        return reaches

    def _partition(self, reaches: Mapping[str, Reach]) -> tuple[list[Tensor], list[Tensor]]:
        """Parameters whose gradients are combined, and the others that the losses reach."""
        shared = {id(parameter) for parameter in self.shared}
        leaves = [leaf for reached in reaches.values() for leaf in reached.leaves]
        others = {id(leaf): leaf for leaf in leaves if id(leaf) not in shared}
        if world_size() > 1:
            # The graphs may differ between ranks (a rank without objects, say), the list for a collective may not.
            named = {} if self.model is None else {id(p): p for p in self.model.parameters() if p.requires_grad}
            if any(isinstance(leaf, nn.Parameter) and key not in named for key, leaf in others.items()):
                raise ValueError(
                    "in several processes the harmonizer averages the gradients of all parameters: pass model=, "
                    "holding every parameter that the losses reach (for several modules: torch.nn.ModuleList([...]))"
                )
            others = {key: parameter for key, parameter in named.items() if key not in shared}
        combined = [parameter for parameter in self.shared if parameter.requires_grad]
        private = list(others.values())
        return (combined, private) if self.scope == "shared" else (combined + private, [])

    def _measured(
        self, losses: dict[str, Tensor], retain: dict[str, bool], combined: list[Tensor], factors: list[float]
    ) -> Report:
        existing = [parameter.grad for parameter in combined]
        gradients: list[list[Tensor | None]] = []
        try:
            for task, loss in losses.items():
                for parameter in combined:
                    parameter.grad = None
                run_backward(loss, retain_graph=retain[task])
                gradients.append(separate([parameter.grad for parameter in combined]))
        finally:
            for parameter, gradient in zip(combined, existing, strict=True):
                parameter.grad = gradient
        if world_size() > 1:
            gradients = [
                [torch.zeros_like(p) if g is None else g for p, g in zip(combined, gradient, strict=True)]
                for gradient in gradients
            ]
        report = self._weighed(gradients)
        totals = combine(gradients, _scaled(report.weights, factors))
        if self.synchronize == "gramian":
            all_reduce_mean([total for total in totals if total is not None])
        for parameter, total in zip(combined, totals, strict=True):
            if total is not None and parameter.grad is not None:
                parameter.grad.add_(total)
            elif total is not None:
                parameter.grad = total.to(parameter.dtype)
        return report

    def _probed(self, losses: dict[str, Tensor]) -> Report:
        reaches = self._reaches(losses)
        shared_nodes(reaches, twice=True)  # The caller's backward pass comes on top of these.
        for node in set[Node]().union(*(reached.nodes for reached in reaches.values())):
            if node.name() == "_DDPSinkBackward" and node.ddp_weakref().static_graph:  # type: ignore[attr-defined]
                raise RuntimeError(
                    "weigh got losses of a DistributedDataParallel with static_graph=True, whose reduction would start "
                    "in the measurement and leave the ranks with different gradients; call the module inside it"
                )
        trained = [parameter for parameter in self.shared if parameter.requires_grad]
        gradients = [
            torch.autograd.grad(loss, trained, retain_graph=True, allow_unused=True, materialize_grads=world_size() > 1)
            for loss in losses.values()
        ]
        if world_size() > 1:
            # They are averaged in place: autograd may return an expanded tensor, or one tensor for two parameters.
            gradients = [tuple(g.clone(memory_format=torch.contiguous_format) for g in row) for row in gradients]
        return self._weighed(gradients)

    def _weighed(self, gradients: Sequence[Sequence[Tensor | None]]) -> Report:
        """Weigh gradients that begin with those of the shared parameters; the exact way averages them in place."""
        if self.synchronize == "gradients":
            all_reduce_mean([g for gradient in gradients for g in gradient if g is not None])
        n = sum(parameter.requires_grad for parameter in self.shared)
        measured = gramian([gradient[:n] for gradient in gradients])
        if self.synchronize == "gramian":
            all_reduce_mean([measured])
        return Report(self.tasks, measured, from_rank_zero(guarded(self.weighting, measured)))

    def _keep(self, report: Report) -> None:
        """Keep a report, and its weights for the rest of the period unless an overflow made them ones."""
        held = report.weights if self._weights is None else self._weights
        self._weights = torch.where(report.gramian.isfinite().all(), report.weights, held)
        self.measurements.add(report)

    def _counted(self) -> Report:
        self._calls += 1
        assert self.report is not None
        return self.report

    def _held(
        self, losses: dict[str, Tensor], combined: list[Tensor], private: list[Tensor], factors: list[float]
    ) -> None:
        assert self._weights is not None
        weights = _scaled(self._weights, factors)
        if private:
            # Stops short of the trunk: autograd runs only what lies between the losses and these parameters.
            run_backward(total_loss(losses.values()), inputs=private, retain_graph=True)
        terms = [loss * weight.to(loss.dtype) for loss, weight in zip(losses.values(), weights, strict=True)]
        run_backward(total_loss(terms), inputs=combined)
        if world_size() > 1:
            all_reduce_mean(materialized(combined))


def _scaled(weights: Tensor, factors: list[float]) -> Tensor:
    """Weights of shape ``[m]`` times a number each, which are not copied to the device."""
    if all(factor == 1 for factor in factors):
        return weights
    return torch.stack([weight * factor for weight, factor in zip(weights, factors, strict=True)])
