from __future__ import annotations

import csv
import gzip
import math
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from persia_hpc.cli import main
from persia_hpc.config import load_config
from persia_hpc.preprocess.taobao_ad import LAST_DAY
from persia_hpc.samples.ids import MISSING_ID
from persia_hpc.samples.source import open_source

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = [  # user, time, advertisement, click
    (7, LAST_DAY - 100, 70, 0),
    (9, LAST_DAY + 5, 71, 1),
    (7, LAST_DAY - 9, 71, 1),
    (8, LAST_DAY - 8, 72, 0),
    (8, LAST_DAY, 70, 0),
]


def write(path: Path, head: str, rows: list[tuple[object, ...]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head.split(","), *rows])


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    rows = [(u, t, a, "430548_1007", 1 - c, c) for u, t, a, c in SAMPLES]
    write(folder / "raw_sample.csv", "user,time_stamp,adgroup_id,pid,nonclk,clk", rows)
    ads = [(70, 1, 11, 21, 31, 9.0), (71, 2, 12, 22, "NULL", 99.0)]
    write(folder / "ad_feature.csv", "adgroup_id,cate_id,campaign_id,customer,brand,price", ads)
    codes = "cms_segid,cms_group_id,final_gender_code,age_level,pvalue_level,shopping_level,occupation"
    users = [(7, 1, 2, 1, 3, "", 3, 0, 2), (8, 0, 5, 2, 4, 1, 3, 1, "")]
    write(folder / "user_profile.csv", f"userid,{codes},new_user_class_level ", users)
    return folder


def test_joined_rows_are_split_by_day(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["preprocess", "taobao_ad", "--input", str(raw), "--out", str(out)]) == 0
    with h5py.File(out / "train.h5") as train, h5py.File(out / "test.h5") as test:
        assert train["ids/user"][:].tolist() == [7, 7, 8]
        assert test["ids/user"][:].tolist() == [9, 8]
        assert train["label"][:, 0].tolist() == [0, 1, 0]
        assert train["ids/adgroup"][:].tolist() == [70, 71, 72]
        assert train["ids/campaign_id"][:].tolist() == [11, 12, MISSING_ID]
        assert train["ids/brand"][:].tolist() == [31, MISSING_ID, MISSING_ID]
        assert train["ids/pvalue_level"][:].tolist() == [MISSING_ID, MISSING_ID, 1]
        assert test["ids/new_user_class_level"][:].tolist() == [MISSING_ID, MISSING_ID]
        assert train["time"][:].tolist() == [t for _, t, _, _ in SAMPLES if t < LAST_DAY]
        prices = np.log1p(np.array([9.0, 99.0, 0.0]))
        np.testing.assert_allclose(train["dense"][:, 0], (prices - prices.mean()) / prices.std(), rtol=1e-5)
        assert test["dense"][1, 0] == pytest.approx((math.log1p(9) - prices.mean()) / prices.std(), rel=1e-5)
    capsys.readouterr()
    assert main(["preprocess", "taobao_ad", "--input", str(raw), "--out", str(out)]) == 0
    assert "up to date" in capsys.readouterr().out


def test_shards_hold_what_one_file_would(raw: Path, tmp_path: Path) -> None:
    one = ["preprocess", "taobao_ad", "--input", str(raw), "--out", str(tmp_path / "one")]
    many = [*one[:-1], str(tmp_path / "many"), "--shard-bytes", "1500"]
    assert main(one) == 0
    assert main(many) == 0
    assert len(list((tmp_path / "many").glob("*.h5"))) > 2
    for split in ("train", "test"):
        sources = [open_source([str(tmp_path / name)]) for name in (f"many/{split}-*.h5", f"one/{split}.h5")]
        got, want = (source.read(0, source.num_samples) for source in sources)
        for name, column in want.ids.items():
            assert np.array_equal(got.ids[name].values, column.values)
        np.testing.assert_allclose(got.dense, want.dense, rtol=1e-6)


def test_what_is_missing_is_named(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["preprocess", "taobao_ad", "--input", str(raw), "--out", str(tmp_path / "out")]
    text = (raw / "ad_feature.csv").read_text()
    (raw / "ad_feature.csv").write_text(text.replace("brand", "marke"))
    assert main(arguments) == 2
    assert "expected also brand" in capsys.readouterr().err
    (raw / "ad_feature.csv").unlink()
    assert main(arguments) == 2
    assert "ad_feature.csv is missing" in capsys.readouterr().err
    assert not (tmp_path / "out" / "train.h5").exists()


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        (
            "ad_feature.csv",
            "70,9,9,9,9,1\n",
            "ad_feature.csv: adgroup_id: got 70 in 2 rows, expected each in one",
        ),
        ("user_profile.csv", "7,1,2,1,3,,3,0,2\n", "user_profile.csv: userid: got 7 in 2 rows"),
        (
            "raw_sample.csv",
            "7,1494604700.5,70,p,1,0\n",
            "time_stamp: got 1494604700.5 (Float64), expected a time",
        ),
        ("raw_sample.csv", "7.5,1494604700,70,p,1,0\n", "can't be joined"),
    ],
)
def test_rows_that_would_be_changed_are_refused(
    raw: Path, tmp_path: Path, name: str, row: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with (raw / name).open("a") as file:
        file.write(row)
    assert main(["preprocess", "taobao_ad", "--input", str(raw), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_prices_may_begin_with_whole_numbers(raw: Path, tmp_path: Path) -> None:
    ads = "".join(f"{i},1,11,21,31,9\n" for i in range(100, 1500))
    (raw / "ad_feature.csv").write_text(
        "adgroup_id,cate_id,campaign_id,customer,brand,price\n" + ads + "70,1,1,1,1,0.5\n"
    )
    assert main(["preprocess", "taobao_ad", "--input", str(raw), "--out", str(tmp_path / "out")]) == 0


def test_avazu_by_its_schema(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(ROOT / "datasets" / "avazu" / "schema.toml", tmp_path)
    head = "id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,app_domain,app_category,"
    head += "device_id,device_ip,device_model,device_type,device_conn_type,C14,C15,C16,C17,C18,C19,C20,C21"
    rng = np.random.default_rng(1)
    rows = []
    for number in range(400):
        words = [f"{rng.integers(0, 20):08x}" for _ in range(9)]
        tail = rng.integers(0, 9, 10).tolist()
        rows.append((10**18 + number, int(number % 6 == 0), 14102100 + number % 24, 1005, 0, *words, *tail))
    write(tmp_path / "train.csv", head, rows)
    (tmp_path / "train.gz").write_bytes(gzip.compress((tmp_path / "train.csv").read_bytes()))
    assert main(["preprocess", "table", str(tmp_path / "schema.toml"), "--out", str(tmp_path / "out")]) == 0
    total = 0
    for split in ("train", "valid", "test"):
        with h5py.File(tmp_path / "out" / f"{split}.h5") as file:
            total += len(file["label"])
            assert len(file["ids"]) == 22
            assert file["time"][:].min() >= 1413849600  # 21 October 2014
    assert total == 400
    schema = (tmp_path / "schema.toml").read_text()
    (tmp_path / "schema.toml").write_text(schema.replace("%y%m%d%H", "%y%H%Q"))
    assert main(["preprocess", "table", str(tmp_path / "schema.toml"), "--out", str(tmp_path / "no")]) == 2
    assert "'%y%H%Q" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["avazu", "taobao_ad"])
def test_configurations_are_valid(name: str) -> None:
    assert load_config(ROOT / "datasets" / name / f"{name}.toml").tables["default"].dim in (8, 16)
