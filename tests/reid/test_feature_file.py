"""Files of features: what goes in comes out, and what else there may be is refused."""

import json
import os

import numpy as np
import pytest

from reid.datasets import load_dataset
from reid.feature_file import FORMAT, FeatureSet, SavedFeatures, load_features, save_features
from tests.reid.crops import add_market

SETTINGS = {"flip": True, "scales": "1,1.1"}


@pytest.fixture
def dataset(tmp_path):
    return load_dataset(add_market(tmp_path / "m"), ("query", "gallery"))


@pytest.fixture
def saved(dataset):
    rng = np.random.default_rng(0)
    return SavedFeatures(
        {
            split: FeatureSet(rng.normal(size=(len(c), 6)).astype(np.float32), c.names, c.pids, c.camids)
            for split, c in dataset.splits.items()
        },
        "ab" * 32,
        SETTINGS,
        {split: crops.stamps() for split, crops in dataset.splits.items()},
    )


@pytest.fixture
def path(tmp_path, saved):
    save_features(tmp_path / "f.npz", saved)
    return tmp_path / "f.npz"


def test_round_trip(path, saved, dataset):
    loaded = load_features(path)
    assert (loaded.encoder, loaded.settings, loaded.source) == (saved.encoder, saved.settings, str(path))
    assert list(loaded.sets) == ["query", "gallery"]
    for split, one in loaded.sets.items():
        for name in ("features", "pids", "camids"):
            ours, theirs = getattr(one, name), getattr(saved.sets[split], name)
            np.testing.assert_array_equal(ours, theirs)
            assert ours.dtype == theirs.dtype
        assert one.names == saved.sets[split].names
        np.testing.assert_array_equal(loaded.stamps[split], saved.stamps[split])
    assert loaded.of(dataset.splits) == loaded.sets
    assert list(loaded.of({"gallery": dataset.gallery, "train": dataset.query})) == ["gallery"]
    loaded.check_origin("ab" * 32, SETTINGS)
    assert not list(path.parent.glob("*.part"))


def test_numpy_alone_reads_it(path):
    with np.load(path, allow_pickle=False) as arrays:
        names = ("features", "names", "pids", "camids", "stamps")
        assert set(arrays) == {"about"} | {f"{split}/{name}" for split in ("query", "gallery") for name in names}
        assert json.loads(str(arrays["about"]))["format"] == FORMAT


def test_an_older_file_outlives_a_failed_write(path, saved, monkeypatch):
    before = path.read_bytes()

    def full_disk(file, **arrays):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_features(path, saved)
    assert path.read_bytes() == before
    assert not list(path.parent.glob("*.part"))


def test_other_origins_are_refused(path):
    loaded = load_features(path)
    with pytest.raises(
        ValueError, match=r"f\.npz: features of other weights \(SHA-256 abababababab, not cdcdcdcdcdcd\)"
    ):
        loaded.check_origin("cd" * 32, SETTINGS)
    with pytest.raises(ValueError, match=r"f\.npz: features made with flip True, not False; name another file"):
        loaded.check_origin("ab" * 32, SETTINGS | {"flip": False})
    with pytest.raises(ValueError, match="made with fuse unknown, not True"):
        loaded.check_origin("ab" * 32, SETTINGS | {"fuse": True})


def test_other_data_are_refused(path, dataset):
    loaded, gallery = load_features(path), dataset.gallery
    with pytest.raises(ValueError, match=r"f\.npz: features of other data \(gallery: 18 images, not 17\)"):
        loaded.of({"gallery": gallery.select(np.arange(17))})
    with pytest.raises(ValueError, match=r"gallery: \S+/-1_c1\S+ \(pid -1, camera 1\), not \S+/0000_c2\S+ \(pid 0,"):
        loaded.of({"gallery": gallery.select(np.r_[1, 0, 2:18])})
    gallery.camids[4] = 9
    with pytest.raises(ValueError, match=r"camera \d\), not .*camera 9\)"):
        loaded.of({"gallery": gallery})


def test_images_that_have_changed_are_refused(path, dataset):
    loaded, image = load_features(path), dataset.gallery.paths[3]
    content, before = image.read_bytes(), image.stat().st_mtime_ns
    changed = r"f\.npz: features of other data \(gallery: \S+/0001_\S+ has changed since, by size and time of change\)"
    os.utime(image, ns=(0, before + 1))
    with pytest.raises(ValueError, match=changed):
        loaded.of(dataset.splits)
    image.write_bytes(content + b" ")
    os.utime(image, ns=(0, before))
    with pytest.raises(ValueError, match=changed):
        loaded.of(dataset.splits)
    image.write_bytes(content)
    os.utime(image, ns=(0, before))
    assert loaded.of(dataset.splits) == loaded.sets


def arrays_of(path):
    with np.load(path) as arrays:
        return dict(arrays)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"about": None}, "it has no description"),
        ({"about": np.array("{")}, "Expecting property name"),
        ({"about": np.array(json.dumps({"format": "other"}))}, f"expected the format {FORMAT}"),
        ({"about": np.array(json.dumps({"format": FORMAT}))}, "splits"),
        ({"query/features": None}, "query/features"),
        ({"query/features": np.zeros((8, 6))}, r"features: expected float32 \(N, D\), got float64"),
        ({"query/features": np.zeros((7, 6), np.float32)}, "names: expected 7, one for each feature, got 8"),
        ({"query/pids": np.zeros(3, np.int64)}, r"pids: expected int64 \(8,\)"),
        ({"query/camids": np.zeros(8, np.int32)}, r"camids: expected int64 \(8,\), .* got int32"),
        ({"query/names": np.array(["a", 1, None], object)}, "Object arrays cannot be loaded"),
        ({"query/features": np.zeros((8, 5), np.float32)}, "of one length in all splits"),
        ({"query/features": np.zeros((8, 6), np.float32)}, "finite and not zero, got length 0 of query query/0001_"),
        ({"query/features": np.full((8, 6), np.nan, np.float32)}, "finite and not zero, got length nan of query"),
        ({"query/stamps": np.zeros((7, 2), np.int64)}, r"stamps: expected int64 \(8, 2\) of query, got int64 \(7, 2\)"),
    ],
)
def test_wrong_contents(path, change, message):
    arrays = arrays_of(path) | change
    with path.open("wb") as file:
        np.savez(file, **{name: value for name, value in arrays.items() if value is not None})
    with pytest.raises(ValueError, match=rf"^{path}: expected features written by eval_reid\.py.*{message}"):
        load_features(path)


def test_other_files(tmp_path, path):
    with pytest.raises(ValueError, match="no such file"):
        load_features(tmp_path / "no.npz")
    for content in (b"", b"text", path.read_bytes()[:300], path.read_bytes()[:-40]):
        (tmp_path / "x.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.npz: expected features written by eval_reid\.py"):
            load_features(tmp_path / "x.npz")
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"this is no \.npz"):
        load_features(tmp_path / "x.npy")
