"""Files that take data from elsewhere, or whose data was never written, are refused in one line."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from persia_hpc.errors import UserError
from persia_hpc.samples.containment import StorageError, check_contained
from persia_hpc.samples.names import open_to_read
from persia_hpc.samples.source import open_source
from tests.support.samples import assert_equal, random_batch, write

ROWS = 100
SECRET = 4_242


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A dataset file, beside one that is none of the reader's business and a pipe that nobody writes into."""
    (tmp_path / "secret.bin").write_bytes(np.full(ROWS, SECRET, np.uint64).tobytes())
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["user"] = np.full(ROWS, SECRET, np.uint64)
        file["label"] = np.ones((ROWS, 1), np.float32)
    os.mkfifo(tmp_path / "pipe.h5")
    return Path(write(tmp_path / "data.h5", random_batch(ROWS), chunk_rows=16))


def external_link(file: h5py.File) -> None:
    file["ids/user"] = h5py.ExternalLink("secret.h5", "/user")


def link_to_a_pipe(file: h5py.File) -> None:  # opening it would wait for ever
    file["ids/user"] = h5py.ExternalLink("pipe.h5", "/user")


def link_by_way_of_a_link(file: h5py.File) -> None:
    file["other"] = h5py.ExternalLink("secret.h5", "/")
    file["ids/user"] = h5py.SoftLink("/other/user")


def link_to_a_link_inside(file: h5py.File) -> None:
    file["one"] = h5py.SoftLink("/dense")
    file["ids/user"] = h5py.SoftLink("/one")


def virtual(source: str) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        layout = h5py.VirtualLayout((ROWS,), np.uint64)
        layout[:] = h5py.VirtualSource(source, "user", (ROWS,), np.uint64)
        file.create_virtual_dataset("ids/user", layout)

    return edit


def external_storage(file: h5py.File) -> None:
    file.create_dataset("ids/user", (ROWS,), np.uint64, external=[("secret.bin", 0, ROWS * 8)])


REFERRING = {
    "external link": (external_link, "link into another file"),
    "pipe": (link_to_a_pipe, "link into another file"),
    "soft link into a link": (link_by_way_of_a_link, "link"),
    "soft link to a link": (link_to_a_link_inside, "a link to a link"),
    "virtual": (virtual("secret.h5"), "virtual dataset"),
    "virtual without its source": (virtual("absent.h5"), "virtual dataset"),
    "external storage": (external_storage, "external storage"),
}


@pytest.mark.parametrize("kind", REFERRING)
def test_data_from_elsewhere_is_refused_with_the_way_out(path: Path, kind: str) -> None:
    edit, message = REFERRING[kind]
    with h5py.File(path, "r+") as file:
        del file["ids/user"]
        edit(file)
    with pytest.raises(UserError) as error:
        open_source([str(path)])
    text = str(error.value)
    assert text.startswith(f"{path}: /")
    assert message in text
    assert "h5repack" in text
    assert "\n" not in text


@pytest.mark.parametrize("where", ["ids", "label", "ids/tags/values", "zz"])
def test_a_link_anywhere_is_named_and_not_opened(path: Path, where: str) -> None:
    with h5py.File(path, "r+") as file:
        if where in file:
            del file[where]
        file[where] = h5py.ExternalLink("pipe.h5", "/")
    with pytest.raises(StorageError, match=f"^{path}: /{where}: "):
        open_to_read(str(path))


def test_a_group_with_a_second_name_is_searched_to_its_full_depth(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["aa/bb"] = file["ids"]  # comes first, and is deeper
        del file["ids/tags/values"]
        file["ids/tags/values"] = h5py.ExternalLink("secret.h5", "/user")
    with pytest.raises(StorageError, match="/tags/values: got a link into another file"):
        open_to_read(str(path))


def test_soft_links_within_a_file_and_circles_are_fine(path: Path) -> None:
    expected = open_source([str(path)]).read(0, ROWS)
    with h5py.File(path, "r+") as file:
        file["there/user"] = file["ids/user"]
        del file["ids/user"]
        file["ids/user"] = h5py.SoftLink("/there/./user")
        file["ids/tags/x"] = h5py.SoftLink("../nowhere")
        file["there/again"] = file["/"]
        file["there/self"] = file["there"]
    with open_to_read(str(path)) as file:
        check_contained(file)
    assert_equal(open_source([str(path)], features=["user", "tags"]).read(0, ROWS), expected)


@pytest.mark.parametrize("name", ["ids/user", "ids/tags/offsets", "label", "dense"])
@pytest.mark.parametrize("layout", ["chunked", "contiguous", "compact"])
def test_data_never_written_is_refused(path: Path, name: str, layout: str) -> None:
    with h5py.File(path, "r+") as file:
        old = file[name][()]
        del file[name]
        made = file.create_dataset(name, old.shape, old.dtype, chunks=layout == "chunked" or None)
        if layout == "compact":  # such data is in the header, always
            del file[name]
            plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plist.set_layout(h5py.h5d.COMPACT)
            space = h5py.h5s.create_simple(old.shape)
            made = h5py.Dataset(
                h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(old.dtype), space, plist)
            )
            made[...] = old
        assert made.shape == old.shape
    if layout == "compact":
        assert open_source([str(path)]).num_samples == ROWS
        return
    with pytest.raises(UserError, match=f"^{path}: /{name}: got a dataset of shape .*written, expected"):
        open_source([str(path)])


def test_a_single_chunk_that_is_missing_is_refused(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        old = file["label"][()]
        del file["label"]
        file.create_dataset("label", old.shape, old.dtype, chunks=(16, 1), fletcher32=True)
        file["label"][:32] = old[:32]
        file["label"][48:] = old[48:]
    with pytest.raises(UserError, match=r"/label: .* with 6 of 7 chunks written, expected all"):
        open_source([str(path)])
    with h5py.File(path, "r+") as file:
        file["label"][32:48] = old[32:48]
    assert open_source([str(path)]).num_samples == ROWS


@pytest.mark.parametrize("chunks", [None, True, (2**14,)])
def test_rows_claimed_with_nothing_behind_them_are_refused_at_once(tmp_path: Path, chunks: object) -> None:
    path = tmp_path / "huge.h5"
    with h5py.File(path, "w") as file:
        file.attrs["schema_version"] = 1
        shape = (2**40,)
        file.create_dataset("ids/user", shape, np.uint32, chunks=chunks)
        width = None if chunks is None else (2**14, 1)
        file.create_dataset("label", (*shape, 1), np.float32, chunks=width)
    begun = time.monotonic()
    with pytest.raises(UserError, match=r"/label: got a dataset of shape .*written, expected"):
        open_source([str(path)])
    assert time.monotonic() - begun < 5


def test_a_file_with_very_deep_groups_is_read_quickly(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        group = file
        for _ in range(2000):
            group = group.create_group("g")
    begun = time.monotonic()
    assert open_source([str(path)]).num_samples == ROWS
    assert time.monotonic() - begun < 5


def test_a_feature_name_leads_nowhere_else(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["a/b/c/d"] = np.zeros(ROWS, np.uint64)
        file.attrs["feature_names"] = ["../a/b/c/d"]
    with pytest.raises(UserError, match=r"attribute feature_names: got '\.\./a/b/c/d', expected names"):
        open_source([str(path)])
