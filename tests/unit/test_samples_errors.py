"""Files that aren't what they should be: refused with one clear line, before or while reading."""

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from persia_hpc.errors import DataError, UserError
from persia_hpc.samples import names as layout
from persia_hpc.samples.source import open_source
from tests.support.samples import random_batch, write

ROWS, CHUNK = 400, 64


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("samples") / "good.h5"
    write(path, random_batch(ROWS, optional=True), chunk_rows=CHUNK, compression="none")
    return path


@pytest.fixture
def path(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(template, tmp_path / "data.h5"))


def edited(path: Path, edit: Callable[[h5py.File], object]) -> Path:
    with h5py.File(path, "r+") as file:
        edit(file)
    return path


def replace(name: str, array: np.ndarray) -> Callable[[h5py.File], object]:
    def edit(file: h5py.File) -> None:
        del file[name]
        file[name] = array

    return edit


def trust_nothing(file: h5py.File) -> None:
    """Remove what the writer vouched for, as in a file made elsewhere."""
    for name in set(file.attrs) - {layout.SCHEMA_VERSION_ATTRIBUTE, layout.FEATURE_NAMES}:
        del file.attrs[name]


def refuse(path: Path | str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        open_source([str(path)])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda f: f.attrs.__delitem__("schema_version"), "not a persia-hpc dataset"),
        (lambda f: f.__delitem__("label"), "not a persia-hpc dataset"),
        (lambda f: f.attrs.__setitem__("schema_version", 2), "got schema_version 2, expected 1; update"),
        (lambda f: f.attrs.__setitem__("schema_version", 0), "got schema_version 0, expected 1; prepare"),
        (lambda f: f.attrs.__setitem__("num_samples", 401), "got 400 labels, the file says num_samples 401"),
        (replace("ids/user", np.zeros(399, np.uint32)), "/ids/user: got 399 rows, expected 400"),
        (replace("dense", np.zeros((401, 2), np.float32)), "/dense: got 401 rows, expected 400"),
        (replace("dense", np.zeros(400, np.float32)), r"/dense: got float32 of shape \(400,\)"),
        (replace("dense", np.zeros((400, 3), np.float32)), "dense_names: got 2 names, expected 3"),
        (replace("ids/user", np.zeros(400, np.float32)), "/ids/user: got float32 .* expected integers"),
        (replace("group", np.zeros(400)), "/group: got float64"),
        (replace("ids/tags/offsets", np.zeros(400, np.uint64)), "offsets: got 400 offsets, expected 401"),
        (replace("ids/tags/offsets", np.zeros(401, np.uint64)), "got offsets from 0 to 0, expected 0 to"),
        (lambda f: f.__delitem__("ids/tags/values"), "/ids/tags/values: got no such dataset"),
        (lambda f: f.__delitem__("ids/user"), "/ids/user: got no such dataset"),
    ],
)
def test_a_file_of_another_shape_is_refused(
    path: Path, edit: Callable[[h5py.File], object], message: str
) -> None:
    refuse(
        edited(path, edit), f"^{path}: .*{message}" if not message.startswith("/") else f"^{path}: {message}"
    )


def test_a_file_without_samples_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["schema_version"] = 1
        file["ids/user"] = np.zeros(0, np.uint64)
        file["label"] = np.zeros((0, 1), np.float32)
    refuse(tmp_path / "a.h5", "got zero samples")


def test_large_groups_stay_apart_and_large_times_are_refused(tmp_path: Path) -> None:
    """HDF5 makes 2^63 - 1 of all of them where it is asked for int64."""
    path = str(tmp_path / "a.h5")
    with h5py.File(path, "w") as file:
        file.attrs["schema_version"] = 1
        file["ids/user"] = np.array([3, 1, 2])
        file["label"] = np.array([[0], [1], [1]], np.uint8)
        file["group"] = np.array([2**63 + 5, 2**63 + 6, 7], np.uint64)
        file["time"] = np.array([1, 2, 2**63], np.uint64)
    source = open_source([path])
    batch = source.read(0, 2)
    assert batch.group is not None
    assert batch.group.tolist() == [5 - 2**63, 6 - 2**63]
    for read in (lambda: source.read(1, 3), source.read_times):
        with pytest.raises(DataError, match=r"a\.h5: /time, row 2: got 9223372036854775808, expected less"):
            read()


def test_other_files_are_refused(tmp_path: Path, path: Path) -> None:
    refuse(tmp_path / "no-*.h5", "no-.*: no file matches")
    text = tmp_path / "a.csv"
    text.write_text("click,user\n1,2\n")
    refuse(text, "neither an HDF5 nor a Parquet file")
    text.write_text("")
    refuse(text, "got an empty file")
    refuse(tmp_path, "got no such file")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    refuse(path, "can't read it .*truncated file.*damaged or incomplete")


