"""Says where a resumed run has other learning rates than it would have had, as its length has changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from persia_hpc.config import Config
from persia_hpc.config.learning_rate import LearningRate
from persia_hpc.schedule import Schedule

from .dense.state import DenseState


def changed_rates(
    resume: DenseState, config: Config, schedule: Schedule, optimizer: torch.optim.Optimizer | None
) -> Iterator[str]:
    """Yields a text for each cosine without `steps` that ended elsewhere in the run until now.

    schedule: of training. optimizer: of the dense network, as resumed.
    """
    there, step, now = resume.saved_config(), resume.step + 1, schedule.num_steps
    length = {key: there["train"][key] for key in ("epochs", "max_steps")}
    before = dataclasses.replace(schedule, **length).num_steps
    cases = []
    if optimizer is not None:
        cases.append(("train", *_dense_rate(config, optimizer), there["train"], config.train.schedule))
    for name, table in config.tables.items():
        old = there["tables"].get(name, {})
        cases.append((f"tables.{name}", f"table {name}", float(table.optimizer["lr"]), old, table.schedule))
    for key, whose, lr, old, options in cases:
        if options["name"] != "cosine" or old.get("schedule") != options or step > now:
            continue
        old_lr, new_lr = (lr * LearningRate(options, steps).factor(step) for steps in (before, now))
        if old_lr != new_lr:
            yield (
                f"the learning rate of {whose} is {new_lr:.6g} in step {step}, and would have been "
                f"{old_lr:.6g}: its cosine ended at step {before} and now ends at step {now}. To keep it as "
                f"it was, set {key}.schedule.steps = {max(1, before - int(options['warmup_steps']))}"
            )


def _dense_rate(config: Config, optimizer: torch.optim.Optimizer) -> tuple[str, float]:
    """Returns whose learning rate is told, and this rate before any schedule's factor.

    That of the parameters which no group or task names: `make_optimizer` puts them last. If all are named,
    that of the last group.
    """
    named, group = config.dense_optimizer.get("groups", []), optimizer.param_groups[-1]
    rate = float(group.get("initial_lr", group["lr"]))
    if len(named) != len(optimizer.param_groups):
        return "the dense network", rate
    last = named[-1]
    return f"task {last['task']}" if "task" in last else f"the parameters {last['match']!r}", rate
