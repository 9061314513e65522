"""Updates the dense parameters: the optimizer's steps with their learning rates, and the average of them."""

from __future__ import annotations

import torch
from torch import nn

from persia_hpc.config import Config
from persia_hpc.config.learning_rate import LearningRate
from persia_hpc.errors import UserError
from persia_hpc.trainer.interfaces import DenseSync

from .average import Average
from .optimizer import make_optimizer, set_learning_rate
from .precision import Precision
from .state import DenseState


class Updates:
    """Makes one update of the dense parameters a step."""

    def __init__(self, config: Config, num_steps: int, precision: Precision, reducer: DenseSync) -> None:
        """num_steps: of the whole training. reducer: has the parameters and their summed gradients."""
        self._settings, self._clip_norm = config.dense_optimizer, config.train.clip_norm
        self._rate_of_task = next((name for name, task in config.tasks.items() if task.lr is not None), None)
        self._rate = LearningRate(config.train.schedule, num_steps)
        self._precision = precision
        self._reducer = reducer
        self.average = Average(config.train.average)
        self.optimizer: torch.optim.Optimizer | None = None

    def attach(
        self, model: nn.Module, optimizer: torch.optim.Optimizer | None, resume: DenseState | None
    ) -> torch.optim.Optimizer | None:
        """Returns the optimizer: the user's own, or one that is made; None if there is nothing to train.

        resume: the checkpoint's dense side, to continue from.
        Raises UserError for an optimizer or an average that doesn't fit, and for the user's own optimizer
        beside a learning rate that it wouldn't have.
        """
        if optimizer is not None and (name := self._rate_of_task) is not None:
            raise UserError(
                f"tasks.{name}.lr: session.prepare got an optimizer, whose learning rates are its own; leave "
                "the key out and give the optimizer a parameter group for the task's layers, or prepare "
                "without an optimizer"
            )
        parameters = self._reducer.parameters
        if optimizer is None and parameters:
            optimizer = make_optimizer(parameters, self._settings, model)
        self.optimizer = optimizer
        self._precision.attach(parameters, optimizer)
        if resume is not None:
            if optimizer is not None:
                resume.load_optimizer(optimizer)
                if (resume.driver.get("plateau") or {}).get("factor", 1.0) != 1.0:
                    # Rates without the factor: `apply` may know of none, if train.plateau is left out now.
                    for group in optimizer.param_groups:
                        group["lr"] = group.get("initial_lr", group["lr"])
            self._precision.restore(resume.scaler)
        self.average.attach(model, {} if resume is None else resume.average)
        return optimizer

    def apply(self, step: int, *, good: bool, factor: float) -> None:
        """Updates the parameters with the gradients of a step, if it is `good`, and drops the gradients.

        factor: of the learning rate, beside its schedule.
        """
        optimizer, reducer = self.optimizer, self._reducer
        if optimizer is None:
            return
        set_learning_rate(optimizer, self._rate, step, factor)
        if good:
            self._precision.apply(optimizer, reducer.parameters, self._clip_norm)
        optimizer.zero_grad(set_to_none=True)
        reducer.updated()
        if good:
            self.average.update()
