"""Crops and data sets: labels, images of all kinds, reading from processes and threads."""

import io
import os
import pickle
import re
import struct
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from reid.datasets import DISTRACTOR_PID, JUNK_PID, Crops, load_dataset, load_images
from reid.layouts import MARKET_FOLDERS, UNKNOWN_CAMID


def make_files(root: Path, split: str, *names: str) -> Path:
    folder = root / MARKET_FOLDERS[split]
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    return folder


def crops_of(tmp_path: Path, zipped: bool, **images: bytes) -> Crops:
    """A training split of images called by their keyword, from a folder or an archive."""
    files = {f"{i:04}_c1_{name.replace('_', '.')}": data for i, (name, data) in enumerate(images.items(), 1)}
    if zipped:
        with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(f"own/{name}", data)
        return load_dataset(tmp_path / "a.zip").train
    (tmp_path / "own").mkdir()
    for name, data in files.items():
        (tmp_path / "own" / name).write_bytes(data)
    return load_dataset(tmp_path / "own").train


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    """A smooth picture, 20 wide and 41 high."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 4, 3), np.uint8)
    return Image.fromarray(cv2.resize(noise, (20, 41), interpolation=cv2.INTER_CUBIC))


both = pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])


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
        "._0002_c1s1_000451_03.jpg",
    )
    crops = load_dataset(tmp_path, ("gallery",)).gallery
    assert [path.name[:4] for path in crops.paths] == ["-1_c", "0000", "0002", "0007", "1041"]
    assert crops.pids.tolist() == [JUNK_PID, DISTRACTOR_PID, 2, 7, 1041]
    assert crops.camids.tolist() == [3, 6, 1, 15, 2]
    assert (crops.pids.dtype, crops.camids.dtype, len(crops)) == ("int64", "int64", 5)


@pytest.mark.parametrize(
    ("split", "folder"), [("train", "bounding_box_train"), ("query", "query"), ("gallery", "bounding_box_test")]
)
def test_each_split_reads_its_folder(tmp_path, split, folder):
    for position, other in enumerate(MARKET_FOLDERS):
        make_files(tmp_path, other, f"000{position}_c1s1_000001_00.png")
    assert {path.parent.name for path in load_dataset(tmp_path, (split,)).splits[split].paths} == {folder}


def test_unknown_split_is_named(tmp_path):
    make_files(tmp_path, "train", "0001_c1.png")
    with pytest.raises(ValueError, match="splits: expected some of train, query, gallery, got 'test'"):
        load_dataset(tmp_path, ("test",))


def test_select_by_mask_and_by_places(tmp_path):
    make_files(tmp_path, "gallery", "-1_c1.png", "0000_c2.png", "0003_c3.png", "0004_c4.png")
    crops = load_dataset(tmp_path, ("gallery",)).gallery
    people = crops.select(crops.pids > DISTRACTOR_PID)
    assert (people.pids.tolist(), people.camids.tolist(), len(people.names)) == ([3, 4], [3, 4], 2)
    assert crops.select(np.array([3, 0])).pids.tolist() == [4, -1]
    assert len(crops.select(crops.pids > 99)) == 0


@both
def test_every_kind_of_image_becomes_8_bit_bgr(tmp_path, zipped, scene):
    rgb = np.asarray(scene)
    grey16 = (rgb[..., 0].astype(np.uint16) << 8) + 7
    upright = Image.Exif()
    upright[274] = 6  # stored on its side
    cases = {
        "rgb_png": (encoded(scene, "PNG"), rgb, 0),
        "rgb_bmp": (encoded(scene, "BMP"), rgb, 0),
        "rgb_webp": (encoded(scene, "WEBP", lossless=True), rgb, 0),
        "rgba_png": (encoded(scene.convert("RGBA"), "PNG"), rgb, 0),
        "rgb16_png": (cv2.imencode(".png", rgb[..., ::-1].astype(np.uint16) * 257)[1].tobytes(), rgb, 0),
        "grey16_png": (cv2.imencode(".png", grey16)[1].tobytes(), np.repeat(rgb[..., :1], 3, 2), 0),
        "grey_png": (encoded(scene.convert("L"), "PNG"), np.asarray(scene.convert("L").convert("RGB")), 0),
        "one_png": (encoded(scene.convert("1"), "PNG"), np.asarray(scene.convert("1").convert("RGB")), 0),
        "palette_png": (encoded(scene.quantize(9), "PNG"), np.asarray(scene.quantize(9).convert("RGB")), 0),
        "rgb_jpg": (encoded(scene, "JPEG", quality=95), rgb, 4),
        "grey_jpg": (encoded(scene.convert("L"), "JPEG"), np.asarray(scene.convert("L").convert("RGB")), 4),
        "cmyk_jpg": (encoded(scene.convert("CMYK"), "JPEG", quality=95), rgb, 6),
        "side_png": (encoded(scene.transpose(Image.Transpose.ROTATE_90), "PNG", exif=upright), rgb, 0),
        "pixel_png": (encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG"), np.array([[[1, 2, 3]]]), 0),
        "pixel_jpg": (encoded(Image.new("L", (1, 1), 9), "JPEG"), np.full((1, 1, 3), 9), 2),
    }
    crops = crops_of(tmp_path, zipped, **{name: data for name, (data, _, _) in cases.items()})
    for i, (name, (_, expected, tolerance)) in enumerate(cases.items()):
        image = crops.read(i)
        assert (image.dtype, image.shape) == (np.uint8, expected.shape), name
        assert image.flags["C_CONTIGUOUS"]
        assert np.abs(image[..., ::-1].astype(int) - expected).mean() <= tolerance, name


@both
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP"])
def test_cut_image_is_named(tmp_path, zipped, scene, kind):
    whole = encoded(scene, kind)
    parts = [whole[: round(len(whole) * share)] for share in (0.1, 0.5, 0.9)]
    suffix = kind.lower()
    crops = crops_of(tmp_path, zipped, **{f"{i}_{suffix}": part for i, part in enumerate(parts)})
    for i in range(len(parts)):
        with pytest.raises(ValueError, match=r"not a whole image|not an image") as error:
            crops.read(i)
        assert str(error.value).startswith(
            f"{tmp_path / 'a.zip' if zipped else tmp_path}/own/000{i + 1}_c1_{i}.{suffix}: "
        )


@both
def test_jpeg_cut_anywhere_is_never_read(tmp_path, zipped, scene):
    whole = encoded(scene, "JPEG")
    crops = crops_of(tmp_path, zipped, **{f"{n:04}_jpg": whole[:n] for n in range(1, len(whole), 7)})
    for i in range(len(crops)):
        with pytest.raises(ValueError, match=f"{i * 7 + 1:04}.jpg: "):
            crops.read(i)


@both
def test_empty_and_foreign_files_are_named(tmp_path, zipped):
    crops = crops_of(tmp_path, zipped, a_jpg=b"", b_png=b"hello")
    with pytest.raises(ValueError, match=r"own/0001_c1_a\.jpg: empty file"):
        crops.read(0)
    with pytest.raises(ValueError, match=r"own/0002_c1_b\.png: not an image"):
        crops.read(1)


def test_file_that_vanished_is_named(tmp_path, scene):
    crops = crops_of(tmp_path, False, a_png=encoded(scene, "PNG"))
    crops.paths[0].unlink()
    with pytest.raises(ValueError, match=r"0001_c1_a\.png: cannot be read \(No such file"):
        crops.read(0)


def test_damaged_and_locked_members_are_named(tmp_path, scene):
    data = encoded(scene, "BMP")
    crops = crops_of(tmp_path, True, a_bmp=data, b_bmp=data)
    path = tmp_path / "a.zip"
    content = bytearray(path.read_bytes())
    content[60:64] = b"\0\0\0\0"  # inside of the first member's data
    directory = content.rindex(b"PK\x01\x02")  # the last member's entry
    struct.pack_into("<H", content, directory + 8, 1)  # says that it is encrypted
    path.write_bytes(content)
    crops = load_dataset(path).train
    with pytest.raises(ValueError, match=r"a\.zip/own/0001_c1_a\.bmp: cannot be unpacked"):
        crops.read(0)
    with pytest.raises(ValueError, match=r"a\.zip/own/0002_c1_b\.bmp: cannot be unpacked \(.*encrypted"):
        crops.read(1)


class Numbers:
    """A data set for workers: the sum of each image."""

    def __init__(self, crops: Crops):
        self.crops = crops

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, index: int) -> int:
        return int(self.crops.read(index).sum())


@pytest.fixture
def many(tmp_path):
    rng = np.random.default_rng(1)
    pictures = [Image.fromarray(rng.integers(0, 256, (40, 20, 3), np.uint8)) for _ in range(60)]
    crops = crops_of(tmp_path, True, **{f"{i:03}_png": encoded(picture, "PNG") for i, picture in enumerate(pictures)})
    return crops, [int(np.asarray(picture).sum()) for picture in pictures]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_archive_is_read_by_worker_processes(many, start):
    crops, sums = many
    assert crops.read(0).sum() == sums[0]  # the parent has it open
    if start == "spawn":
        crops = pickle.loads(pickle.dumps(crops))
        assert [Numbers(crops)[i] for i in range(len(crops))] == sums
    else:
        loader = DataLoader(Numbers(crops), batch_size=3, num_workers=2, multiprocessing_context="fork")
        for _ in range(2):
            assert [value for batch in loader for value in batch.tolist()] == sums


def test_archive_is_read_by_threads(many):
    crops, sums = many
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(Numbers(crops).__getitem__, list(range(60)) * 5)) == sums * 5


def test_an_image_is_found_by_its_name(tmp_path):
    make_files(tmp_path, "query", "0001_c1s1_1.jpg", "0002_c1s1_1.jpg")
    query = load_dataset(tmp_path, ("query",)).query
    for name in ("query/0002_c1s1_1.jpg", "0002_c1s1_1.jpg", "0002_c1s1_1"):
        assert query.find(name) == 1
    with pytest.raises(ValueError, match=r"expected the name of an image, such as query/0001_c1s1_1\.jpg, got '0002'"):
        query.find("0002")


def test_an_archive_that_would_fill_the_memory(tmp_path):
    """A megabyte that unpacks to a gigabyte."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0001_c1.png", b"")
        archive.writestr("0002_c1.png", bytes(1000))
    content = bytearray((tmp_path / "a.zip").read_bytes())
    entry = content.rindex(b"PK\x01\x02")
    struct.pack_into("<L", content, entry + 24, 2**30)  # the size that the table of contents gives
    (tmp_path / "a.zip").write_bytes(content)
    train = load_dataset(tmp_path / "a.zip").train
    with pytest.raises(ValueError, match=r"a\.zip/0002_c1\.png: expected at most 256 MiB unpacked, got 1,024"):
        train.read(1)


