import functools
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

from detector.layouts import open_source
from detector.source import Source
from tests.detector.scenes import noise
from tests.tools.conftest import call_tool, load_tool

Run = Callable[..., tuple[int, str, str]]
OPENED = {
    "jde": "jde:{}/images.txt",
    "yolo": "yolo:{}/images.txt",
    "coco": "coco:{0}/images,{0}/annotations.json",
    "crowdhuman": "crowdhuman:{0}/images,{0}/annotations.odgt",
    "mot": "mot:{}",
}


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("convert")


@pytest.fixture
def run(tool: ModuleType, capfd: pytest.CaptureFixture[str]) -> Run:
    """The tool in this process: arguments -> (status, stdout, stderr)."""

    return functools.partial(call_tool, tool, capfd)


def write_random(folder: Path, seed: int = 0, names: tuple[str, ...] = ("000001", "000002", "000005")) -> str:
    """Frames of one size with random people, identities and regions, in the JDE layout."""
    rng = np.random.default_rng(seed)
    images, labels = folder / "images", folder / "labels_with_ids"
    images.mkdir(parents=True)
    labels.mkdir()
    for name in names:
        cv2.imwrite(str(images / f"{name}.png"), noise(75, 133, seed))
        count = int(rng.integers(1, 6))
        tags = [(0, i) for i in rng.permutation(9)[:count]] + [(-1, -1)] * int(rng.integers(0, 3))
        boxes = np.concatenate((rng.uniform(0, 1, (len(tags), 2)), rng.uniform(0.02, 0.5, (len(tags), 2))), axis=1)
        rows = [f"{k} {i} " + " ".join(map(str, box)) for (k, i), box in zip(tags, boxes, strict=True)]
        (labels / f"{name}.txt").write_text("\n".join(rows) + "\n")
    cv2.imwrite(str(images / "000009.png"), noise(75, 133))
    (labels / "000009.txt").write_text("")
    return f"jde:{images}"


def assert_same(found: Source, wanted: Source, atol: float = 1e-8) -> None:
    """Images by their bytes, rows in their order."""
    assert [p.read_bytes() for p in found.images] == [p.read_bytes() for p in wanted.images]
    for a, b in zip(found.labels, wanted.labels, strict=True):
        assert np.array_equal(a[:, :2], b[:, :2])
        assert a == pytest.approx(b, abs=atol)
    assert found.dropped == {}


@pytest.mark.parametrize("layout", ["jde", "coco", "crowdhuman", "mot"])
@pytest.mark.parametrize("seed", range(3))
def test_there_and_back(run: Run, tmp_path: Path, layout: str, seed: int) -> None:
    """JDE -> X -> JDE -> X: nothing changes, to the millionth of a pixel."""
    start = write_random(tmp_path / "start", seed)
    steps = [start]
    for k, target in enumerate((layout, "jde", layout)):
        status, out, err = run("--from", steps[-1], "--to", f"{target}:{tmp_path / str(k)}")
        assert status == 0, err
        steps.append(OPENED[target].format(tmp_path / str(k)))
        assert out.splitlines()[-1] == f"open it as {steps[-1]}"
        assert_same(open_source(steps[-1]), open_source(start))


def test_yolo_there_and_back_without_what_it_cannot_say(run: Run, tmp_path: Path) -> None:
    start = open_source(write_random(tmp_path / "start"))
    for rows in start.labels:
        rows[:, 1] = -1
    start.labels = [rows[rows[:, 0] == 0] for rows in start.labels]
    status, out, _ = run("--from", start.name, "--to", f"yolo:{tmp_path / 'y'}")
    assert status == 0
    count = sum(map(len, start.labels))
    assert f"yolo cannot say: identities of people: {count}" in out
    assert "yolo cannot say: regions to be ignored (they become background): " in out
    assert run("--from", f"yolo:{tmp_path / 'y' / 'images'}", "--to", f"jde:{tmp_path / 'j'}")[0] == 0
    assert run("--from", f"jde:{tmp_path / 'j' / 'images'}", "--to", f"yolo:{tmp_path / 'y2'}")[0] == 0
    for text in (f"yolo:{tmp_path / 'y' / 'images'}", f"jde:{tmp_path / 'j' / 'images.txt'}"):
        assert_same(open_source(text), start)
    for path in (tmp_path / "y" / "labels").iterdir():
        assert path.read_bytes() == (tmp_path / "y2" / "labels" / path.name).read_bytes()


def write_mot(folder: Path, rows: str) -> Path:
    (folder / "img1").mkdir(parents=True)
    (folder / "gt").mkdir()
    (folder / "gt" / "gt.txt").write_text(rows)
    for frame in (1, 2):
        cv2.imwrite(str(folder / "img1" / f"{frame:06d}.jpg"), noise(60, 80, frame))
    return folder


