"""Reads and checks a configuration; these names are what other packages and users import."""

from .fields import mib, parse_bytes
from .reader import config_text, load_config, parse_set
from .toml import to_toml, toml_key, toml_value
from .types import (
    CheckpointConfig,
    Config,
    DataConfig,
    FeatureConfig,
    HashConfig,
    MetricsConfig,
    ModelConfig,
    RanksConfig,
    TableConfig,
    TaskConfig,
    TrainConfig,
    TransportConfig,
    WireConfig,
)

__all__ = [
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "FeatureConfig",
    "HashConfig",
    "MetricsConfig",
    "ModelConfig",
    "RanksConfig",
    "TableConfig",
    "TaskConfig",
    "TrainConfig",
    "TransportConfig",
    "WireConfig",
    "config_text",
    "load_config",
    "mib",
    "parse_bytes",
    "parse_set",
    "to_toml",
    "toml_key",
    "toml_value",
]