def test_a_filter_that_is_not_installed_is_named(path: Path) -> None:
    def edit(file: h5py.File) -> None:
        del file["time"]
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_chunk((ROWS,))
        settings.set_filter(60_001, h5py.h5z.FLAG_OPTIONAL, (1,))
        space = h5py.h5s.create_simple((ROWS,))
        h5py.h5d.create(file.id, b"time", h5py.h5t.NATIVE_INT64, space, settings)

    refuse(edited(path, edit), "/time: compressed with HDF5 filter 60001 .*isn't installed")


def with_scale_offset(name: str, digits: int) -> Callable[[h5py.File], object]:
    def edit(file: h5py.File) -> None:
        array = file[name][:]
        del file[name]
        file.create_dataset(name, data=array, chunks=(CHUNK, *array.shape[1:]), scaleoffset=digits)

    return edit


@pytest.mark.parametrize(("name", "digits"), [("label", 3), ("dense", 2), ("weight", 0), ("time", 4)])
def test_a_filter_that_changes_values_unseen_is_refused(path: Path, name: str, digits: int) -> None:
    refuse(edited(path, with_scale_offset(name, digits)), f"/{name}: stored with HDF5's scale-offset filter")


def test_integers_in_as_many_bits_as_they_need_are_read(path: Path) -> None:
    whole = open_source([str(path)]).read(0, ROWS).time
    packed = open_source([str(edited(path, with_scale_offset("time", 0)))]).read(0, ROWS).time
    assert np.array_equal(packed, whole)


def hide_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """hdf5plugin is gone, and its filters with it."""
    monkeypatch.setattr(layout, "hdf5plugin", None)
    monkeypatch.setattr(layout.h5z, "filter_avail", lambda code: code < 256)  # HDF5's own


def test_a_file_that_needs_the_plugin_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(write(tmp_path / "a.h5", random_batch(ROWS), compression="lz4"))
    scanned = open_source([str(path)])  # by a machine that has it
    hide_plugin(monkeypatch)
    words = (
        "a.h5: /[a-z/]+: its compression .* needs the Python package hdf5plugin, .*: pip install hdf5plugin$"
    )
    refuse(path, words)
    with pytest.raises(UserError, match=words):
        scanned.read(0, ROWS)


def test_without_the_plugin_files_are_written_so_that_all_can_read_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_plugin(monkeypatch)
    batch = random_batch(ROWS)
    path = write(tmp_path / "a.h5", batch, chunk_rows=CHUNK)
    assert np.array_equal(open_source([path]).read(0, ROWS).labels, batch.labels)
    with h5py.File(path) as file:
        assert (file["label"].compression, file["label"].compression_opts) == ("gzip", 0)
    with pytest.raises(UserError, match='"lz4" needs the Python package hdf5plugin'):
        write(tmp_path / "b.h5", batch, compression="lz4")
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]


def test_wrong_arguments_are_refused(path: Path) -> None:
    for patterns, arguments, message in [
        ([], {}, "got an empty list"),
        (str(path), {}, "expected a list"),
        ([str(path), str(path)], {}, "got the file twice"),
        ([str(path)], {"limit": 0}, "limit: got 0"),
        (
            [str(path)],
            {"features": ["usr"]},
            "got no feature 'usr', expected one of user, tags; did you mean 'user'",
        ),
    ]:
        with pytest.raises(UserError, match=message):
            open_source(patterns, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            replace("ids/tags", np.zeros(ROWS, np.uint64)),
            "got one-hot feature 'tags', but it is multi-hot in",
        ),
        (
            lambda f: f.attrs.__setitem__("dense_names", ["y", "x"]),
            r"got dense columns \['y', 'x'\], expected",
        ),
        (
            lambda f: f.attrs.__setitem__("label_names", ["buy"]),
            r"got labels \['buy'\], expected \['click'\]",
        ),
        (lambda f: f.__delitem__("weight"), "got no dataset /weight"),
        (lambda f: f.attrs.__setitem__("feature_names", ["user"]), "got no feature 'tags'"),
    ],
)
def test_files_that_do_not_fit_together_are_refused(
    template: Path, path: Path, edit: Callable[[h5py.File], object], message: str
) -> None:
    edited(path, edit)
    with pytest.raises(UserError, match=f"^{path}: {message}"):
        open_source([str(template), str(path)])