def test_sequences_stay_apart(run: Run, tmp_path: Path) -> None:
    """Two sequences -> JDE -> MOT: their folders, frames, and identities that are not shared."""
    for name in ("A", "B"):
        write_mot(tmp_path / "mot" / name, "1,3,11,21,10,20,1,1,1\n2,3,12,21,10,20,1,1,1\n2,9,1,1,5,5,0,3,1\n")
    status, out, _ = run("--from", f"mot:{tmp_path / 'mot'}", "--to", f"jde:{tmp_path / 'jde'}")
    assert status == 0
    assert "4 images, 4 people, 2 identities, 0 regions" in out
    assert "left out: class car: 2" in out
    assert (tmp_path / "jde" / "images.txt").read_text().splitlines() == [
        f"images/{name}/img1/00000{k}.jpg" for name in "AB" for k in (1, 2)
    ]
    back = tmp_path / "back"
    status, *_ = run("--from", f"jde:{tmp_path / 'jde' / 'images.txt'}", "--to", f"mot:{back}", "--frame-rate", 14.5)
    assert status == 0
    assert (back / "A" / "gt" / "gt.txt").read_text() == "1,3,11,21,10,20,1,1,1\n2,3,12,21,10,20,1,1,1\n"
    assert (back / "B" / "gt" / "gt.txt").read_text() == "1,7,11,21,10,20,1,1,1\n2,7,12,21,10,20,1,1,1\n"
    assert (back / "A" / "seqinfo.ini").read_text() == (
        "[Sequence]\nname=A\nimDir=img1\nframeRate=14.5\nseqLength=2\nimWidth=80\nimHeight=60\nimExt=.jpg\n"
    )
    pairs = zip(open_source(f"mot:{back}").labels, open_source(f"mot:{tmp_path / 'mot'}").labels, strict=True)
    assert all(a[:, 2:] == pytest.approx(b[:, 2:], abs=1e-8) for a, b in pairs)


def test_people_without_identity_are_ignored_in_mot(run: Run, tmp_path: Path) -> None:
    images = Path(write_random(tmp_path / "s", names=("b", "a")).partition(":")[2])
    label = images.parent / "labels_with_ids" / "a.txt"
    label.write_text("0 4 .5 .5 .2 .4\n0 -1 .5 .5 .2 .4\n-1 -1 .5 .5 .2 .4\n")
    status, out, _ = run("--from", f"jde:{images}", "--to", f"mot:{tmp_path / 'm'}")
    assert status == 0
    assert "mot cannot say: people without an identity (they become regions to be ignored): 1" in out
    source = open_source(f"mot:{tmp_path / 'm'}")
    assert [p.name for p in source.images] == ["000001.png", "000002.png", "000003.png"]  # 000009, a, b
    assert source.labels[1][:, :2].tolist() == [[0, 4], [-1, -1], [-1, -1]]
    assert (tmp_path / "m" / "s").is_dir()


def test_images_are_copies_or_links(run: Run, tmp_path: Path) -> None:
    start = write_random(tmp_path / "start")
    assert run("--from", start, "--to", f"coco:{tmp_path / 'copy'}")[0] == 0
    assert run("--from", start, "--to", f"coco:{tmp_path / 'link'}", "--link")[0] == 0
    copies, links = (sorted((tmp_path / name / "images").iterdir()) for name in ("copy", "link"))
    assert not any(path.is_symlink() for path in copies)
    assert [path.resolve() for path in links] == open_source(start).images


def test_what_exists_stays(run: Run, tmp_path: Path) -> None:
    start, out = write_random(tmp_path / "start"), tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    target = f"jde:{out}"
    assert run("--from", start, "--to", target)[2].endswith("give --force to replace it, or another --to\n")
    status, _, err = run("--from", start, "--to", target, "--force")
    assert (status, err) == (
        1,
        f"error: {out}: was not written by this tool, so --force does not replace it; remove it yourself\n",
    )
    assert (out / "mine.txt").read_text() == "precious"
    assert run("--from", start, "--to", f"jde:{tmp_path / 'new'}")[0] == 0
    assert run("--from", start, "--to", f"coco:{tmp_path / 'new'}", "--force")[0] == 0
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["annotations.json", "conversion.json", "images"]
    text = f"coco:{tmp_path / 'new' / 'images'},{tmp_path / 'new' / 'annotations.json'}"
    status, _, err = run("--from", text, "--to", f"jde:{tmp_path / 'new'}", "--force")
    assert f"new: holds images or labels of '{text}'" in err
    assert len(open_source(text).images) == 4


def test_a_failure_leaves_nothing(run: Run, tmp_path: Path) -> None:
    start = write_random(tmp_path / "start")
    cv2.imwrite(str(tmp_path / "start" / "images" / "000002.png"), noise(80, 80))
    status, _, err = run("--from", start, "--to", f"mot:{tmp_path / 'out'}")
    assert status == 1
    assert "mot needs frames of one size, got [(80, 80), (133, 75)]" in err
    assert [p.name for p in tmp_path.iterdir()] == ["start"]


