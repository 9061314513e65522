"""Makes a model from its name and options."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from persia_hpc.errors import UserError
from persia_hpc.user_objects import describe, load_object

if TYPE_CHECKING:
    from torch import nn

    from persia_hpc.trainer.batch import Inputs

# Imported only when asked for, so that ranks without torch can read this.
BUILT_IN: Mapping[str, tuple[str, str]] = {
    "dlrm": ("dlrm", "DLRM"),
    "dcn_v2": ("dcn_v2", "DCNv2"),
    "deepfm": ("deepfm", "DeepFM"),
    "tower": ("tower", "Tower"),
    "din": ("din", "DIN"),
    "mmoe": ("mmoe", "MMoE"),
    "ple": ("ple", "PLE"),
    "esmm": ("esmm", "ESMM"),
    "two_tower": ("two_tower", "TwoTower"),
    "sasrec": ("sasrec", "SASRec"),
    "hstu": ("hstu", "HSTU"),
}


def build_model(name_or_path: str, inputs: Inputs, arguments: Mapping[str, Any]) -> nn.Module:
    """Returns the built-in model of that name, or "module:Class" constructed as Class(inputs, **arguments).

    Raises UserError for an unknown name, a module that can't be imported, arguments that the constructor does
    not take, a constructor that fails and a result that is no torch.nn.Module.
    """
    from torch import nn

    factory = _factory(name_or_path)
    _check_arguments(name_or_path, factory, inputs, arguments)
    try:
        model = factory(inputs, **arguments)
    except (UserError, MemoryError):
        raise
    except Exception as error:
        raise UserError(
            f"model {name_or_path!r} could not be constructed with {dict(arguments)}: {describe(error)}"
        ) from error
    if not isinstance(model, nn.Module):
        raise UserError(
            f"model {name_or_path!r}: expected a torch.nn.Module, got {type(model).__name__}; "
            f"name a class that derives from it"
        )
    return model


def _factory(name_or_path: str) -> Callable[..., Any]:
    if ":" not in name_or_path:
        if name_or_path not in BUILT_IN:
            raise UserError(
                f"model {name_or_path!r} is unknown; built-in: {', '.join(BUILT_IN)}; yours: 'module:Class'"
            )
        module, name = BUILT_IN[name_or_path]
        factory = getattr(importlib.import_module(f"{__package__}.{module}"), name)
    else:
        factory = load_object(name_or_path, "model")
    if not callable(factory):
        raise UserError(f"model {name_or_path!r}: expected a class, got {type(factory).__name__}")
    checked: Callable[..., Any] = factory
    return checked


def _check_arguments(
    name: str, factory: Callable[..., Any], inputs: Inputs, arguments: Mapping[str, Any]
) -> None:
    try:
        signature = inspect.signature(factory)
    except ValueError:  # callables written in C may have none; they complain when called
        return
    try:
        signature.bind(inputs, **arguments)
    except TypeError as error:
        parameters = [str(p) for p in list(signature.parameters.values())[1:]]
        raise UserError(
            f"model {name!r}: its constructor does not fit the options of [model]: {error}; got "
            f"{sorted(arguments) or 'no option'}, it takes: {', '.join(parameters) or 'no option'}"
        ) from error
