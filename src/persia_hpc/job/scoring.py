"""Scores samples that are in memory with a trained model, as evaluations and `predict` do."""

from __future__ import annotations

import threading

import numpy as np
import torch
from torch import nn

from persia_hpc.arrays import Array
from persia_hpc.config import Config
from persia_hpc.embedding_worker.engine import EmbeddingWorker
from persia_hpc.samples.batch import SampleBatch
from persia_hpc.samples.catalogue import Drawing
from persia_hpc.table_layout import Layout
from persia_hpc.trainer.batch import Batch, Inputs
from persia_hpc.trainer.dense.precision import Precision
from persia_hpc.trainer.pooling.embed import Pooling
from persia_hpc.trainer.ranker import only
from persia_hpc.trainer.retrieval import check_model

from .local_stream import Rows, look_up


class Scorer:
    """Holds what turns samples into predictions on the CPU. Threads take turns."""

    def __init__(self, config: Config, layout: Layout, inputs: Inputs, model: nn.Module, rows: Rows) -> None:
        """rows: gives the rows of keys in the wire format of the configuration (see `rows_of`)."""
        device = torch.device("cpu")
        self._layout = layout
        self._model = model.eval()
        self._rows = rows
        self._worker = EmbeddingWorker(layout, seed=config.seed, transform=config.data.transform)
        self._pooling = Pooling.of(config, inputs, device)
        self._precision = Precision(config.train.amp, device)
        self._drawing = Drawing(config, None)
        self._width = inputs.num_outputs
        self._turn = threading.Lock()

    def predictions(self, sample: SampleBatch) -> Array:
        """Returns what the model predicts, as `Tasks.predictions` says.

        Shapes: float32 [B, O].
        Raises UserError for what `data.transform` may not return.
        """
        count = sample.num_samples
        if not count:
            return np.zeros((0, self._width), np.float32)
        with self._turn, torch.no_grad(), self._precision.autocast():
            logits = self._model(self.batch(sample)).float()
        return self._layout.tasks.predictions(logits.numpy().reshape(count, -1))

    def items(self, sample: SampleBatch, known: tuple[str, ...]) -> Array:
        """Returns the vectors of items of a catalogue by a retrieval model. known: what the catalogue has.

        Shapes: float32 [B, W].
        Raises UserError for a model that has no `items`.
        """
        check_model(self._model, "--items")
        with self._turn, torch.no_grad(), self._precision.autocast():
            vectors: Array = self._model.items(only(self.batch(sample), known)).float().numpy()  # type: ignore[operator]
        return vectors

    def batch(self, sample: SampleBatch) -> Batch:
        """Returns the model's input; only one thread may call it at a time."""
        if self._drawing.names:
            sample = self._drawing.add_none(sample)
        count = sample.num_samples
        keys = self._worker.prepare(sample, step=1, trainer=0, num_global=count, evaluation=True)
        batch, gradients = self._pooling.embed(look_up(self._worker, keys, self._rows), training=False)
        gradients.wait()
        return batch
