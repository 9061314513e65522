"""Builds models: the built-in ones by name, a user's by import path. No torch until one is built."""

from .build import BUILT_IN, build_model

__all__ = ["BUILT_IN", "build_model"]
