"""Every layout as folder and as archive, and what is said of wrong and partial ones."""

import io
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from reid.datasets import load_dataset
from reid.ranking import evaluate_ranking


def picture(number: int = 0, kind: str = "PNG") -> bytes:
    """A tiny image, of a colour that tells its number."""
    data = io.BytesIO()
    Image.new("RGB", (4, 8), (number % 256, number // 256, 77)).save(data, kind)
    return data.getvalue()


def files_of(*names: str) -> dict[str, bytes]:
    return {name: picture(i) for i, name in enumerate(names)}


MARKET = files_of(
    "bounding_box_train/0002_c1s1_000451_03.jpg",
    "bounding_box_train/0002_c3s1_000551_00.jpg",
    "bounding_box_train/0007_c2s3_070952_01.jpg",
    "query/0001_c1s1_001051_00.jpg",
    "query/0001_c2s1_000301_00.jpg",
    "bounding_box_test/-1_c3s2_000401_03.jpg",
    "bounding_box_test/0000_c6s4_002202_01.jpg",
    "bounding_box_test/0001_c1s1_001051_03.jpg",
    "bounding_box_test/0001_c2s1_000301_03.jpg.jpg",  # the original archive has names like this one
    "gt_bbox/0001_c1s1_001051_00.jpg",
    "gt_bbox/0001_c6s1_001051_00.jpg",  # of no query: nobody asks for this camera
    "gt_bbox/0002_c1s1_000451_00.jpg",
) | {"query/Thumbs.db": b"x", "readme.txt": b"x", "gt_query/0001_c1s1_001051_00_good.mat": b"x"}
MSMT17_NAMES = (
    "train/0000/0000_000_01_0303morning_0008_0.jpg",
    "train/0000/0000_001_14_0303morning_0008_0.jpg",
    "train/0001/0001_000_05_0303noon_0008_0.jpg",
    "test/0000/0000_000_15_0303morning_0015_0.jpg",
    "test/0000/0000_001_02_0303morning_0015_0.jpg",
    "test/0001/0001_000_10_0113afternoon_0015_0.jpg",
)
MSMT17_LISTS = {
    "list_train.txt": b"0000/0000_000_01_0303morning_0008_0.jpg 0\n0000/0000_001_14_0303morning_0008_0.jpg 0\n",
    "list_val.txt": b"0001/0001_000_05_0303noon_0008_0.jpg 1\n",
    "list_query.txt": b"0000/0000_000_15_0303morning_0015_0.jpg 0\n",
    "list_gallery.txt": b"0000/0000_001_02_0303morning_0015_0.jpg 0\r\n0001/0001_000_10_0113afternoon_0015_0.jpg 1\r\n",
}
MSMT17_V1 = files_of(*MSMT17_NAMES) | MSMT17_LISTS
MSMT17_V2 = {re.sub("^(train|test)", r"mask_\1_v2", name): data for name, data in MSMT17_V1.items()}
CUHK03_NAMES = ("1_001_1_01.png", "1_001_2_06.png", "2_440_1_02.png", "1_843_1_01.png", "1_843_2_10.png")


def cuhk03_mat(**changes: object) -> bytes:
    cells = np.empty((len(CUHK03_NAMES), 1), object)
    cells[:, 0] = CUHK03_NAMES
    fields = {"filelist": cells, "train_idx": [[1], [2], [3]], "query_idx": [[4]], "gallery_idx": [[5]]}
    data = io.BytesIO()
    savemat(data, fields | changes)
    return data.getvalue()


def cuhk03_json() -> bytes:
    rows = [[f"D:\\reid\\cuhk03\\images_labeled\\{name}", i, 0] for i, name in enumerate(CUHK03_NAMES)]
    return json.dumps([{"train": rows[:3], "query": rows[3:4], "gallery": rows[4:]}]).encode()


CUHK03 = files_of(*(f"images_labeled/{name}" for name in CUHK03_NAMES))
CUHK03_NP = {f"{kind}/{name}": data for kind in ("labeled", "detected") for name, data in MARKET.items()}
VERI = files_of(
    "image_train/0001_c001_00016450_0.jpg",
    "image_train/0001_c020_00016460_0.jpg",
    "image_query/0002_c002_00030600_0.jpg",
    "image_test/0002_c011_00030600_0.jpg",
    "image_test/0005_c012_00030600_0.jpg",
)
VERI_LISTS = {
    "name_train.txt": b"0001_c001_00016450_0.jpg\n0001_c020_00016460_0.jpg\n",
    "name_query.txt": b"0002_c002_00030600_0.jpg\n",
    "name_test.txt": b"0005_c012_00030600_0.jpg\n0002_c011_00030600_0.jpg\n",
}
VEHICLEID = files_of(*(f"image/{number:07}.jpg" for number in range(1, 13))) | {
    "train_test_split/train_list.txt": b"0000001 17\n0000002 17\n0000003 4\n",
    "train_test_split/test_list_800.txt": b"0000004 9\n0000005 9\n0000006 9\n0000007 21\n0000008 21\n0000009 30\n",
    "train_test_split/test_list_1600.txt": b"0000010 9\n0000011 9\n",
}
VIPER_PIDS = (0, 1, 2, 7, 9, 300, 872, 873)
VIPER = {
    f"cam_{c}/{pid:03}_{angle}.bmp": picture(pid, "BMP") for c, angle in (("a", 45), ("b", 90)) for pid in VIPER_PIDS
}
OWN = files_of("train/0001_c1_a.png", "train/0001_c12_b.png", "query/0002_c1.png", "gallery/0002_c2_x.webp")
TABLE = {
    "labels.csv": b"\xef\xbb\xbfpath, pid, camid, split\na/x.png,5,1,train\n a/y.png ,5,2,train\n"
    b"b z.png,6,1,query\na/w.png,6,2,gallery\na/v.png,-1,2,Gallery\n",
    **files_of("a/x.png", "a/y.png", "b z.png", "a/w.png", "a/v.png"),
}


def write_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


@pytest.fixture(params=["folder", "folder below", "zip", "zip below"])
def pack(request, tmp_path):
    """Writes the files of a data set in one of four ways."""

    def write(files: dict[str, bytes]) -> Path:
        if "below" in request.param:
            files = {f"Market-1501-v15.09.15/{name}": data for name, data in files.items()}
            files |= {
                "__MACOSX/Market-1501-v15.09.15/query/._0001_c1s1_1.jpg": b"x",
                "__MACOSX/query/x": b"",
                ".DS_Store": b"",
            }
        return write_zip(tmp_path / "a.zip", files) if "zip" in request.param else write_folder(tmp_path / "a", files)

    return write


def counts(dataset):
    """Split -> images, pids and cameras."""
    return {
        split: (len(crops), sorted(set(crops.pids.tolist())), sorted(set(crops.camids.tolist())))
        for split, crops in dataset.splits.items()
    }


MARKET_COUNTS = {
    "train": (3, [2, 7], [1, 2, 3]),
    "query": (2, [1], [1, 2]),
    "gallery": (4, [-1, 0, 1], [1, 2, 3, 6]),
    "multi_query": (1, [1], [1]),
}
MSMT17_COUNTS = {"train": (3, [1, 2], [1, 5, 14]), "query": (1, [1], [15]), "gallery": (2, [1, 2], [2, 10])}
CUHK03_COUNTS = {"train": (3, [1001, 2440], [1, 2]), "query": (1, [1843], [1]), "gallery": (1, [1843], [2])}
VERI_COUNTS = {"train": (2, [1], [1, 20]), "query": (1, [2], [2]), "gallery": (2, [2, 5], [11, 12])}
OWN_COUNTS = {"train": (2, [1], [1, 12]), "query": (1, [2], [1]), "gallery": (1, [2], [2])}


@pytest.mark.parametrize(
    ("files", "layout", "expected"),
    [
        (MARKET, "market1501", MARKET_COUNTS),
        (MSMT17_V1, "msmt17", MSMT17_COUNTS),
        (MSMT17_V2, "msmt17", MSMT17_COUNTS),
        (CUHK03 | {"cuhk03_new_protocol_config_labeled.mat": cuhk03_mat()}, "cuhk03", CUHK03_COUNTS),
        (CUHK03 | {"splits_new_labeled.json": cuhk03_json()}, "cuhk03", CUHK03_COUNTS),
        (CUHK03_NP, "cuhk03", MARKET_COUNTS),
        (VERI, "veri776", VERI_COUNTS),
        (VERI | VERI_LISTS, "veri776", VERI_COUNTS),
        (OWN, "folder", OWN_COUNTS),
        (TABLE, "folder", {"train": (2, [5], [1, 2]), "query": (1, [6], [1]), "gallery": (2, [-1, 6], [2])}),
    ],
)
def test_layout_is_recognised_and_read(pack, files, layout, expected):
    path = pack(files)
    dataset = load_dataset(path)
    assert dataset.layout == layout
    assert counts(dataset) == expected
    assert dataset.cameras_known
    for crops in dataset.splits.values():
        shown = [crops.read(i)[0, 0] for i in range(len(crops))]
        assert all(blue == 77 or abs(int(blue) - 77) < 9 for blue, _, _ in shown)
        assert all(str(p).startswith(str(path)) for p in crops.paths)
    named = load_dataset(f"{layout}:{path}")
    assert counts(named) == expected


@pytest.mark.parametrize("layout", ["dukemtmc", "personx"])
def test_layouts_that_took_over_markets_folders(pack, layout):
    files = files_of(
        "bounding_box_train/0001_c2_f0046182.jpg",
        "query/0005_c12s1_03.jpg",
        "bounding_box_test/0005_c3s1_10.jpg",
    )
    dataset = load_dataset(f"{layout}:{pack(files)}")
    assert dataset.layout == layout
    assert counts(dataset) == {"train": (1, [1], [2]), "query": (1, [5], [12]), "gallery": (1, [5], [3])}


def test_pictures_belong_to_their_names(pack):
    dataset = load_dataset(pack({f"{name}.png": data for name, data in MARKET.items() if name.endswith("jpg")}))
    order = list(MARKET)
    for crops in dataset.splits.values():
        for i, path in enumerate(crops.paths):
            number = next(n for n, name in enumerate(order) if str(path).endswith(f"{name}.png"))
            assert crops.read(i)[0, 0].tolist() == [77, 0, number]


def test_vehicleid_gallery_is_one_image_a_vehicle(pack):
    path = pack(VEHICLEID)
    dataset = load_dataset(path)
    assert counts(dataset)["train"] == (3, [4, 17], [0])
    assert sorted(dataset.gallery.pids.tolist()) == [9, 21, 30]
    assert sorted(dataset.query.pids.tolist()) == [9, 9, 21]
    assert not set(dataset.gallery.names) & set(dataset.query.names)
    assert load_dataset(path).gallery.names == dataset.gallery.names
    assert len({load_dataset(path, seed=seed).gallery.names for seed in range(12)}) > 1
    assert load_dataset(path, ("query",)).query.names == dataset.query.names
    medium = load_dataset(f"vehicleid:{path},1600")
    assert (len(medium.query), len(medium.gallery)) == (1, 1)
    # no gallery image is left out as if it were from the query's camera
    assert not dataset.cameras_known
    query, gallery = dataset.query, dataset.gallery
    distances = (query.pids[:, None] != gallery.pids).astype(float)
    result = evaluate_ranking(distances, query.pids, gallery.pids, query.camids, gallery.camids)
    assert (result.valid_queries, result.mean_ap) == (3, 1.0)


def test_viper_splits_people_in_halves(pack):
    path = pack(VIPER)
    dataset = load_dataset(path)
    assert dataset.layout == "viper"
    train, query, gallery = dataset.train, dataset.query, dataset.gallery
    assert (len(train), len(query), len(gallery)) == (8, 4, 4)
    assert query.pids.tolist() == gallery.pids.tolist()
    assert sorted({*train.pids.tolist(), *query.pids.tolist()}) == [
        pid + 1 for pid in VIPER_PIDS
    ]  # 0 is a distractor's
    assert train.camids.tolist() == [1, 2] * 4
    assert (set(query.camids.tolist()), set(gallery.camids.tolist())) == ({1}, {2})
    assert all(name.startswith("cam_a/") for name in query.names)
    assert load_dataset(path, ("train",)).train.names == train.names
    assert len({load_dataset(path, seed=seed).train.names for seed in range(12)}) > 1


def test_own_images_in_one_folder_train(pack):
    dataset = load_dataset(pack(files_of("1_c1.jpg", "1_c2_x.jpg", "0_c2_x.jpg")))
    assert counts(dataset) == {"train": (3, [0, 1], [1, 2])}
    assert (dataset.query, dataset.gallery, dataset.multi_query) == (None, None, None)


@pytest.mark.parametrize(
    ("files", "cameras"),
    [
        (("b/1.jpg", "b/deep/2.jpg", "a/x_c9_1.jpg"), {"a/x_c9_1.jpg": 1, "b/1.jpg": 2, "b/deep/2.jpg": 2}),
        (("b/1.jpg", "top.jpg"), {"b/1.jpg": 2, "top.jpg": 1}),
        (("x/p_c3s1_4.jpg", "x/c12_4.jpg"), {"x/c12_4.jpg": 12, "x/p_c3s1_4.jpg": 3}),
        (("abc3_1.jpg", "arc_1.jpg"), {"abc3_1.jpg": 0, "arc_1.jpg": 0}),
    ],
)
def test_images_of_unknown_people(tmp_path, files, cameras):
    dataset = load_dataset(f"images:{write_zip(tmp_path / 'a.zip', files_of(*files))}")
    assert dict(zip(dataset.train.names, dataset.train.camids.tolist(), strict=True)) == cameras
    assert set(dataset.train.pids.tolist()) == {-1} and dataset.query is None
    assert dataset.cameras_known == any(cameras.values())


def test_images_of_unknown_people_cannot_be_ranked(tmp_path):
    source = write_folder(tmp_path / "a", files_of("a/1.jpg"))
    with pytest.raises(ValueError, match="expected query images, found none"):
        load_dataset(f"images:{source}", ("train", "query"))


def test_table_without_cameras_and_splits(tmp_path):
    write_folder(
        tmp_path, TABLE | {"labels.csv": b"pid,path,note\n3,a/x.png,hello\n", "more.csv": b"path,pid\na/y.png,4\n"}
    )
    dataset = load_dataset(tmp_path / "labels.csv")
    assert counts(dataset) == {"train": (1, [3], [0])}
    assert not dataset.cameras_known
    assert counts(load_dataset(f"folder:{tmp_path},more.csv")) == {"train": (1, [4], [0])}
    with pytest.raises(ValueError, match=r"expected one CSV, found labels.csv, more.csv"):
        load_dataset(tmp_path)


def test_table_with_more_queries_and_table_without_rows(tmp_path):
    table = b"path,pid,camid,split\na/x.png,5,1,query\na/y.png,5,1,multi_query\na/w.png,5,2,gallery\n"
    dataset = load_dataset(write_folder(tmp_path, TABLE | {"labels.csv": table}))
    assert counts(dataset) == {split: (1, [5], [2 if split == "gallery" else 1]) for split in dataset.splits}
    assert list(dataset.splits) == ["query", "gallery", "multi_query"]
    (tmp_path / "labels.csv").write_text("path,pid\n")
    with pytest.raises(ValueError, match=r": expected train images \(.*\), found none"):
        load_dataset(tmp_path)


def test_table_may_name_its_images_absolutely(tmp_path):
    write_folder(tmp_path, files_of("a/x.png"))
    (tmp_path / "t.csv").write_text(f"path,pid\n{tmp_path / 'a' / 'x.png'},3\n")
    assert load_dataset(tmp_path / "t.csv").train.names == ("a/x.png",)


@pytest.mark.parametrize("name", [n for n in MARKET if "/" in n and not n.startswith(("gt_", "query/Thumbs"))][::2])
def test_partial_market_names_the_missing_folder(pack, name):
    folder = name.split("/")[0]
    path = pack({n: data for n, data in MARKET.items() if not n.startswith(folder)})
    with pytest.raises(
        ValueError, match=f"{folder}: expected a folder of (train|query|gallery) images, found none"
    ) as error:
        load_dataset(path)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize(
    ("files", "missing", "message"),
    [
        (MSMT17_V1, "list_train.txt", r"list_train\.txt: expected the list of train images of MSMT17, found none"),
        (MSMT17_V1, "list_val.txt", r"list_val\.txt: expected the list of train images"),
        (MSMT17_V1, "list_query.txt", r"list_query\.txt: expected the list of query images"),
        (MSMT17_V2, "list_gallery.txt", r"list_gallery\.txt: expected the list of gallery images"),
        (MSMT17_V1, "list_", r"list_train\.txt: expected the list"),
        (MSMT17_V1, "test/", r"/test: expected the folder of query images of MSMT17, found none"),
        (MSMT17_V2, "mask_train_v2/", r"/mask_train_v2: expected the folder of train images of MSMT17, found none"),
        (MSMT17_V1, MSMT17_NAMES[4], r"list_gallery\.txt:1: no such image: .*test/0000/0000_001_02_0303morning_0015_0"),
        (CUHK03, "-", r"config_labeled\.mat: expected the lists of the new protocol, there or in splits_new_labeled"),
        (CUHK03_NP, "labeled/query/", r"labeled/query: expected a folder of query images"),
        (
            CUHK03 | {"splits_new_labeled.json": cuhk03_json()},
            "images_labeled/2_",
            r"labeled\.json: no such image: .*/images_labeled/2_440_1_02\.png",
        ),
        (
            {"cuhk03_release/cuhk-03.mat": b"x"},
            "-",
            r"/images_labeled: expected a folder of images .*CUHK03-NP.*; the images inside of cuhk03_release/cuhk",
        ),
        (VERI, "image_query", r"/image_query: expected a folder of query images, found none"),
        (
            VERI | VERI_LISTS,
            "image_test/0002",
            r"name_test\.txt:2: no such image: .*image_test/0002_c011_00030600_0\.jpg",
        ),
        (VERI | VERI_LISTS, "image_train/", r"/image_train: expected a folder of train images"),
        (VEHICLEID, "image/", r"/image: expected the folder of images of VehicleID, found none"),
        (VEHICLEID, "image/0000005", r"test_list_800\.txt:2: no such image: .*image/0000005\.jpg"),
        (VEHICLEID, "train_test_split/train", r"train_list\.txt: expected a list of VehicleID, found none"),
        (VEHICLEID, "train_test_split/test_list_800", r"test_list_800\.txt: expected a list of VehicleID, found none"),
        (VIPER, "cam_b/", r"/cam_b: expected a folder of images of VIPeR, found none"),
        (VIPER, "cam_b/007", r"/cam_b: expected the other image of .*/cam_a/007_45\.bmp, found none"),
        (VIPER, "cam_a/873", r"/cam_a: expected the other image of .*/cam_b/873_90\.bmp, found none"),
        (TABLE, "a/y.png", r"labels\.csv:3: no such image: .*a/y\.png"),
    ],
)
def test_partial_data_set_says_what_was_expected_where(pack, files, missing, message):
    path = pack({name: data for name, data in files.items() if not name.startswith(missing)})
    with pytest.raises(ValueError, match=message) as error:
        load_dataset(path)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize(
    ("files", "change", "message"),
    [
        (MARKET, {"query/person.jpg": b""}, r"query/person\.jpg: expected a name like 0002_c1s1_000451_03\.jpg"),
        (MARKET, {"query/0002_cX_1.jpg": b""}, r"query/0002_cX_1\.jpg: expected a name like"),
        (MARKET, {"gt_bbox/c1s1_0002.jpg": b""}, r"gt_bbox/c1s1_0002\.jpg: expected a name like"),
        (
            MSMT17_V1,
            {"list_val.txt": b"\n0001/a.jpg 1\n"},
            r"list_val\.txt:2: expected an image named like 0000/0000_000_01",
        ),
        (
            MSMT17_V1,
            {"list_train.txt": b"0001/0001_000_05_x.jpg\n"},
            r"list_train\.txt:1: expected an image named like",
        ),
        (MSMT17_V1, {"list_train.txt": b"../../0001_000_05_x.jpg 1\n"}, r"list_train\.txt:1: expected a path below"),
        (MSMT17_V1, {"list_query.txt": b"\n"}, r": expected query images, found none$"),
        (MSMT17_V1, {"list_query.txt": b"\xff\xfe\x00"}, r"list_query\.txt: not a text file"),
        (
            CUHK03,
            {"cuhk03_new_protocol_config_labeled.mat": b"x" * 200},
            r"labeled\.mat: expected filelist and train_idx",
        ),
        (
            CUHK03,
            {"cuhk03_new_protocol_config_labeled.mat": cuhk03_mat(query_idx=[[99]])},
            r"labeled\.mat: expected filelist and query_idx of the new protocol",
        ),
        (CUHK03, {"splits_new_labeled.json": b"[{}]"}, r"labeled\.json: expected train as a list"),
        (CUHK03, {"splits_new_labeled.json": b"[{"}, r"labeled\.json: expected train as a list"),
        (
            CUHK03,
            {"splits_new_labeled.json": cuhk03_json().replace(b"1_001_1_01", b"1_1_1")},
            r"labeled\.json: expected names like 1_001_1_01\.png, got '1_1_1\.png'",
        ),
        (
            VEHICLEID,
            {"train_test_split/train_list.txt": b"0000001\n"},
            r"train_list\.txt:1: expected the name of an image",
        ),
        (VIPER, {"cam_a/person.bmp": b""}, r"cam_a/person\.bmp: expected a name like 000_45\.bmp"),
        (VIPER, {"cam_a/000_90.bmp": b""}, r"cam_a/000_90\.bmp: expected one image of a person in cam_a, got two"),
        (TABLE, {"labels.csv": b"file,pid\n"}, r"labels\.csv:1: expected the columns path and pid .*, got no path"),
        (TABLE, {"labels.csv": b""}, r"labels\.csv:1: expected the columns path and pid .*, got no path and no pid"),
        (
            TABLE,
            {"labels.csv": b"path,pid\na/x.png,bob\n"},
            r"labels\.csv:2: expected pid as a whole number .* got 'bob'",
        ),
        (TABLE, {"labels.csv": b"path;pid\na/x.png;1\n"}, r"labels\.csv:1: .*, with commas between, got ';'"),
        (TABLE, {"labels.csv": b"path,pid\n" + b"x" * 140_000}, r"labels\.csv:2: expected comma-separated values \("),
        (TABLE, {"labels.csv": b"path,pid\na/x.png," + b"9" * 20}, r"labels\.csv:2: expected pid of at most 18 digits"),
        (
            TABLE,
            {"labels.csv": b"path,pid,split\na/x.png,1,train\na/y.png,1,train\na/x.png,2,gallery\n"},
            r"labels\.csv:4: expected pid 1 for a/x\.png, as in .*labels\.csv:2, got 2",
        ),
        (MARKET, files_of(f"query/{10**19}_c1s1_1.jpg"), r"0_c1s1_1\.jpg: expected identity and camera below 2\*\*63"),
        (TABLE, {"labels.csv": b"path,pid\na/x.png\n"}, r"labels\.csv:2: expected pid as a whole number .* got None"),
        (TABLE, {"labels.csv": b"path,pid\na/x.png,-2\n"}, r"labels\.csv:2: expected pid as a whole number from -1 on"),
        (
            TABLE,
            {"labels.csv": b"path,pid,camid\na/x.png,1,\n"},
            r"labels\.csv:2: expected camid as a whole number from 0 on",
        ),
        (
            TABLE,
            {"labels.csv": b"path,pid,split\na/x.png,1,test\n"},
            r"labels\.csv:2: expected the split train, query,",
        ),
        (
            TABLE,
            {"labels.csv": b"path,pid\n../x.png,1\n"},
            r"labels\.csv:2: expected a path below .*, got '\.\./x\.png'",
        ),
        (TABLE, {"labels.csv": b"path,pid\n/etc/x.png,1\n"}, r"labels\.csv:2: expected a path below"),
        (TABLE, {"labels.csv": b"path,pid\n,1\n"}, r"labels\.csv:2: expected a path below"),
    ],
)
def test_wrong_content_is_named(pack, files, change, message):
    path = pack(files | change)
    with pytest.raises(ValueError, match=message) as error:
        load_dataset(path)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize("folder", ["train", "query", "gallery"])
def test_folder_without_images_is_named(tmp_path, folder):
    name = {"train": "bounding_box_train", "gallery": "bounding_box_test"}.get(folder, folder)
    write_folder(tmp_path, {n: data for n, data in MARKET.items() if not n.startswith(name)} | {f"{name}/x.txt": b""})
    with pytest.raises(
        ValueError, match=f"{name}: expected {folder} images named like 0002_c1s1_000451_03.jpg, found none"
    ):
        load_dataset(tmp_path)


def test_only_the_splits_that_are_needed_are_read(tmp_path):
    write_folder(tmp_path, {n: data for n, data in MARKET.items() if n.startswith("bounding_box_train")})
    assert set(load_dataset(tmp_path, ("train",)).splits) == {"train"}
    with pytest.raises(ValueError, match=r"/query: expected a folder of query images"):
        load_dataset(tmp_path, ("query", "gallery"))


def test_own_folder_without_a_needed_split(tmp_path):
    write_folder(tmp_path, files_of("1_c1.jpg"))
    with pytest.raises(
        ValueError, match=r"expected query images \(in a folder query, or .* in the column split\), found none"
    ):
        load_dataset(tmp_path, ("query", "gallery"))


@pytest.mark.parametrize("option", ["labeled", "detected"])
def test_cuhk03_option_says_whose_boxes(tmp_path, option):
    write_folder(tmp_path, CUHK03_NP)
    dataset = load_dataset(f"cuhk03:{tmp_path},{option}")
    assert all(name.startswith(f"{option}/") for crops in dataset.splits.values() for name in crops.names)


@pytest.mark.parametrize(
    ("files", "source", "message"),
    [
        (MARKET, "market1501:{},800", r"expected no option for the layout market1501, got '800'"),
        (MARKET, "cuhk03:{},manual", r"cuhk03: expected the option labeled or detected, got 'manual'"),
        (VEHICLEID, "vehicleid:{},many", r"vehicleid: expected a number of test vehicles .* got 'many'"),
        (VEHICLEID, "vehicleid:{},2400", r"test_list_2400\.txt: expected a list of VehicleID, found none"),
        (MARKET, "viper:{}", r"/cam_a: expected a folder of images of VIPeR, found none"),
        (MARKET, "duke:{}", r"^duke:/.*: no such file or folder, and no layout of market1501, dukemtmc,"),
        (MARKET, "{}/nothing", r"nothing: no such file or folder$"),
        (MARKET, "{}/readme.txt", r"readme\.txt: expected a folder, a zip archive or a \.csv$"),
        (TABLE, "viper:{}/labels.csv", r"labels\.csv: expected the folder or zip archive of viper, got a CSV"),
        (MARKET, "market1501:", r"expected \[LAYOUT:\]PATH with a layout of .*, got 'market1501:'"),
        ({"notes/readme.txt": b""}, "{}", r"expected a re-ID data set in a known layout \(market1501: .*found none$"),
        ({"Market.zip": b""}, "{}", r"known layout .*, found none; unpack Market\.zip first$"),
        (MARKET | VIPER, "{}", r"expected one data set, found market1501:.*, viper:.*; give one of these"),
    ],
)
def test_source_that_fits_nothing(tmp_path, files, source, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(source.format(write_folder(tmp_path / "data", files)))


def test_two_data_sets_side_by_side_are_told_apart(tmp_path):
    write_folder(tmp_path / "one", MARKET)
    write_folder(tmp_path / "two", VIPER)
    with pytest.raises(
        ValueError, match=r"expected one data set, found market1501:.*one, viper:.*two; give one of these"
    ):
        load_dataset(tmp_path)
    assert load_dataset(f"viper:{tmp_path}").layout == "viper"


def test_folder_inside_of_an_archive(tmp_path):
    path = write_zip(tmp_path / "a.zip", CUHK03_NP | {f"other/4/{name}": data for name, data in VIPER.items()})
    assert (
        counts(load_dataset(path / "detected")) == counts(load_dataset(f"market1501:{path}/labeled")) == MARKET_COUNTS
    )
    assert load_dataset(path / "other").layout == "viper"
    with pytest.raises(ValueError, match=r"a\.zip/nothing: no such file or folder"):
        load_dataset(path / "nothing")


def test_path_may_hold_commas_and_colons(tmp_path):
    path = write_folder(tmp_path / "a,b:c", MARKET)
    assert counts(load_dataset(path)) == counts(load_dataset(f"market1501:{path}")) == MARKET_COUNTS


def test_archive_that_is_none(tmp_path):
    path = write_zip(tmp_path / "a.zip", MARKET)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(ValueError, match=r"a\.zip: expected .*; this archive is cut short or no zip at all"):
        load_dataset(path)


def test_archive_in_an_archive_is_not_read(tmp_path):
    inner = write_zip(tmp_path / "inner.zip", MARKET).read_bytes()
    with pytest.raises(ValueError, match=r"found none; unpack Market\.zip first"):
        load_dataset(write_zip(tmp_path / "a.zip", {"Market.zip": inner}))


def test_images_of_each_person_in_a_folder(pack):
    path = pack(files_of("train/0002/0002_c1s1_000451_03.jpg", "query/0001_c1s1_1.jpg"))
    with pytest.raises(ValueError, match=r"train: expected train images .*; they lie in folders below, such as 0002"):
        load_dataset(path)


@pytest.mark.parametrize("mark", [b"PK\x01\x02", b"PK\x05\x06"], ids=["last entry", "end"])
def test_archive_with_a_damaged_table_of_contents(tmp_path, mark):
    path = write_zip(tmp_path / "a.zip", MARKET)
    content = bytearray(path.read_bytes())
    place = content.rindex(mark) + (0 if mark[2] == 1 else 12)  # of the end, the size of the table
    content[place] ^= 0x5A
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{path}: not a readable zip archive \("):
        load_dataset(path)