@both
def test_images_of_any_name(tmp_path, scene, zipped):
    files = {
        "holiday 1.JPG": encoded(scene, "JPEG"),
        "deep/er/0002_c3_1.png": encoded(scene, "PNG"),
        "deep/ü.webp": encoded(scene, "WEBP"),
        "notes.txt": b"x",
        ".hidden/a.png": b"x",
        "deep/._b.png": b"x",
        "__MACOSX/c.png": b"x",
    }
    for name, data in files.items():
        (tmp_path / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / name).write_bytes(data)
    (tmp_path / "own" / "deep" / "round").symlink_to(tmp_path / "own")
    if zipped:
        with zipfile.ZipFile(tmp_path / "own.zip", "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    crops = load_images(tmp_path / ("own.zip" if zipped else "own"))
    assert crops.names == ("deep/er/0002_c3_1.png", "deep/ü.webp", "holiday 1.JPG")
    assert crops.pids.tolist() == [JUNK_PID] * 3
    assert crops.camids.tolist() == [UNKNOWN_CAMID] * 3
    assert (crops.pids.dtype, crops.camids.dtype) == ("int64", "int64")
    assert crops.read(0).shape == (41, 20, 3)
    below = load_images(tmp_path / ("own.zip" if zipped else "own") / "deep")
    assert below.names == ("er/0002_c3_1.png", "ü.webp")
    assert np.array_equal(below.read(0), crops.read(0))


def test_no_images_at_all(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"expected images \(\.jpg, .*\), found none$"):
        load_images(tmp_path)
    (tmp_path / "images.tar").touch()
    with pytest.raises(ValueError, match=r"found none; unpack images\.tar first"):
        load_images(tmp_path)
    with pytest.raises(ValueError, match="none: no such file or folder"):
        load_images(tmp_path / "none")


def test_pickle_of_an_archive_is_small(many):
    assert len(pickle.dumps(many[0].store)) < 1000


@pytest.mark.shared
def test_reads_real_data_from_folder_and_archive(shared: Path, tmp_path):
    root = shared / "data" / "reid" / "pku_market_layout"
    with zipfile.ZipFile(tmp_path / "pku.zip", "w") as archive:
        for path in root.rglob("*.png"):
            archive.write(path, Path("pku") / path.relative_to(root))
    folder, packed = load_dataset(root), load_dataset(tmp_path / "pku.zip")
    for dataset in (folder, packed):
        train, query, gallery = dataset.train, dataset.query, dataset.gallery
        assert (dataset.layout, len(train), len(query), len(gallery)) == ("market1501", 992, 24, 168)
        assert (len(set(train.pids)), len(set(query.pids))) == (62, 12)
        assert set(query.pids) == set(gallery.pids)
        assert not set(train.pids) & set(query.pids)
        assert set(train.camids) == set(query.camids) == {1, 2}
        assert dataset.multi_query is None
    assert folder.train.names == packed.train.names
    for i in range(0, 992, 99):
        image = packed.train.read(i)
        np.testing.assert_array_equal(image, cv2.imread(str(folder.train.paths[i])))
        assert image.shape == (128, 48, 3)


def test_what_is_called_like_an_image_but_is_none(tmp_path):
    """A link to nothing, a pipe that nobody writes to, a folder."""
    (tmp_path / "0001_c1.png").symlink_to(tmp_path / "gone.png")
    os.mkfifo(tmp_path / "0002_c1.png")
    (tmp_path / "0003_c1.png").mkdir()
    crops = load_dataset(f"folder:{tmp_path}").train
    for i, message in enumerate(("cannot be read (No such file", "expected a file, got a pipe", "got a folder")):
        with pytest.raises(ValueError, match=f"^{crops.paths[i]}: .*{re.escape(message)}"):
            crops.read(i)
    with pytest.raises(ValueError, match=f"^{crops.paths[0]}: cannot be read"):
        crops.stamps()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_is_as_good_as_none(tmp_path, scene):
    tags = Image.Exif()
    tags[274], tags[305] = 6, "software"
    data = bytearray(encoded(scene, "PNG", exif=tags))
    start = data.index(b"eXIf") + 4
    data[start + 4 : start + 8] = b"\xff\xff\xff\x7f"  # where the tags are said to begin
    length = struct.unpack_from(">L", data, start - 8)[0]
    struct.pack_into(">L", data, start + length, zlib.crc32(data[start - 4 : start + length]))
    np.testing.assert_array_equal(crops_of(tmp_path, False, a_png=bytes(data)).read(0)[..., ::-1], np.asarray(scene))


@pytest.mark.parametrize("error", [struct.error("x"), TypeError("x"), OverflowError("x"), AttributeError("x")])
def test_whatever_a_reader_of_images_raises_names_the_file(tmp_path, scene, monkeypatch, error):
    crops = crops_of(tmp_path, False, a_png=encoded(scene, "PNG"))
    monkeypatch.setattr(Image.Image, "getexif", lambda self: (_ for _ in ()).throw(error))
    np.testing.assert_array_equal(crops.read(0)[..., ::-1], np.asarray(scene))
    monkeypatch.setattr(Image, "open", lambda file: (_ for _ in ()).throw(error))
    with pytest.raises(ValueError, match=r"0001_c1_a\.png: not a whole image \(x\)"):
        crops.read(0)


def test_damaged_lzma_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("0001_c1.png", bytes(range(256)) * 40)
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[45] = 0xFF  # the first byte of lzma's own settings
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.zip/0001_c1\.png: cannot be unpacked"):
        load_dataset(tmp_path / "a.zip").train.read(0)


@both
def test_stamps_tell_that_an_image_has_changed(tmp_path, zipped, scene):
    images = {"a_png": encoded(scene, "PNG"), "b_png": encoded(scene.convert("L"), "PNG")}
    crops = crops_of(tmp_path, zipped, **images)
    stamps = crops.stamps()
    assert (stamps.shape, stamps.dtype) == ((2, 2), np.int64)
    assert stamps[:, 0].tolist() == [len(data) for data in images.values()]
    if zipped:
        assert stamps[:, 1].tolist() == [zlib.crc32(data) for data in images.values()]
    else:
        os.utime(crops.paths[1], ns=(0, 5))
        assert (crops.stamps() != stamps).tolist() == [[False, False], [False, True]]
