import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

from detector.data import open_source, read_image
from detector.losses import IGNORE_LABEL, NO_IDENTITY
from tests.detector.scenes import drawn
from tests.tracker.clips import SQUARE, find_square, scene, square_left, write_clip
from tracker import Detections, FrameResult

TOOL = Path(__file__).resolve().parents[2] / "tools" / "pseudo_label.py"
Run = Callable[..., tuple[int, str, str]]
DOUBTFUL = [70.0, 4.0, 90.0, 16.0]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pseudo_label_tool", TOOL)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["pseudo_label_tool"] = module
    spec.loader.exec_module(module)
    return module


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

    def call(*argv: object) -> tuple[int, str, str]:
        capfd.readouterr()
        status = tool.main([str(a) for a in argv])
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return call


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
