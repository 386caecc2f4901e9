"""Measure, weigh and combine in a training loop that you own."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gh_downstream.harmonization.buckets import Buckets
from gh_downstream.harmonization.checks import check_at_least, check_numbers, check_one_of, check_task_names
from gh_downstream.harmonization.distributed import Agreement, all_reduce_mean, from_rank_zero, world_size
from gh_downstream.harmonization.gradients import average, fresh_gradients
from gh_downstream.harmonization.gramian import gramian, home
from gh_downstream.harmonization.graph import Reach, nodes_again, reach
from gh_downstream.harmonization.parameters import Shared, listed, select_parameters
from gh_downstream.harmonization.passes import Step, gradients_by_task, leave_combined, probed_gradients, run_weighed
from gh_downstream.harmonization.repeatable import check_repeatable
from gh_downstream.harmonization.report import Measurements, Report
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

    Hooks of ``Tensor.register_hook`` on parameters run once a step, on the gradient of all losses, which in several
    processes is averaged by then; what is measured is without them. Hooks on modules and activations run in each of the
    backward passes. Where several losses share functions that are not torch's own, it is tried at the first call that
    they can run backward twice: two more passes, for which the host waits.

    With ``torch.amp.GradScaler`` pass scaled losses; the scale does not change the weights, and an overflow reaches the
    scaler untouched. With gradient accumulation every micro-batch gets weights of its own; in several processes, what
    is accumulated already has to be averaged, as this method leaves it.

    Args:
        weighting: A word such as ``"gh++:adaptive"`` (:mod:`gh_downstream.harmonization.words`), or any callable from a
            Gramian ``[m, m]`` to weights ``[m]``: :class:`~gh_downstream.GHPlusPlus`, a Gramian weighting of TorchJD, a
            function of yours.
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

    Attributes:
        measurements: What was measured since they were last read, for a log.

    Raises:
        ValueError: An argument is out of its range, a pattern matches nothing, or the parameters are sharded.
        TypeError: ``weighting`` or ``shared`` is of another type.
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
    ) -> None:
        check_task_names(tasks)
        check_one_of("scope", scope, SCOPES)
        check_one_of("synchronize", synchronize, SYNCHRONIZE)
        check_at_least("period", period, 1)
        self.weighting = checked_weighting(weighting, len(tasks))
        self.model = model
        self._given = listed(shared)
        self.shared = select_parameters(self._given, model)
        self.tasks = tuple(tasks)
        self.scope = scope
        self.period = period
        self.loss_weights = self._by_task("loss_weights", loss_weights)
        self.synchronize = synchronize
        self.measurements = Measurements()
        self._calls = 0
        self._known: set[int] = set()  # The parameters that the losses have reached, by id.
        self._meant = {id(parameter) for parameter in self._trained()}
        self._agreement = Agreement()
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
                reaches no shared parameter (in several processes: on none of them).
            RuntimeError: The forward pass went through synchronizing ``DistributedDataParallel``, reentrant
                checkpointing, or what runs backward only once and several losses share; or another process failed.
        """
        step = self._agreed(losses, trade_offs)
        with fresh_gradients(step.combined + step.private):
            averaged = False
            if self._calls % self.period == 0 or self._weights is None:
                self._keep(self._measured(step))
                averaged = self.synchronize == "gradients"
            else:
                run_weighed(step, self._weights)
            average(step.private if averaged else step.combined + step.private)
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
            RuntimeError: The graph holds reentrant checkpointing, a compiled module, or a function that works in place
                on what it saved; or another process failed.
        """
        step = self._agreed(losses, weigh=True)
        if self._calls % self.period == 0:
            self._keep(self._weighed(probed_gradients(step), len(step.combined)))
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
        device = home(self.shared[0].device)
        self._weights = None if state["held"] is None else state["held"].to(device)
        self.measurements.load_state_dict(state["measurements"], device)
        if state["weighting"]:
            self.weighting.load_state_dict(state["weighting"])  # type: ignore[attr-defined]

    def _by_task(self, name: str, given: Mapping[str, float] | None) -> dict[str, float]:
        """A number for each task, 1 where none is given."""
        if not given:
            return dict.fromkeys(self.tasks, 1.0)
        numbers = {task: number for task, number in given.items() if number is not None}
        for task in numbers:
            check_one_of(f"a task of {name}", task, self.tasks)
        check_numbers({name: numbers}, **{name: ""})
        return dict.fromkeys(self.tasks, 1.0) | numbers

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

    def _agreed(
        self, losses: Mapping[str, Tensor], trade_offs: Mapping[str, float] | None = None, weigh: bool = False
    ) -> Step:
        """Find out what to do, with every error that there may be, on all ranks alike."""
        step, error = None, None
        try:
            step = self._planned(losses, trade_offs, weigh)
        except (ValueError, TypeError, RuntimeError) as found:
            if world_size() == 1:
                raise
            error = found
        reached = [False for _ in self.tasks] if step is None else [*step.reached.values()]
        if world_size() > 1:
            # Where a rank has nothing for a task, the gradient there is zero.
            reached = self._agreement.reach(self._settings, error, reached)
        for task, is_reached in zip(self.tasks, reached, strict=True):
            if not is_reached:
                raise ValueError(
                    f"loss {task!r} reaches no shared parameter: is its path detached, computed under no_grad, or made "
                    "of other parameters than those given as shared? Parameters that were replaced, wrapped (LoRA) or "
                    "sharded since are others; a module or a name as shared follows them"
                )
        assert step is not None
        return step

    def _settings(self) -> dict[str, object]:
        """What has to be the same on all ranks."""
        return {
            "tasks": self.tasks,
            "scope": self.scope,
            "period": self.period,
            "synchronize": self.synchronize,
            "the number of calls": self._calls,
            "the number of shared weights": sum(parameter.numel() for parameter in self.shared),
        }

    def _planned(self, losses: Mapping[str, Tensor], trade_offs: Mapping[str, float] | None, weigh: bool) -> Step:
        ordered = self._ordered(losses)
        factors = list(self._by_task("trade_offs", trade_offs).values())
        reaches = {task: reach(task, loss) for task, loss in ordered.items()}
        again = nodes_again(reaches, apart=weigh)  # The caller's backward pass comes on top of the measurement.
        if self.measurements.total == 0:
            check_repeatable(ordered, reaches, again, apart=weigh)
        self._follow(reaches)
        shared = self._trained()
        combined, private = shared, list[Tensor]()
        if not weigh:
            combined, private = self._partition(reaches, shared)
            if any([parameter._post_accumulate_grad_hooks for parameter in combined + private]):  # noqa: C419, faster
                raise RuntimeError(
                    "a parameter has a post-accumulate-grad hook (an optimizer step inside of backward?), which would "
                    "run on the gradient of a single loss; remove it and step the optimizer after backward"
                )
        # On a CPU a kernel costs nothing to launch, and a copy would be for nothing; over processes, a vector is sent.
        flat = world_size() > 1 or not all(parameter.is_cpu for parameter in combined)
        buckets = Buckets(combined, len(shared), every=world_size() > 1) if flat and not weigh else None
        return Step(ordered, factors, reaches, again, shared, combined, private, buckets)

    def _trained(self) -> list[Tensor]:
        return [parameter for parameter in self.shared if parameter.requires_grad]

    def _follow(self, reaches: Mapping[str, Reach]) -> None:
        """Where the losses reach something new, look again which parameters are shared."""
        leaves = [leaf for reached in reaches.values() for leaf in reached.leaves.values()]
        reached = {id(leaf) for leaf in leaves if isinstance(leaf, nn.Parameter)}
        if reached <= self._known:
            return
        self._known |= reached
        self.shared = select_parameters(self._given, self.model)
        there = {id(leaf) for leaf in leaves}
        if self.model is not None:
            there |= {id(parameter) for parameter in self.model.parameters()}
        given = [item for item in self._given if isinstance(item, Tensor) and id(item) in self._meant]
        if lost := [list(parameter.shape) for parameter in given if id(parameter) not in there]:
            warnings.warn(
                f"no loss reaches {len(lost)} of the {len(given)} parameters given as shared, of shapes {lost[:3]}. If "
                "their layers were replaced, wrapped (LoRA) or sharded, the new parameters are not harmonized: give "
                "modules or names as shared, which follow them, or make the harmonizer afterwards",
                stacklevel=5,
            )

    def _partition(self, reaches: Mapping[str, Reach], shared: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Parameters whose gradients are combined, and the others that the losses reach."""
        others = {id(leaf): leaf for reached in reaches.values() for leaf in reached.leaves.values()}
        for parameter in shared:
            others.pop(id(parameter), None)
        if world_size() > 1:
            # The graphs may differ between ranks (a rank without objects, say), the list for a collective may not.
            named = {} if self.model is None else {id(p): p for p in self.model.parameters() if p.requires_grad}
            if any(isinstance(leaf, nn.Parameter) and key not in named for key, leaf in others.items()):
                raise ValueError(
                    "in several processes the harmonizer averages the gradients of all parameters: pass model=, "
                    "holding every parameter that the losses reach (for several modules: torch.nn.ModuleList([...]))"
                )
            ours = {id(parameter) for parameter in shared}
            others = {key: parameter for key, parameter in named.items() if key not in ours}
        private = list(others.values())
        return (shared, private) if self.scope == "shared" else (shared + private, [])

    def _measured(self, step: Step) -> Report:
        gradients = gradients_by_task(step)
        report = self._weighed(gradients, len(step.shared) if step.buckets is None else step.buckets.first)
        leave_combined(step, gradients, report.weights)
        return report

    def _weighed(self, gradients: Sequence[Sequence[Tensor | None]], n: int) -> Report:
        """Weigh gradients whose first ``n`` tensors are the shared parameters'; the exact way averages all in place."""
        if self.synchronize == "gradients":
            all_reduce_mean([g for gradient in gradients for g in gradient if g is not None])
        measured = gramian([gradient[:n] for gradient in gradients])
        if self.synchronize == "gramian":
            all_reduce_mean([measured])
        return Report(self.tasks, measured, from_rank_zero(guarded(self.weighting, measured)))

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
