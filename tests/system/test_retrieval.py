"""Two-tower training equals a plain PyTorch loop, and a catalogue is ranked alike in every kind of job."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import persia_hpc as ph
from persia_hpc._native import mix
from persia_hpc.cli import main
from persia_hpc.config import load_config
from persia_hpc.errors import UserError
from persia_hpc.samples.batch import SampleBatch
from persia_hpc.samples.catalogue import Drawing, open_catalogue
from persia_hpc.trainer.dense.saved import dense_differences
from persia_hpc.trainer.dense.state import DenseState
from persia_hpc.trainer.retrieval import in_batch_softmax
from tests.support.jobs import Job
from tests.support.retrieval import (
    ITEMS,
    KINDS,
    SCHEMA,
    USERS,
    ids_of,
    retrieval_config,
    samples,
    write_retrieval,
)
from tests.support.tiny import REDUCER

TEMPERATURE, BATCH, STEPS, DRAWN = 0.2, 32, 25, 6
STILL = {"name": "sgd", "lr": 0.0}


class Losses(ph.Callback):
    """Notes the loss of each step."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_step(self, run: Any) -> None:
        self.found.append(run.session.last_loss)


class Plain(nn.Module):
    """The published formula: embeddings, two towers, softmax over candidates corrected by log q."""

    def __init__(self, run: Any, model: Any) -> None:
        super().__init__()
        self.items = nn.Parameter(torch.tensor(run.rows("item", ids_of(np.arange(ITEMS)))))
        self.kinds = nn.Parameter(torch.tensor(run.rows("kind", np.arange(KINDS))))
        self.users = nn.Parameter(torch.tensor(run.rows("user", np.arange(USERS))))
        self.query_tower = copy.deepcopy(model.query_tower.layers)
        self.item_tower = copy.deepcopy(model.item_tower.layers)
        self.number = {int(i): n for n, i in enumerate(ids_of(np.arange(ITEMS)))}

    def item_vectors(self, numbers: np.ndarray) -> Tensor:
        seen = torch.cat([self.items[numbers], self.kinds[numbers % KINDS]], dim=-1)
        return functional.normalize(self.item_tower(seen), dim=-1)

    def loss(self, sample: SampleBatch, drawn: np.ndarray, log_share: np.ndarray, negatives: str) -> Tensor:
        history = sample.ids["history"]
        assert history.offsets is not None
        ends = zip(history.offsets[:-1], history.offsets[1:], strict=True)
        bags = [[self.number[int(i)] for i in history.values[a:b]] for a, b in ends]
        sums = torch.stack([self.items[bag].sum(dim=0) for bag in bags])
        user = self.users[sample.ids["user"].values.astype(int)]
        queries = functional.normalize(self.query_tower(torch.cat([user, sums], dim=1)), dim=1)
        items = np.array([self.number[int(i)] for i in sample.ids["item"].values])
        right, others = self.item_vectors(items), self.item_vectors(drawn)
        absent = (1 - np.exp(log_share)) ** (len(items) - 1)
        if negatives == "both":
            absent = absent * (1 - 1 / ITEMS) ** DRAWN
        losses = []
        for i, number in enumerate(items):
            candidates, numbers = [right[i]], [number]
            in_batch = [] if negatives == "sampled" else list(zip(items, right, strict=True))
            sampled = [] if negatives == "batch" else list(zip(drawn[i], others[i], strict=True))
            for other, vector in (*in_batch, *sampled):
                # With logq each item counts once; drawn ones alone need no correction.
                if other != number and (negatives == "sampled" or other not in numbers):
                    candidates.append(vector)
                    numbers.append(other)
            scores = torch.stack(candidates) @ queries[i] / TEMPERATURE
            if negatives != "sampled":
                scores = scores - torch.tensor(np.log(1 - absent[numbers]), dtype=torch.float32)
            losses.append(-torch.log_softmax(scores, dim=0)[0])
        return torch.stack(losses).mean()


