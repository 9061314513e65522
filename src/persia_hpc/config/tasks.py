"""Fills in and checks `[tasks]` and `train.loss`: what is learned, by which loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .losses import BATCH_LOSSES, BINARY_LOSSES, LOGQ, LOSSES, NEGATIVES
from .metric_names import FORMS, built_in, metrics_of, name_problem, top_of
from .options import Fail, check_import_path, check_number, did_you_mean, nearest, with_name
from .types import Config

MAX_CLASSES = 100_000


def resolve_task(task: Any, path: tuple[str, ...], fail: Fail) -> None:
    """Fills in the options of a task's loss, in place.

    Raises UserError for a loss that isn't known, and for an option that it doesn't have.
    """
    if not isinstance(task, dict):
        return  # the typed reader says it
    path = (*path, "loss")
    loss = with_name(task.get("loss", {}), "bce", path, fail)
    name = loss["name"]
    if ":" in name:
        check_import_path(name, path, fail)
        known: Mapping[str, Any] = {}
    else:
        known = LOSSES[_builtin(name, path, fail)]
    for key, value in loss.items():
        if key == "name":
            continue
        if key not in known:
            raise fail((*path, key), f"is not an option of {name!r}{nearest(key, known)}")
        if (words := {"negatives": NEGATIVES, "logq": LOGQ}.get(key)) is not None:
            if value not in words:
                raise fail((*path, key), f"= {value!r}: expected one of {', '.join(words)}")
            continue
        check_number(key, value, (*path, key), fail)
        if key in ("temperature", "pos_weight") and value <= 0:
            raise fail((*path, key), f"= {value}: expected a value above 0")
        if key == "halve_every" and not isinstance(value, int):
            raise fail((*path, key), f"= {value}: expected a number of steps, or 0 for never")
        if key in ("smoothing", "alpha") and not 0 <= value <= 1:
            raise fail((*path, key), f"= {value}: expected a value from 0 to 1")
    classes = loss.get("classes")
    if "classes" in known and not (isinstance(classes, int) and 2 <= classes <= MAX_CLASSES):
        problem = f"= {classes}: expected" if classes is not None else "is missing: it is"
        raise fail((*path, "classes"), f"{problem} the number of classes, from 2 to {MAX_CLASSES}")
    task["loss"] = {**known, **loss}


def check_tasks(config: Config, fail: Fail) -> None:
    """Checks `train.loss`, which stands for all labels, and that tasks don't contradict it or themselves.

    Raises UserError if they do.
    """
    loss, path = config.train.loss, ("train", "loss")
    if ":" in loss:
        check_import_path(loss, path, fail)
    elif LOSSES[_builtin(loss, path, fail)].get("classes", 0) is None:
        raise fail(
            path,
            f'= {loss!r}: it needs a number of classes; write it as [tasks.LABEL] loss = {{ name = "{loss}", '
            "classes = 5 }",
        )
    if config.model.class_name == "esmm":
        _check_esmm(config, fail)
    if config.train.accumulate > 1:
        _check_accumulate(config, fail)
    if config.data.keep_negatives < 1:
        _check_keep_negatives(config, fail)
    if not config.tasks:
        return
    if loss != "bce":
        raise fail(path, f"= {loss!r}: [tasks] are written too, each with a loss of its own; leave it out")
    if not any(task.weight for task in config.tasks.values()):
        raise fail(("tasks",), "have weights of 0 only, so nothing would be learned; give one a weight")
    _check_metrics(config, fail)


def _check_metrics(config: Config, fail: Fail) -> None:
    """Checks that tasks name built-in metrics that their losses have, and that each one is some task's."""
    for name, task in config.tasks.items():
        loss, path = str(task.loss["name"]), ("tasks", name, "metrics")
        for metric in task.metrics or ():
            if ":" in metric:
                problem = "sees the labels of all tasks; name it in train.metrics"
                raise fail(path, f"= {metric!r}: a function of your own {problem}")
            if unknown := name_problem(metric):
                expected = unknown.removesuffix(' or "module:function"')
                raise fail(path, f"= {metric!r}: {expected}{did_you_mean(metric, FORMS)}")
            having = metrics_of(loss, [metric])
            if metric not in having and not (config.data.items and top_of(metric)):
                raise fail(
                    path,
                    f"= {metric!r}: a task with the loss {loss!r} doesn't have it, but {', '.join(having)}; "
                    "leave it out",
                )
    unused = [name for name in built_in(config.train.metrics) if not (config.data.items and top_of(name))]
    if unused and all(task.metrics is not None for task in config.tasks.values()):
        raise fail(
            ("train", "metrics"),
            f"= {unused[0]!r}: all tasks have metrics of their own, so it is none's; leave it out here, or "
            "leave the metrics of a task out",
        )


def _check_accumulate(config: Config, fail: Fail) -> None:
    train, path = config.train, ("train", "accumulate")
    if train.accumulate > config.data.batch_size:
        raise fail(
            path,
            f"= {train.accumulate}: expected at most data.batch_size = {config.data.batch_size}, the samples "
            "of all parts of a step together",
        )
    if train.cuda_graphs:
        raise fail(
            path,
            f"= {train.accumulate}, and train.cuda_graphs = true: a graph writes each part's gradients over "
            "those of the part before; leave one of them out",
        )
    for name in config.loss_names:
        if name in BATCH_LOSSES:
            raise fail(
                path,
                f"= {train.accumulate}: the loss {name!r} compares the samples of a batch, which parts would "
                "tear apart; leave accumulate out",
            )


def _check_keep_negatives(config: Config, fail: Fail) -> None:
    """Checks that negatives of one label are left out, and that its loss can be corrected for that."""
    path, share = ("data", "keep_negatives"), config.data.keep_negatives
    if config.loss_names != ["bce"]:
        raise fail(
            path,
            f'= {share:g}: predictions are corrected for one label that the loss "bce" learns, got '
            f"{', '.join(config.loss_names)}; leave it out, or learn one label",
        )
    if config.data.transform is not None:
        raise fail(
            path,
            f"= {share:g}: negatives are left out by the label in the files, which data.transform = "
            f"{config.data.transform!r} may change; leave one out, or write the new label to the files",
        )
    if config.data.follow:
        raise fail(path, f"= {share:g}: data.follow takes files as they come; leave one of the two out")


def _check_esmm(config: Config, fail: Fail) -> None:
    """Checks that both outputs of ESMM are learned as probabilities over all samples."""
    for name in config.loss_names:
        if name in LOSSES and name not in BINARY_LOSSES:
            problem = f"learns probabilities, got the loss {name!r}; expected {', '.join(BINARY_LOSSES)}"
            raise fail(("model", "class"), f'= "esmm": {problem}')
    for name, task in config.tasks.items():
        if task.where is not None:
            raise fail(
                ("tasks", name, "where"),
                f'= {task.where!r}: model "esmm" learns a conversion from all samples, also those without a '
                "click, as their product; leave it out",
            )


def _builtin(name: str, path: tuple[str, ...], fail: Fail) -> str:
    if name not in LOSSES:
        problem = f'= {name!r}: expected {", ".join(LOSSES)} or "module:function"'
        raise fail(path, problem + did_you_mean(name, LOSSES))
    return name
