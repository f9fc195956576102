import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

from detector.data import open_source, read_image
from detector.losses import IGNORE_LABEL, NO_IDENTITY
from tests.detector.scenes import drawn, write_people
from tests.tools.conftest import call_tool, load_tool
from tests.tracker.clips import SQUARE, find_square, scene, square_left, write_clip
from tracker import Detections, FrameResult

Run = Callable[..., tuple[int, str, str]]
DOUBTFUL = [70.0, 4.0, 90.0, 16.0]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("pseudo_label")


class Finder:
    """A teacher: the bright square for sure, and one doubtful box that stands still."""

    def __init__(self, *args: object) -> None:
        pass

    def __call__(self, frame: np.ndarray) -> Detections:
        sure = find_square([frame])[0]
        return Detections(np.vstack((sure.xyxy, [DOUBTFUL])), np.append(sure.scores, 0.2))


@pytest.fixture
def run(tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """The tool in this process with the `Finder`: arguments -> (status, stdout, stderr)."""
    monkeypatch.setattr(tool, "load_teacher", lambda weights: None)
    monkeypatch.setattr(tool, "Teacher", Finder)

    return functools.partial(call_tool, tool, capfd)


def test_people_regions_and_images(run: Run, tmp_path: Path) -> None:
    """40 frames at 20 a second, every second looked at, every fifth of those saved."""
    clip = write_clip(tmp_path / "walk.mp4", 40, rate=20)
    status, out, _ = run("--video", clip, "--out", tmp_path / "labels")
    assert status == 0
    assert json.loads(out) == {"video": str(clip), "images": 4, "people": 4, "identities": 1}
    folder = tmp_path / "labels" / "walk"
    assert [p.name for p in (tmp_path / "labels").iterdir()] == ["walk"]
    names = ["000001", "000006", "000011", "000016"]
    assert sorted(p.name for p in (folder / "images").iterdir()) == [f"{n}.jpg" for n in names]
    assert sorted(p.name for p in (folder / "labels_with_ids").iterdir()) == [f"{n}.txt" for n in names]

    source = open_source(f"jde:{folder / 'images'}")
    identities = set()
    for k, (path, rows) in enumerate(zip(source.images, source.labels, strict=True)):
        wanted = scene(1 + 10 * k)
        image = read_image(path)
        assert image.shape == wanted.shape
        assert abs(square_left(image) - square_left(wanted)) <= 1  # the frame it says it is
        pixels = (rows[:, 2:4] - rows[:, 4:] / 2) * (96, 64), rows[:, 4:] * (96, 64)
        person = rows[:, 0] == 0
        left = square_left(wanted)
        assert int(person.sum()) == 1
        assert np.abs(pixels[0][person][0] - (left, 20)).max() <= 3
        assert np.abs(pixels[1][person][0] - SQUARE).max() <= 3
        identities.add(rows[person][0, 1])
        regions = ~person
        assert (rows[regions, 0] == IGNORE_LABEL).all()
        assert (rows[regions, 1] == NO_IDENTITY).all()
        corners = np.hstack(pixels)[regions]
        assert any(np.abs(row - [70, 4, 20, 12]).max() < 0.01 for row in corners)
        assert int(regions.sum()) == 1
    assert len(identities) == 1


def test_short_or_doubtful_tracks_are_regions(run: Run, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "walk.mp4", 20, rate=10)
    for i, setting in enumerate(("min_seconds=5", "min_score=0.95")):
        out = tmp_path / str(i)
        status, printed, _ = run("--video", clip, "--out", out, "--set", f"pseudo_label.{setting}")
        assert status == 0
        assert json.loads(printed)["people"] == json.loads(printed)["identities"] == 0
        for rows in open_source(f"jde:{out / 'walk' / 'images'}").labels:
            assert rows[:, 0].tolist() == [IGNORE_LABEL] * 2


def test_large_frames_are_saved_smaller(run: Run, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "walk.mp4", 12, rate=10)
    assert run("--video", clip, "--out", tmp_path, "--set", "pseudo_label.max_side=48")[0] == 0
    source = open_source(f"jde:{tmp_path / 'walk' / 'images'}")
    assert read_image(source.images[0]).shape == (32, 48, 3)
    assert (source.labels[-1][:, 2:] <= 1).all()


def test_several_inputs_a_folder_each(run: Run, tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(1, 13):
        cv2.imwrite(str(frames / f"{number:03d}.png"), scene(number))
    clip = write_clip(tmp_path / "walk.mp4", 12, rate=10)
    status, out, _ = run("--video", clip, frames, "--out", tmp_path / "labels")
    assert status == 0
    assert [json.loads(line)["images"] for line in out.splitlines()] == [3, 3]
    assert sorted(p.name for p in (tmp_path / "labels").iterdir()) == ["frames", "walk"]


def failing(outcome: tuple[int, str, str]) -> str:
    status, _, err = outcome
    assert status == 1
    assert err.count("\n") == 1, err
    assert err.startswith("error: ")
    return err.removeprefix("error: ").strip()


def test_errors_are_one_line(run: Run, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "walk.mp4", 5)
    out = ("--out", tmp_path / "labels")

    def refused(setting: str) -> str:
        return failing(run("--video", clip, *out, "--set", f"pseudo_label.{setting}"))

    assert failing(run("--video", tmp_path / "absent.mp4", *out)).endswith("absent.mp4: no such file or folder")
    assert failing(run("--video", clip, tmp_path / "absent.mp4", *out)).endswith("no such file or folder")
    assert not (tmp_path / "labels").exists()  # nothing was begun
    assert "frame_rate: expected a positive number, got 0.0" in refused("frame_rate=0")
    assert "save_every: expected a positive number, got 0" in refused("save_every=0")
    assert "input_sizes: expected at least one size" in refused("input_sizes=[]")
    assert "unknown key in section 'pseudo_label': 'flips'; did you mean flip?" in refused("flips=true")
    other = tmp_path / "b"
    other.mkdir()
    twin = write_clip(other / "walk.mp4", 5)
    assert f"would share the folder 'walk' with {clip}" in failing(run("--video", clip, twin, *out))


def test_labels_that_exist_are_not_mixed_with_new_ones(run: Run, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "walk.mp4", 12, rate=10)
    assert run("--video", clip, "--out", tmp_path / "labels")[0] == 0
    message = failing(run("--video", clip, "--out", tmp_path / "labels"))
    assert message == f"{tmp_path / 'labels' / 'walk'}: exists already; remove it, or give another --out"


def test_stopped_half_way_no_image_lies_about_without_its_labels(
    tool: ModuleType, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = write_clip(tmp_path / "walk.mp4", 12, rate=10)
    out = tmp_path / "labels"
    frames = []

    class Interrupted(Finder):
        def __call__(self, frame: np.ndarray) -> Detections:
            frames.append(1)
            if len(frames) == 8:
                raise KeyboardInterrupt
            return super().__call__(frame)

    with monkeypatch.context() as patch:
        patch.setattr(tool, "Teacher", Interrupted)
        status, _, err = run("--video", clip, "--out", out)
    assert status == 130
    assert "stopped" in err
    assert not (out / "walk").exists()
    assert run("--video", clip, "--out", out)[0] == 0  # a new start
    assert sorted(p.name for p in out.iterdir()) == ["walk"]


def result(ids: Sequence[int], scores: Sequence[float], boxes: Sequence[Sequence[float]]) -> FrameResult:
    n = len(ids)
    xyxy = np.array(boxes, np.float32).reshape(n, 4)
    return FrameResult(1, np.array(ids, np.int64), xyxy, np.array(scores, np.float32), np.zeros(n, np.int64))


def test_sure_tracks_are_long_enough_and_score_enough(tool: ModuleType) -> None:
    box = [0, 0, 1, 1]
    frames = [
        result([1, 2], [0.5, 0.9], [box] * 2),
        result([1], [0.75], [box]),
        result([1, 3], [0.55, 0.59], [box] * 2),
    ]
    frames += [result([3], [0.59], [box])] * 2
    config = tool.PseudoLabelConfig(min_seconds=0.5, min_score=0.6)
    assert tool.sure_tracks(frames, config, 6.0) == {1}  # 2 is short, 3 scores 0.59
    assert tool.sure_tracks(frames, config, 6.1) == set()  # 3 frames are less than half a second
    assert tool.sure_tracks([result([], [], [])], config, 6.0) == set()


def test_rows_are_cut_at_the_frame(tool: ModuleType) -> None:
    tracked = result([5], [0.9], [[-10, 10, 30, 50]])
    found = Detections(
        np.array([[-9, 10, 30, 50], [80, 40, 120, 60], [200, 10, 220, 30]], np.float32), np.array([0.9, 0.3, 0.3])
    )
    rows = tool.label_rows(found, tracked, {5}, (100, 50))
    assert np.array(rows) == pytest.approx(np.array([[0, 5, 0.15, 0.6, 0.3, 0.8], [-1, -1, 0.9, 0.9, 0.2, 0.2]]))
    everything = tool.label_rows(found, tracked, set(), (100, 50))
    assert [row[0] for row in everything] == [-1, -1]
    assert tool.label_rows(Detections.empty(), result([], [], []), set(), (100, 50)) == []


def test_views_agree_on_where_people_are(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two scales and the mirrored frame see the same person: one detection, in pixels of the frame, the surest."""
    sizes = []

    class Bright:
        def __init__(self, model: object, device: str, config: object) -> None:
            self.size = config.input_size
            sizes.append((config.input_size, config.score_thresh))

        def __call__(self, frames: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
            found = []
            for frame in frames:
                x, y, w, h = cv2.boundingRect(frame[..., 0])
                box = np.array([[x, y, x + w, y + h]], np.float32)
                found.append({"boxes": box, "scores": np.array([self.size / 1000], np.float32)})
            return found

    monkeypatch.setattr(tool, "Detector", Bright)
    teacher = tool.Teacher(None, tool.PseudoLabelConfig(input_sizes=(320, 640), flip=True), "cpu")
    assert sizes == [(320, 0.15), (640, 0.15)]
    found = teacher(drawn(100, 60, (10, 20, 30, 50)))
    assert found.xyxy.tolist() == [[10, 20, 30, 50]]
    assert found.scores.tolist() == pytest.approx([0.64])


def test_a_view_is_believed_in_its_heights(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """In network pixels: the person of 40 in an image of 96 is 80 high at 192."""

    class Two:
        def __init__(self, model: object, device: str, config: object) -> None:
            self.score = config.input_size / 960

        def __call__(self, frames: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
            boxes = np.array([[5, 10, 20, 50], [70, 10, 72, 15]], np.float32)
            if frames[0][0, 0, 0]:  # mirrored
                boxes = np.array([96, 0, 96, 0]) + boxes[:, [2, 1, 0, 3]] * [-1, 1, -1, 1]
            return [{"boxes": boxes, "scores": np.full(2, self.score, np.float32)}]

    monkeypatch.setattr(tool, "Detector", Two)
    image = drawn(96, 96, (80, 0, 96, 10))

    def scores(*heights: tuple[float, float], flips: tuple[bool, ...] = (False, False)) -> list[tuple[float, float]]:
        config = tool.CompletionConfig(input_sizes=(96, 192), flips=flips, heights=heights)
        found = tool.Teacher(None, config, "cpu")(image)
        return sorted((float(x), round(float(s), 3)) for x, s in zip(found.xyxy[:, 0], found.scores, strict=True))

    everywhere = (0, 1000)
    assert scores(everywhere, everywhere) == [(5, 0.2), (70, 0.2)]
    assert scores(everywhere, everywhere, flips=(True, True)) == [(5, 0.2), (70, 0.2)]  # mirrored back onto themselves
    assert scores(everywhere, (0, 50)) == [(5, 0.1), (70, 0.2)]
    assert scores((20, 1000), (0, 80)) == [(5, 0.2), (70, 0.2)]
    assert scores((20, 1000), (60, 80)) == [(5, 0.2)]
    assert scores((41, 1000), (81, 1000), flips=(True, True)) == []


def completed_as_loops(labels, found: Detections, config) -> list[list[float]]:
    """The rule of `complete`, box by box, in an image of 100 pixels: class, identity, xyxy."""

    def overlap(a, b) -> float:
        w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        inner = max(w, 0) * max(h, 0)
        return inner / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner)

    rows = [
        [k, i, 100 * (x - w / 2), 100 * (y - h / 2), 100 * (x + w / 2), 100 * (y + h / 2)]
        for k, i, x, y, w, h in labels
    ]
    people = [row[2:] for row in rows if row[0] == 0]
    used = set()
    for row in rows:
        if row[0] == 0:
            mine = [
                (overlap(row[2:], box), -j)
                for j, box in enumerate(found.xyxy)
                if max(people, key=lambda other: overlap(other, box)) == row[2:]
            ]
            if mine and max(mine)[0] >= config.same_iou:
                used.add(-max(mine)[1])
    moved = {}
    for j in used:
        owner = max(range(len(people)), key=lambda g: overlap(people[g], found.xyxy[j]))
        moved[tuple(people[owner])] = found.xyxy[j].tolist()
    out = [row[:2] + moved.get(tuple(row[2:]), row[2:]) if row[0] == 0 else row for row in rows]
    for j, (box, score) in enumerate(zip(found.xyxy, found.scores, strict=True)):
        near = max((overlap(box, other) for other in people), default=0.0)
        if j not in used and near < config.repeat_iou:
            out.append([0 if score >= config.min_score and near < config.near_iou else -1, -1, *box.tolist()])
    return out


def test_completion_agrees_with_loops(tool: ModuleType) -> None:
    config = tool.CompletionConfig()
    kinds = set()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        true = np.stack((rng.uniform(0.2, 0.8, 4), rng.uniform(0.2, 0.8, 4), *rng.uniform(0.1, 0.3, (2, 4))), axis=1)
        true = true[: rng.integers(0, 5)]
        tags = np.stack((rng.choice([0, 0, 0, -1], len(true)), np.full(len(true), -1)), axis=1)
        tags[:, 1] = np.where(tags[:, 0] == 0, np.arange(len(true)), -1)
        seen = np.concatenate((np.repeat(true, 2, axis=0), rng.uniform(0.2, 0.3, (2, 4)))) * 100
        seen = seen + rng.normal(0, 3, seen.shape)
        xyxy = np.concatenate((seen[:, :2] - seen[:, 2:] / 2, seen[:, :2] + seen[:, 2:] / 2), axis=1).astype(np.float32)
        found = Detections(xyxy, rng.uniform(0.3, 1, len(xyxy)).astype(np.float32))
        labels = np.concatenate((tags, true), axis=1)
        rows = np.array(tool.complete(labels, found, (100, 100), config)).reshape(-1, 6)
        wanted = np.array(completed_as_loops(labels.tolist(), found, config)).reshape(-1, 6)
        wanted[:, 2:] = wanted[:, 2:].clip(0, 100)
        assert rows[:, :2].tolist() == wanted[:, :2].tolist(), seed
        corners = np.concatenate((rows[:, 2:4] - rows[:, 4:] / 2, rows[:, 2:4] + rows[:, 4:] / 2), axis=1) * 100
        assert corners == pytest.approx(wanted[:, 2:], abs=1e-4), seed
        kinds |= {(len(true) > 0, *row) for row in rows[len(true) :, :2].astype(int).tolist()}
    assert kinds == {(some, label, -1) for some in (True, False) for label in (0, -1)}


def test_nobody_labelled_nobody_seen(tool: ModuleType) -> None:
    config, labels = tool.CompletionConfig(), np.array([[0, 7, 0.5, 0.5, 0.2, 0.4]])
    assert tool.complete(np.zeros((0, 6)), Detections.empty(), (10, 10), config) == []
    assert np.array(tool.complete(labels, Detections.empty(), (50, 80), config)) == pytest.approx(labels)
    alone = Detections(np.array([[0, 0, 5, 10]], np.float32), np.array([0.9]))
    assert tool.complete(np.zeros((0, 6)), alone, (10, 10), config) == [(0, -1, 0.25, 0.5, 0.5, 1)]


def test_images_are_completed(run: Run, tmp_path: Path) -> None:
    """Somebody labelled loosely is found again and keeps the identity; the doubtful box becomes a region."""
    images, labels = tmp_path / "people" / "images", tmp_path / "people" / "labels_with_ids"
    images.mkdir(parents=True)
    labels.mkdir()
    for number, name in enumerate(("b", "a", "c"), 1):
        cv2.imwrite(str(images / f"{name}.PNG"), scene(10 * number))
    left = square_left(scene(20)) - 2
    w, h = SQUARE + 2, SQUARE + 3
    (labels / "a.txt").write_text(f"0 5 {(left + w / 2) / 96} {(18 + h / 2) / 64} {w / 96} {h / 64}\n")
    low = ("--set", "completion.ignore_score=0.1")
    status, out, _ = run("--images", f"jde:{images}", "--out", tmp_path / "labels", *low)
    assert status == 0
    assert json.loads(out) == {"source": f"jde:{images}", "images": 3, "labelled": 1, "people": 3}
    source = open_source(f"jde:{tmp_path / 'labels' / 'people' / 'images'}")
    assert [path.name for path in source.images] == ["000001.png", "000002.png", "000003.png"]
    for path, name, number, rows in zip(source.images, "abc", (20, 10, 30), source.labels, strict=True):
        assert path.read_bytes() == (images / f"{name}.PNG").read_bytes()
        assert rows[:, :2].tolist() == [[0, 5 if name == "a" else -1], [-1, -1]]
        corner = (rows[:, 2:4] - rows[:, 4:] / 2) * (96, 64)
        assert corner[0] == pytest.approx([square_left(scene(number)), 20], abs=1.01)
        assert corner[1] == pytest.approx(DOUBTFUL[:2], abs=0.01)


def test_images_and_videos_together(run: Run, tmp_path: Path) -> None:
    images = write_people(tmp_path / "people", 2)
    clip = write_clip(tmp_path / "walk.mp4", 12, rate=10)
    status, out, _ = run("--images", f"jde:{images}", "--video", clip, "--out", tmp_path / "labels")
    assert status == 0
    assert [json.loads(line)["images"] for line in out.splitlines()] == [2, 3]
    assert sorted(p.name for p in (tmp_path / "labels").iterdir()) == ["people", "walk"]


def test_errors_of_images(run: Run, tmp_path: Path) -> None:
    images = write_people(tmp_path / "people", 1)
    out = ("--out", tmp_path / "labels")
    assert failing(run(*out)) == "nothing to label: give --video or --images"
    message = failing(run("--images", f"jde:{images}", f"jde:{images}", *out))
    assert message == f"jde:{images}: would share the folder 'people' with jde:{images}: rename one"
    crops = tmp_path / "crops"
    crops.mkdir()
    cv2.imwrite(str(crops / "0002_c1.png"), scene(1))
    assert "--images: crops show one person each" in failing(run("--images", f"crops:{crops}", *out))
    assert "no such file or folder" in failing(run("--images", "jde:absent/images", *out))
    settings = ("--images", f"jde:{images}", *out, "--set")
    assert "flips: expected one for each of input_sizes, got [True]" in failing(
        run(*settings, "completion.flips=[true]")
    )
    assert "heights: expected one for each" in failing(run(*settings, "completion.heights=[[0, 9]]"))
    assert "input_sizes: expected at least one" in failing(run(*settings, "completion.input_sizes=[]"))
    assert not (tmp_path / "labels").exists()


@pytest.mark.shared
def test_a_real_teacher_on_real_frames(tool: ModuleType, shared: Path, tmp_path: Path, capfd) -> None:
    frames = tmp_path / "hall"
    frames.mkdir()
    capture = cv2.VideoCapture(str(shared / "data" / "video" / "people.mp4"))
    for number in range(1, 6):
        cv2.imwrite(str(frames / f"{number}.png"), capture.read()[1])
    settings = ["input_sizes=[640]", "flip=false", "min_seconds=0.3", "save_every=4", "min_score=0.5"]
    weights = shared / "data" / "weights" / "yolox_nano.onnx"
    argv = ["--video", str(frames), "--weights", str(weights), "--out", str(tmp_path / "labels"), "--device", "cpu"]
    assert tool.main([*argv, *(w for s in settings for w in ("--set", f"pseudo_label.{s}"))]) == 0
    summary = json.loads(capfd.readouterr().out)
    assert summary["images"] == 2
    assert summary["people"] >= 3
    rows = open_source(f"jde:{tmp_path / 'labels' / 'hall' / 'images'}").labels[-1]
    people = rows[rows[:, 0] == 0]
    assert len(people) >= 3
    assert len(set(people[:, 1])) == len(people)


def test_a_teacher_that_is_none(tool: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    clip = write_clip(tmp_path / "walk.mp4", 5)
    for name in ("absent.safetensors", "absent.onnx"):
        argv = ["--video", str(clip), "--weights", str(tmp_path / name), "--out", str(tmp_path / "labels")]
        assert name in failing((tool.main(argv), *capfd.readouterr()))