def changed(settings: dict[str, Any], negatives: str, run_dir: Path) -> dict[str, Any]:
    settings = copy.deepcopy(settings) | {"run_dir": str(run_dir)}
    settings["data"]["shuffle"] = False
    settings["tasks"]["liked"]["loss"]["negatives"] = negatives
    settings["train"]["max_steps"] = STEPS
    return settings


@pytest.mark.parametrize("negatives", ["batch", "sampled", "both"])
def test_losses_are_those_of_a_plain_loop(tmp_path: Path, negatives: str) -> None:
    data = write_retrieval(tmp_path)
    settings = changed(retrieval_config(data, tmp_path), negatives, tmp_path / "run")
    still = changed(settings, negatives, tmp_path / "still")
    still["tables"]["default"]["optimizer"] = STILL
    still["train"]["optimizer"] = {"name": "SGD", "lr": 0.0}
    ph.train(still, quiet=True)
    begin = ph.load(tmp_path / "still")
    plain = Plain(begin, begin.model())
    losses = Losses()
    ph.train(settings, callbacks=[losses], quiet=True)

    embeddings = torch.optim.Adagrad([plain.items, plain.kinds, plain.users], lr=0.1)
    dense = torch.optim.Adam([*plain.query_tower.parameters(), *plain.item_tower.parameters()], lr=0.01)
    config = load_config(settings)
    drawing = Drawing(config, open_catalogue(config, SCHEMA, "data.train"))
    train = samples(400, 1)
    numbers = np.array([plain.number[int(i)] for i in train.ids["item"].values])
    log_share = np.log(np.bincount(numbers, minlength=ITEMS) / len(numbers))
    for step, got in enumerate(losses.found):
        epoch, place = divmod(step, -(-400 // BATCH))
        first, end = place * BATCH, min((place + 1) * BATCH, 400)
        sample = drawing.add(train.slice(first, end), epoch, first)
        ids = sample.ids["negatives"].values.reshape(-1, DRAWN)
        drawn = np.vectorize(lambda i: plain.number[int(i)])(ids)
        assert np.array_equal(sample.ids["negative_kind"].values.reshape(-1, DRAWN), drawn % KINDS)
        loss = plain.loss(sample, drawn, log_share, negatives)
        assert got == pytest.approx(loss.item(), rel=2e-4), f"step {step + 1}"
        for optimizer in (embeddings, dense):
            optimizer.zero_grad()
        loss.backward()
        for optimizer in (embeddings, dense):
            optimizer.step()
    assert len(losses.found) == STEPS
    assert np.mean(losses.found[-5:]) < np.mean(losses.found[:5])


def brute_force(run: Any, valid: SampleBatch, k: int) -> tuple[float, float]:
    """Recall and NDCG at k of a finished run, from its rows and its towers."""
    plain = Plain(run, run.model())
    with torch.no_grad():
        items = plain.item_vectors(np.arange(ITEMS)).double().numpy()
    history = valid.ids["history"]
    assert history.offsets is not None
    hits, gains = [], []
    for i in range(valid.num_samples):
        bag = [plain.number[int(n)] for n in history.values[history.offsets[i] : history.offsets[i + 1]]]
        with torch.no_grad():
            user = plain.users[int(valid.ids["user"].values[i])]
            query = plain.query_tower(torch.cat([user, plain.items[bag].sum(dim=0)])[None])
            scores = items @ functional.normalize(query, dim=1)[0].double().numpy()
        target = plain.number[int(valid.ids["item"].values[i])]
        ranked = [n for n in np.argsort(-scores, kind="stable") if n == target or n not in bag]
        place = ranked.index(target) + 1
        hits.append(place <= k)
        gains.append(1 / np.log2(place + 1) if place <= k else 0.0)
    return float(np.mean(hits)), float(np.mean(gains))


def test_ranks_and_one_process_rank_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = retrieval_config(write_retrieval(tmp_path), tmp_path / "alone")
    settings["tasks"]["liked"]["loss"]["negatives"] = "sampled"  # batches of several trainers are others
    settings["train"] |= {"reducer": REDUCER, "slices": ["kind"], "slice_samples": 1}
    alone = ph.train(settings, quiet=True)["valid"]
    slices = alone["slices"]["kind"].values()
    assert len(slices) == KINDS
    assert sum(s["samples"] * s["recall@5"] for s in slices) == pytest.approx(90 * alone["recall@5"])
    run = ph.load(tmp_path / "alone")
    recall, ndcg = brute_force(run, samples(90, 2), 5)
    assert alone["recall@5"] == pytest.approx(recall, abs=1e-12)
    assert alone["ndcg@5"] == pytest.approx(ndcg, abs=1e-12)
    assert alone["recall@5"] > 0.5
    assert main(["evaluate", str(tmp_path / "alone"), "--split", "valid"]) == 0
    assert json.loads(capsys.readouterr().out) == alone
    run.predict([str(tmp_path / "valid.h5")], tmp_path / "scores.h5")
    with h5py.File(tmp_path / "scores.h5") as file:
        assert np.abs(np.asarray(file["probability"])).max() <= 1 + 1e-6  # cosines
    assert main(["importance", str(tmp_path / "alone"), "--split", "valid", "--metric", "recall@5"]) == 2
    assert "recall@5 ranks the whole catalogue, which importance doesn't" in capsys.readouterr().err
    ranks = {"parameter_servers": 2, "embedding_workers": 2, "trainers": 2}
    job = Job(tmp_path, settings | {"ranks": ranks})
    code, _, err = job.end()
    assert code == 0, err
    several = json.loads((job.run_dir / "summary.json").read_text())["valid"]
    assert list(several) == list(alone)
    for name in ("recall@5", "ndcg@5", "hr@3"):
        assert several[name] == pytest.approx(alone[name], abs=0.03)  # sums of another order in training
    loaded = ph.load(job.run_dir).evaluate("valid")
    assert loaded["recall@5"] == pytest.approx(several["recall@5"], abs=1e-12)
    assert loaded["ndcg@5"] == pytest.approx(several["ndcg@5"], abs=1e-12)


def test_negatives_and_counts_are_the_same_for_any_servers_and_workers(tmp_path: Path) -> None:
    settings = retrieval_config(write_retrieval(tmp_path), tmp_path / "alone")
    settings["tasks"]["liked"]["loss"]["logq"] = "counts"
    alone = ph.train(settings, quiet=True)
    job = Job(tmp_path, settings | {"ranks": {"parameter_servers": 2, "embedding_workers": 3}})
    code, _, err = job.end()
    assert code == 0, err
    assert json.loads((job.run_dir / "summary.json").read_text())["valid"] == alone["valid"]
    one, several = (directory / "latest" for directory in (tmp_path / "alone", job.run_dir))
    assert not [text for text in dense_differences(one, several) if not text.startswith("dense random")]
    ids = ids_of(np.arange(ITEMS))
    assert np.array_equal(ph.load(one).rows("item", ids), ph.load(several).rows("item", ids))
    # What was counted is what was trained on: two epochs.
    items = DenseState.read(several).items
    assert len(items) == 1
    seen = dict(zip(items[0]["keys"].numpy().view(np.uint64), items[0]["counts"].tolist(), strict=True))
    trained, times = np.unique(mix(samples(400, 1).ids["item"].values), return_counts=True)
    assert seen == dict(zip(trained, (2.0 * times).tolist(), strict=True))


def test_a_resumed_run_draws_and_counts_the_same(tmp_path: Path) -> None:
    settings = retrieval_config(write_retrieval(tmp_path), tmp_path / "whole")
    settings["tasks"]["liked"]["loss"] |= {"logq": "counts", "halve_every": 6}
    whole, first, second = Losses(), Losses(), Losses()
    ph.train(settings, callbacks=[whole], quiet=True)
    settings["run_dir"] = str(tmp_path / "parts")
    ph.train(settings, set={"train.max_steps": 17}, callbacks=[first], quiet=True)
    ph.train(settings, set={"checkpoint.resume": True}, callbacks=[second], quiet=True)
    assert first.found + second.found == whole.found


def test_counts_that_begin_at_a_resume_are_said_once(tmp_path: Path) -> None:
    settings = retrieval_config(write_retrieval(tmp_path), tmp_path / "run")
    ph.train(settings, set={"train.max_steps": 5}, quiet=True)
    settings["tasks"]["liked"]["loss"]["logq"] = "counts"
    for steps in (8, 10):
        ph.train(settings, set={"train.max_steps": steps, "checkpoint.resume": True}, quiet=True)
    events = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (warning,) = [event for event in events if event["event"] == "warning"]
    assert warning["step"] == 5
    assert 'logq = "counts" counts items from this step on only: the run didn\'t count' in warning["text"]


class Own(nn.Module):
    """A user's module: factors of users and items, and as many positions as a sample's history has items."""

    def __init__(self, inputs: Any) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def queries(self, batch: Any) -> Tensor:
        return batch.pooled["user"] * self.scale

    def items(self, batch: Any) -> Tensor:
        vectors: Tensor = batch.pooled["item"]
        return vectors

    def matches(self, batch: Any) -> ph.Matches:
        history = batch.jagged["history"]
        samples = history.samples()
        return ph.Matches(self.queries(batch)[samples], history.values, batch.ids["history"], samples)

    def forward(self, batch: Any) -> Tensor:
        return (self.queries(batch) * self.items(batch)).sum(dim=1, keepdim=True)


def own_loop(session: Any) -> None:
    torch.manual_seed(session.config.seed)
    model = session.prepare(Own(session.inputs))
    for batch in session.batches():
        matches = model.matches(batch)
        session.step(matches.per_sample(in_batch_softmax(matches), batch.num_samples))
    session.evaluate(split="valid")
    with pytest.raises(UserError, match="a catalogue has no labels"):
        session.evaluate(split="items")


def test_a_module_and_a_loop_of_the_users_own(tmp_path: Path) -> None:
    settings = retrieval_config(write_retrieval(tmp_path), tmp_path / "standard")
    settings["features"] = {"item": {"table": "item"}, "history": {"table": "item", "pooling": "jagged"}}
    settings["tasks"]["liked"]["loss"] = "in_batch_softmax"
    settings["model"] = {"class": "tests.system.test_retrieval:Own"}
    settings["tables"]["default"] |= {"init": {"name": "normal", "std": 0.1}}
    losses = Losses()
    standard = ph.train(settings, callbacks=[losses], quiet=True)
    assert np.mean(losses.found[-5:]) < losses.found[0]
    assert 0 < standard["valid"]["recall@5"] < 1
    settings["tasks"]["liked"]["weight"] = 0.5
    half = Losses()
    ph.train(
        settings | {"run_dir": str(tmp_path / "half")},
        set={"train.max_steps": 1},
        callbacks=[half],
        quiet=True,
    )
    assert half.found[0] == pytest.approx(losses.found[0] / 2)
    own = ph.run(settings | {"run_dir": str(tmp_path / "own")}, own_loop, quiet=True)
    assert own["valid"] == standard["valid"]
    settings["model"] = {"class": "tower"}
    with pytest.raises(
        UserError, match=r'"in_batch_softmax" needs a retrieval model, but Tower has no method'
    ):
        ph.train(settings | {"run_dir": str(tmp_path / "tower")}, quiet=True)
    with pytest.raises(UserError, match=r"recall@5 of data.items needs a retrieval model, but Tower has no"):
        ph.train(settings | {"run_dir": str(tmp_path / "bce"), "tasks": {}}, quiet=True)