def test_the_record_says_what_happened(run: Run, tmp_path: Path) -> None:
    write_mot(
        tmp_path / "s", "1,3,11,21,10,20,1,1,1\n1,4,11,21,10,20,0,7,1\n1,5,1,1,5,5,0,3,1\n3,3,11,21,10,20,1,1,1\n"
    )
    assert run("--from", f"mot:{tmp_path / 's'}", "--to", f"yolo:{tmp_path / 'y'}")[0] == 0
    assert json.loads((tmp_path / "y" / "conversion.json").read_text()) == {
        "from": f"mot:{tmp_path / 's'}",
        "to": f"yolo:{tmp_path / 'y'}",
        "images": 2,
        "people": 1,
        "identities": 1,
        "regions": 1,
        "missing_images": 1,
        "missing_labels": 0,
        "left_out": {"class car": 1, "boxes on images that are absent": 1},
        "lost": {"identities of people": 1, "regions to be ignored (they become background)": 1},
    }


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("{start}", "voc:{out}", "--to: expected LAYOUT:DIR with a layout of jde, yolo, coco, crowdhuman, mot"),
        ("{start}", "jde", "--to: expected LAYOUT:DIR"),
        ("{start}", "crops:{out}", "--to: expected LAYOUT:DIR"),
        ("jde:absent", "jde:{out}", "absent: no such file or folder"),
        ("crops:{crops}", "jde:{out}", "crops are no labelled images"),
        ("yolo:{plain}", "mot:{out}", "mot needs identities, and none of the 1 people has one"),
        ("jde:{twins}", "jde:{out}", "a.png: its labels would be those of "),
    ],
)
def test_errors_are_one_line(run: Run, tmp_path: Path, source: str, target: str, message: str) -> None:
    for name, file in (("crops", "0002_c1.png"), ("plain/images", "a.png"), ("twins/images", "a.png")):
        (tmp_path / name).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / name / file), noise(20, 20))
    cv2.imwrite(str(tmp_path / "twins" / "images" / "a.jpg"), noise(20, 20))
    (tmp_path / "twins" / "labels_with_ids").mkdir()
    (tmp_path / "plain" / "labels").mkdir()
    (tmp_path / "plain" / "labels" / "a.txt").write_text("0 .5 .5 .5 .5")
    names = {"start": write_random(tmp_path / "start"), "out": tmp_path / "out", "crops": tmp_path / "crops"}
    names |= {"plain": tmp_path / "plain" / "images", "twins": tmp_path / "twins" / "images"}
    status, _, err = run("--from", source.format(**names), "--to", target.format(**names))
    assert status == 1
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_help_shows_examples(run: Run) -> None:
    status, printed, _ = run("--help")
    assert status == 0
    assert "--from mot:MOT17/train --to jde:" in printed


def test_a_real_sequence_there_and_back(run: Run, tmp_path: Path, shared: Path) -> None:
    """MOT -> JDE -> MOT keeps every pedestrian of PETS09 and its identity, to a thousandth of a pixel."""
    start = shared / "data" / "mot" / "PETS09-S2L1-dev"
    assert run("--from", f"mot:{start}", "--to", f"jde:{tmp_path / 'j'}", "--link")[0] == 0
    assert run("--from", f"jde:{tmp_path / 'j' / 'images'}", "--to", f"mot:{tmp_path / 'm'}", "--link")[0] == 0
    found = np.loadtxt(tmp_path / "m" / "j" / "gt" / "gt.txt", delimiter=",")
    wanted = np.loadtxt(start / "gt" / "gt.txt", delimiter=",")
    assert found == pytest.approx(wanted[np.lexsort((np.arange(len(wanted)), wanted[:, 0]))], abs=1e-3)


def test_labels_being_read_are_never_replaced(run: Run, tmp_path: Path) -> None:
    source = write_random(tmp_path / "a")
    linked = tmp_path / "linked"
    assert run("--from", source, "--to", f"jde:{linked}", "--link")[0] == 0
    status, _, err = run("--from", f"jde:{linked / 'images.txt'}", "--to", f"yolo:{linked}", "--force")
    assert status == 1
    assert "holds images or labels of" in err
    assert (linked / "labels_with_ids").is_dir()

    coco = tmp_path / "coco"
    assert run("--from", source, "--to", f"coco:{coco}")[0] == 0
    images = source.partition(":")[2]
    status, _, err = run("--from", f"coco:{images},{coco / 'annotations.json'}", "--to", f"jde:{coco}", "--force")
    assert status == 1
    assert (coco / "annotations.json").is_file()