def test_a_flipped_byte_is_found_by_the_checksum(path: Path) -> None:
    with h5py.File(path) as file:
        chunk = file["dense"].id.get_chunk_info(2)
    with path.open("r+b") as raw:
        raw.seek(chunk.byte_offset + 100)
        byte = raw.read(1)[0]
        raw.seek(-1, 1)
        raw.write(bytes([byte ^ 1]))
    source = open_source([str(path)])
    source.read(0, 2 * CHUNK)
    with pytest.raises(DataError, match=f"^{path}: /dense, rows 120 to 140: .*damaged") as error:
        source.read(120, 140)
    assert error.value.exit_code == 3
    source.read(3 * CHUNK, ROWS)


@pytest.mark.parametrize("compression", layout.COMPRESSIONS)
@pytest.mark.parametrize("byte", [0, 255])
def test_a_chunk_of_equal_bytes_is_found_by_the_checksum(tmp_path: Path, compression: str, byte: int) -> None:
    """What a disk gives for a block that it has lost; the fletcher32 sum of both is valid."""
    path = Path(write(tmp_path / "a.h5", random_batch(ROWS), chunk_rows=CHUNK, compression=compression))
    with h5py.File(path) as file:
        chunks = [file[name].id.get_chunk_info(1) for name in ("dense", "ids/user", "label")]
    good = path.read_bytes()
    for chunk in chunks:
        lost = bytearray(good)
        lost[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes([byte]) * chunk.size
        path.write_bytes(lost)
        with pytest.raises(DataError, match=r"rows 64 to 128: .*damaged"):
            open_source([str(path)]).read(CHUNK, 2 * CHUNK)


def test_a_file_truncated_after_opening_is_named(template: Path, path: Path) -> None:
    source = open_source([str(template), str(path)])
    source.read(0, ROWS)
    with path.open("r+b") as raw:
        raw.truncate(path.stat().st_size // 2)
    with pytest.raises(DataError, match=f"^{path}: .*rows 0 to 400 .*damaged"):
        source.read(ROWS - 10, ROWS + 10)


def test_a_file_truncated_while_open_names_the_rows(path: Path) -> None:
    with h5py.File(path) as file:
        cut = min(
            file[name].id.get_chunk_info(5).byte_offset
            for name in ("ids/user", "dense", "label", "group", "time")
        )
    source = open_source([str(path)])
    source.read(0, CHUNK)
    with path.open("r+b") as raw:
        raw.truncate(cut)
    with pytest.raises(DataError, match=rf"^{path}: /[a-z/]+, rows 330 to 340: .*damaged"):
        source.read(330, 340)


def test_a_replaced_file_is_noticed(path: Path) -> None:
    source = open_source([str(path)])
    write(path, random_batch(ROWS // 2, optional=True))
    with pytest.raises(DataError, match=r"got 200 rows, expected rows 0 to 400 .*replaced while in use"):
        source.read(0, 10)


def poked(name: str, at: int | tuple[int, int], value: float) -> Callable[[h5py.File], object]:
    def edit(file: h5py.File) -> None:
        file[name][at] = value
        trust_nothing(file)

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (poked("dense", (123, 1), np.nan), "row 123: got nan in dense column 'dense_1'"),
        (poked("label", (123, 0), np.inf), "row 123: got inf in label"),
        (poked("label", (123, 0), 3), "row 123: got 3.0 in label 'label', expected 0 or 1"),
        (poked("weight", 123, -2), "row 123: got weight -2.0"),
        (poked("ids/tags/offsets", 124, 0), "/ids/tags/offsets, rows 100 to 150: offsets fall"),
        (poked("ids/tags/offsets", 124, 2**40), "/ids/tags/offsets, rows 100 to 150: offsets fall"),
        (
            lambda f: (replace("ids/user", np.where(np.arange(ROWS) == 123, -4, 4))(f), trust_nothing(f)),
            "/ids/user, rows 123 to 124: got id -4",
        ),
    ],
)
def test_bad_values_of_files_made_elsewhere_are_found_when_read(
    path: Path, edit: Callable[[h5py.File], object], message: str
) -> None:
    source = open_source([str(edited(path, edit))], binary_labels=True)
    source.read(0, 100)
    with pytest.raises(DataError, match=f"^{path}: {message}"):
        source.read(100, 150)
    source.read(150, ROWS)


def test_real_labels_are_fine_where_binary_ones_are_not_asked_for(path: Path) -> None:
    edited(path, poked("label", (123, 0), 3))
    assert open_source([str(path)]).read(123, 124).labels.tolist() == [[3]]
