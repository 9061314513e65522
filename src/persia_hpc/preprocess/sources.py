"""Loads what makes the files of a source of data, when that source is the one that is wanted.

Most sources need polars; synthetic data can be made without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from persia_hpc.preprocess.team import Team


@dataclass(frozen=True)
class Work:
    """Holds what a source does; its options are the fields of `options`, which `prepare` takes.

    `share(options, team)` lets many ranks make the files: with `--shard-bytes`, or always where there is no
    such option.
    """

    options: type[Any]
    prepare: Callable[[Any], Any]
    share: Callable[[Any, Team], Any] | None = None


def _adult() -> Work:
    from . import adult

    return Work(adult.AdultOptions, adult.prepare)


def _amazon() -> Work:
    from .amazon import prepare

    return Work(prepare.AmazonOptions, prepare.prepare, prepare.prepare)


def _criteo() -> Work:
    from .criteo import parallel, prepare

    return Work(prepare.CriteoOptions, prepare.prepare, parallel.prepare)


def _kuairand() -> Work:
    from . import kuairand

    return Work(kuairand.KuaiRandOptions, kuairand.prepare, kuairand.prepare)


def _movielens() -> Work:
    from .movielens import prepare

    return Work(prepare.MovieLensOptions, prepare.prepare, prepare.prepare)


def _synthetic() -> Work:
    from . import synthetic

    return Work(synthetic.SyntheticOptions, synthetic.prepare, synthetic.prepare)


def _table() -> Work:
    from .table import parallel, prepare

    return Work(prepare.TableOptions, prepare.prepare, parallel.prepare)


def _taobao_ad() -> Work:
    from . import taobao_ad

    return Work(taobao_ad.TaobaoAdOptions, taobao_ad.prepare, taobao_ad.share)


def _yambda() -> Work:
    from .yambda import prepare

    return Work(prepare.YambdaOptions, prepare.prepare, prepare.prepare)


LOADERS: Mapping[str, Callable[[], Work]] = {
    "adult": _adult,
    "amazon": _amazon,
    "criteo": _criteo,
    "kuairand": _kuairand,
    "movielens": _movielens,
    "taobao_ad": _taobao_ad,
    "yambda": _yambda,
    "table": _table,
    "synthetic": _synthetic,
}
