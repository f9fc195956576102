"""Reading the Market-1501 layout."""

from pathlib import Path

import pytest

from reid.datasets import MARKET_FOLDERS, read_market


def make_files(root: Path, split: str, *names: str) -> Path:
    folder = root / MARKET_FOLDERS[split]
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    return folder


def test_names_give_identity_and_camera(tmp_path):
    make_files(
        tmp_path,
        "gallery",
        "-1_c3s2_000401_03.jpg",
        "0000_c6s4_002202_01.jpg",
        "0002_c1s1_000451_03.jpg.jpg",  # the original archive has names like this one
        "0007_c15s1_000001_00.PNG",
        "1041_c02_f0046182.jpeg",
        "Thumbs.db",
    )
    images = read_market(tmp_path, "gallery")
    assert [path.name[:4] for path in images.paths] == ["-1_c", "0000", "0002", "0007", "1041"]
    assert images.pids.tolist() == [-1, 0, 2, 7, 1041]
    assert images.camids.tolist() == [3, 6, 1, 15, 2]
    assert (images.pids.dtype, images.camids.dtype, len(images)) == ("int64", "int64", 5)


@pytest.mark.parametrize(
    ("split", "folder"), [("train", "bounding_box_train"), ("query", "query"), ("gallery", "bounding_box_test")]
)
def test_each_split_reads_its_folder(tmp_path, split, folder):
    for position, other in enumerate(MARKET_FOLDERS):
        make_files(tmp_path, other, f"000{position}_c1s1_000001_00.png")
    assert {path.parent.name for path in read_market(tmp_path, split).paths} == {folder}


@pytest.mark.parametrize(
    "name", ["person.jpg", "0002_000451_03.jpg", "-2_c1s1_000451_03.jpg", "0002_cXs1_000451.jpg", "c1s1_0002.jpg"]
)
def test_name_without_labels_is_named(tmp_path, name):
    folder = make_files(tmp_path, "query", "0001_c1s1_000001_00.jpg", name)
    with pytest.raises(ValueError, match="expected a name like 0002_c1s1_000451_03") as error:
        read_market(tmp_path, "query")
    assert str(folder / name) in str(error.value)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="bounding_box_train: expected a folder of train images"):
        read_market(tmp_path, "train")


def test_folder_without_images_is_named(tmp_path):
    make_files(tmp_path, "query", "Thumbs.db")
    with pytest.raises(ValueError, match="query: expected images"):
        read_market(tmp_path, "query")


def test_unknown_split_is_named(tmp_path):
    with pytest.raises(ValueError, match="split: expected one of train, query, gallery, got 'test'"):
        read_market(tmp_path, "test")


@pytest.mark.shared
def test_reads_real_data(shared: Path):
    root = shared / "data" / "reid" / "pku_market_layout"
    train, query, gallery = (read_market(root, split) for split in MARKET_FOLDERS)
    assert (len(train), len(query), len(gallery)) == (992, 24, 168)
    assert (len(set(train.pids)), len(set(query.pids))) == (62, 12)
    assert set(query.pids) == set(gallery.pids)
    assert not set(train.pids) & set(query.pids)
    assert set(train.camids) == set(query.camids) == {1, 2}
