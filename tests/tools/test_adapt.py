"""The tool on drawn people: bright rectangles of a colour each, found for sure, embedded by a random network."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import av
import cv2
import numpy as np
import pytest
import torch

from detector import Detector, DetectorConfig, load_model, save_model
from detector.patches import cut_patches, embed_patches
from detector.priors import Picks
from detector.training import is_embedding
from tests.detector.scenes import lively_darknet, lively_model
from tests.tools import conftest
from tests.tools.conftest import call_tool, load_tool

Run = Callable[..., tuple[int, str, str]]
WIDTH, HEIGHT = 128, 96
COLOURS = ((250, 60, 60), (60, 250, 60), (60, 60, 250), (250, 250, 60), (250, 60, 250))
QUICK = ("--threads", "1", "--set", "adapt.steps=3", "adapt.epochs=2", "adapt.people=2", "adapt.min_seconds=0.5")


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("adapt")


def scene(number: int, people: int = 3) -> np.ndarray:
    """People on lanes of their own walk to and fro, a pixel or more a frame; each is of its colour."""
    rng = np.random.default_rng(number)
    frame = rng.integers(0, 40, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    for person in range(people):
        room = WIDTH - 12
        left = room - abs((number * (person + 1) + 30 * person) % (2 * room) - room)
        top = 2 + person * 30
        frame[top : top + 24, left : left + 12] = COLOURS[person]
    return frame


def write_video(path: Path, count: int = 24, people: int = 3, rate: int = 10, first: int = 1) -> Path:
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "12", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv444p"
        stream.codec_context.thread_count = 1
        for number in range(first, first + count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(scene(number, people), format="bgr24")))
        container.mux(stream.encode())
    return path


class Rectangles:
    """A detector of what is bright, on whose boxes the model's own embedding head works."""

    def __init__(self, model, device, config, *, patches: bool = False) -> None:
        self.model, self.patches = model, patches

    @torch.inference_mode()
    def __call__(self, frames: Sequence[np.ndarray]) -> list[dict[str, object]]:
        return [self._find(frame) for frame in frames]

    def _find(self, frame: np.ndarray) -> dict[str, object]:
        bright = cv2.morphologyEx((frame.max(axis=2) > 140).astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5)))
        count, _, stats, _ = cv2.connectedComponentsWithStats(bright)
        x, y, w, h = stats[1:count, :4].T.astype(np.float32)
        boxes = np.stack((x, y, x + w, y + h), axis=1)
        _, maps = self.model(torch.from_numpy(frame.copy()).permute(2, 0, 1)[None].float())
        xyxy = torch.from_numpy(boxes)
        centre = ((xyxy[:, :2] + xyxy[:, 2:]) / 16).long()
        zero = torch.zeros(len(boxes), dtype=torch.int64)
        cut = cut_patches(self.model, maps, Picks(zero, zero, centre, xyxy))
        found = {"boxes": boxes, "scores": np.full(len(boxes), 0.9, np.float32), "labels": zero.numpy()}
        found["embeddings"] = embed_patches(self.model, cut).numpy()
        return found | ({"patches": cut} if self.patches else {})


@pytest.fixture
def run(tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """The tool in this process: arguments -> (status, stdout, stderr)."""
    monkeypatch.setattr(tool, "Detector", Rectangles)

    def call(*argv: object, pictures: bool = False) -> tuple[int, str, str]:
        with monkeypatch.context() as patch:
            if not pictures:  # they take most of the time
                for name in ("plot_clusters", "plot_separation", "draw_clusters"):
                    patch.setattr(tool, name, lambda *args: None)
            return call_tool(tool, capfd, *argv)

    return call


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "random.safetensors"
    save_model(path, lively_model(embedding_dim=16), half=False)
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("footage") / "door.mp4")


def failing(outcome: tuple[int, str, str]) -> str:
    return conftest.failing(outcome).removeprefix("error: ")


def same_state(first: Path, second: Path) -> bool:
    one, other = load_model(first).state_dict(), load_model(second).state_dict()
    return all(torch.equal(value, other[name]) for name, value in one.items())


def log(out: Path) -> list[dict[str, object]]:
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.fixture
def third_is_best(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was measured: who is drawn here is told apart by any network."""
    monkeypatch.setattr(tool, "better", lambda row, than: row["epoch"] == 3)


@pytest.mark.usefixtures("third_is_best")
def test_from_footage_to_a_model(run: Run, tmp_path: Path, weights: Path, video: Path) -> None:
    other = write_video(tmp_path / "hall.mp4", first=100)
    out = tmp_path / "out"
    argv = ("--video", video, other, "--weights", weights, "--out", out, *QUICK, "adapt.epochs=4")
    status, printed, err = run(*argv, pictures=True)
    assert (status, err) == (0, "")
    names = {"boxes", "run.json", "report.json", "log.jsonl", "last.pt", "model.safetensors"}
    assert {path.name for path in out.iterdir()} == names | {"clusters.png", "separation.png", "people.png"}
    report = json.loads((out / "report.json").read_text())
    assert [seen["frames"] for seen in report["footage"]] == [24, 24]
    assert [seen["ids"] for seen in report["footage"]] == [3, 3]
    assert [seen["tracklets"] for seen in report["footage"]] == [3, 3]
    assert all(seen["detections"] == seen["after"]["detections"] for seen in report["footage"])
    assert report["cameras"] == [1, 2]
    assert report["before"]["epoch"] == 0
    assert report["before"]["violations"] == 0
    assert report["after"]["epoch"] == report["best_epoch"] == 3
    rows = log(out)
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3, 4]
    assert {"total", "cluster", "camera", "hold"} == rows[0]["losses"].keys()
    assert "detections are the same to the bit in 2 of 2 videos" in printed
    assert printed.splitlines()[-1].startswith(f"{out / 'model.safetensors'}: epoch 3 of 4, ")

    before, after = load_model(weights).state_dict(), load_model(out / "model.safetensors").state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed
    assert all(is_embedding(name) for name in changed)


def test_going_on_gives_the_same_to_the_bit(
    tool: ModuleType, run: Run, tmp_path: Path, weights: Path, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ("--video", video, "--weights", weights, "--no-retrack", *QUICK, "adapt.epochs=3", "adapt.held_out=0")
    assert run(*argv, "--out", tmp_path / "whole")[0] == 0
    out = tmp_path / "parts"
    for stop_at in (tool.TrackedBoxes.save, tool.write_checkpoint, tool.learned_state):
        calls = []

        def interrupted(*args: object, original=stop_at, calls: list[int] = calls, **more: object) -> object:
            calls.append(1)
            if len(calls) > 1:
                raise KeyboardInterrupt(2)
            return original(*args, **more)

        with monkeypatch.context() as patch:
            owner = tool.TrackedBoxes if stop_at.__name__ == "save" else tool
            patch.setattr(owner, stop_at.__name__, interrupted)
            if stop_at.__name__ == "save":
                calls.append(1)  # the first file already
            status, _, err = run(*(argv if not out.exists() else ("--no-retrack", "--resume")), "--out", out)
        assert status == 130, err
        assert err.strip().splitlines()[-1] == f"interrupted; go on with: --out {out} --resume"
    assert (out / "last.pt").is_file()
    status, _, err = run("--out", out, "--resume", "--no-retrack")
    assert status == 0, err
    assert same_state(out / "model.safetensors", tmp_path / "whole" / "model.safetensors")
    assert log(out) == log(tmp_path / "whole")
    # When all is done, going on again changes nothing, and more epochs may be asked for.
    assert run("--out", out, "--resume", "--no-retrack")[0] == 0
    assert log(out) == log(tmp_path / "whole")
    assert run("--out", out, "--resume", "--no-retrack", "--set", "adapt.epochs=4", "adapt.patience=9")[0] == 0
    assert log(out)[:3] == log(tmp_path / "whole")[:3]
    assert len(log(out)) == 5
    assert failing(run("--out", out, "--resume", "--set", "adapt.lr=1")) == (
        "--resume: only adapt.epochs and adapt.patience may change"
    )
    assert "--video: is the run's that goes on" in failing(run("--out", out, "--resume", "--video", video))


@pytest.mark.usefixtures("third_is_best")
def test_the_published_family(run: Run, tmp_path: Path, video: Path) -> None:
    path = tmp_path / "darknet.safetensors"
    save_model(path, lively_darknet(input_size=(WIDTH, HEIGHT)), half=False)
    status, _, err = run("--video", video, "--weights", path, "--out", tmp_path / "out", *QUICK, "adapt.epochs=3")
    assert status == 0, err
    before, after = load_model(path).state_dict(), load_model(tmp_path / "out" / "model.safetensors").state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed
    assert changed <= {name for name in before if ".embedding." in name}
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["footage"][0]["detections"] == report["footage"][0]["after"]["detections"]


def test_the_neck_learns_from_frames(run: Run, tmp_path: Path, weights: Path, video: Path) -> None:
    settings = ("adapt.neck_frames=8", "adapt.frames_per_step=3", "adapt.held_out=0", "detector.input_size=128")
    argv = ("--video", video, "--weights", weights, "--train", "neck", *QUICK, *settings)
    status, printed, err = run(*argv, "--out", tmp_path / "out")
    assert status == 0, err
    assert "detection moved by up to " in printed
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["before"]["all"]["same_pairs"] > 0
    assert report["before"]["images"] <= 24  # boxes of eight frames
    before, after = load_model(weights).state_dict(), load_model(tmp_path / "out" / "model.safetensors").state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert not any(name.startswith(("backbone.", "heads.")) for name in changed)
    if report["best_epoch"]:
        assert any(name.startswith("pyramid.") for name in changed)
        assert report["detection"]["score"] > 0
    assert json.loads((tmp_path / "out" / "log.jsonl").read_text().splitlines()[0])["losses"]["detection"] >= 0


def test_two_videos_of_one_camera(run: Run, tmp_path: Path, weights: Path, video: Path) -> None:
    other = write_video(tmp_path / "later.mp4", first=60)
    argv = ("--video", video, other, "--cameras", 4, 4, "--weights", weights, "--out", tmp_path / "out", "--no-retrack")
    status, _, err = run(*argv, *QUICK)
    assert (status, err) == (0, "note: one camera only: the camera term is off\n")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    # People of the two videos were never there at once: only those within each are kept apart.
    assert report["before"]["cannot_links"] == 6
    assert report["before"]["losses"]["camera"] == 0


def test_frames_in_between_are_left_out(run: Run, tmp_path: Path, weights: Path) -> None:
    clip = write_video(tmp_path / "fast.mp4", 60, rate=30)
    argv = ("--video", clip, "--weights", weights, "--no-retrack", *QUICK, "adapt.held_out=0")
    assert run(*argv, "--out", tmp_path / "out", "--start", 4, "--end", 57)[0] == 0
    seen = json.loads((tmp_path / "out" / "report.json").read_text())["footage"][0]
    assert (seen["frames"], seen["frame_rate"]) == (18, 10)


def test_when_nothing_gets_better_the_model_stays(
    run: Run, tmp_path: Path, weights: Path, video: Path, tool, monkeypatch
) -> None:
    monkeypatch.setattr(tool, "better", lambda row, than: False)
    argv = ("--video", video, "--weights", weights, "--out", tmp_path / "out", "--no-retrack", *QUICK)
    status, printed, _ = run(*argv, "adapt.epochs=9", "adapt.patience=2")
    assert status == 0
    assert "no epoch told people apart better than before: the model is as it was" in printed
    assert len(log(tmp_path / "out")) == 3
    assert same_state(tmp_path / "out" / "model.safetensors", weights)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "after" not in report["footage"][0]  # there is nothing to look at again


def test_clusters_that_fall_apart_end_the_epochs(
    run: Run, tmp_path: Path, weights: Path, video: Path, tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first epoch nothing can be learned; later the best model so far is the result."""
    find, calls = tool.TrackletLabels.find, []

    def once_or_twice(*args: object) -> object:
        calls.append(1)
        if len(calls) > 2:
            raise tool.TooFewIdentitiesError("one cluster")
        return find(*args)

    monkeypatch.setattr(tool.TrackletLabels, "find", once_or_twice)
    argv = ("--video", video, "--weights", weights, "--no-retrack", *QUICK, "adapt.epochs=9")
    status, printed, err = run(*argv, "--out", tmp_path / "out")
    assert status == 0, err
    assert "note: epoch 2: one cluster; the best epoch before is kept\n" in err
    assert " of 1, " in printed.splitlines()[-1]
    status, _, err = run(*argv, "--out", tmp_path / "other")
    assert (status, err.splitlines()[-1]) == (1, "error: one cluster")


def test_what_is_held_out_is_in_no_memory(
    run: Run, tmp_path: Path, weights: Path, video: Path, tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even as an outlier: SpCL draws everybody away from these."""
    kept = []

    class Spied(tool.ContrastCriterion):
        def rebuild(self, features: torch.Tensor, labels: torch.Tensor, camids: torch.Tensor) -> None:
            super().rebuild(features, labels, camids)
            kept.append((len(features), len(self.memory.features)))

    monkeypatch.setattr(tool, "ContrastCriterion", Spied)
    argv = ("--video", video, "--weights", weights, "--out", tmp_path / "out", "--no-retrack", *QUICK)
    assert run(*argv, "contrast.method=self-paced", "contrast.momentum=0.2")[0] == 0
    (row, _, _), all_boxes = log(tmp_path / "out"), 72
    assert row["images"] == all_boxes
    assert kept == [(48, 48)] * 2  # one of three people is held out
    assert row["losses"]["instance"] > 0


def test_footage_that_breaks_off_is_used_up_to_there(run: Run, tmp_path: Path, weights: Path) -> None:
    clip = write_video(tmp_path / "cut.mp4", 60)
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size * 2 // 3])
    argv = ("--video", clip, "--weights", weights, "--out", tmp_path / "out", "--no-retrack", *QUICK)
    status, _, err = run(*argv)
    assert status == 0, err
    notes = [line for line in err.splitlines() if "camera" not in line]
    assert len(notes) == 1
    assert notes[0].startswith(f"note: {clip}: stopped at frame ")
    assert notes[0].endswith("; what came before is used")
    seen = json.loads((tmp_path / "out" / "report.json").read_text())["footage"][0]
    assert 10 < seen["frames"] < 60


def test_what_cannot_be_learned_from(run: Run, tmp_path: Path, weights: Path, video: Path) -> None:
    def refused(*argv: object) -> str:
        refused.count += 1
        return failing(run(*argv, "--weights", weights, "--out", tmp_path / str(refused.count), *QUICK))

    refused.count = 0
    empty = write_video(tmp_path / "empty.mp4", 8, people=0)
    assert refused("--video", empty).startswith("nobody was followed clearly for 0.5 s in 8 frames: give more footage")
    alone = write_video(tmp_path / "alone.mp4", 20, people=1)
    assert refused("--video", alone) == "one tracklet only: at least two people are needed, give more footage"
    assert refused() == "--video: expected footage to adapt to"
    assert refused("--video", video, "--cameras", 1, 2) == "--cameras: expected one for each of 1 videos, got 2"
    assert refused("--video", video, "--cameras", -1) == "--cameras: expected numbers from 0 to 999999, got -1"
    assert refused("--video", video, video.parent / "." / video.name).startswith("--video: one is given twice: ")
    assert refused("--video", tmp_path / "none.mp4").endswith("none.mp4: no such file or folder")
    assert "unknown key in section 'adapt': 'epoch'" in refused("--video", video, "--set", "adapt.epoch=3")
    assert "start: expected a frame number from 1" in refused("--video", video, "--start", 0)
    headless = tmp_path / "headless.safetensors"
    save_model(headless, lively_model(embedding_dim=0))
    message = failing(run("--video", video, "--weights", headless, "--out", tmp_path / "x"))
    assert message == f"{headless}: the model has no embedding head to adapt"
    assert "--threads: expected at least 1, got 0" in failing(
        run("--video", video, "--out", tmp_path / "x", "--threads", 0)
    )
    assert not (tmp_path / "x").exists()
    assert "no run to go on with" in failing(run("--out", tmp_path / "x", "--resume"))


def test_an_earlier_run_is_not_written_over(run: Run, tmp_path: Path, weights: Path, video: Path) -> None:
    changing = tmp_path / "model.safetensors"
    changing.write_bytes(weights.read_bytes())
    argv = ("--video", video, "--weights", changing, "--out", tmp_path / "out", "--no-retrack", *QUICK)
    assert run(*argv)[0] == 0
    message = failing(run(*argv))
    assert message == (
        f"{tmp_path / 'out' / 'run.json'}: is of an earlier run; give --resume to go on, or another --out"
    )
    save_model(changing, lively_model(1, embedding_dim=16))
    message = failing(run("--out", tmp_path / "out", "--resume"))
    assert message == f"{changing}: is another file than when the run began"


def test_people_who_are_never_seen_at_once(run: Run, tmp_path: Path, weights: Path) -> None:
    """Nothing tells whether an epoch was good: nobody is held out, and the last epoch is kept."""
    folder = tmp_path / "one_by_one"
    folder.mkdir()
    for number in range(1, 61):
        person = (number - 1) // 20
        frame = scene(number)
        for other in {0, 1, 2} - {person}:
            frame[2 + other * 30 : 26 + other * 30] = 0
        cv2.imwrite(str(folder / f"{number:03d}.png"), frame)
    argv = ("--video", folder, "--weights", weights, "--out", tmp_path / "out", "--no-retrack", *QUICK)
    status, printed, err = run(*argv, "adapt.frame_rate=30", "adapt.min_seconds=0.3", "clusters.eps=0.05")
    assert status == 0, err
    assert "note: no two people are seen at once: nothing tells which epoch is good, the last one is kept\n" in err
    assert printed.splitlines()[-1].startswith(f"{tmp_path / 'out' / 'model.safetensors'}: epoch 2 of 2, ")
    assert json.loads((tmp_path / "out" / "report.json").read_text())["after"]["held"]["auc"] is None


@pytest.mark.shared
def test_real_footage_and_detections_to_the_bit(tool: ModuleType, shared: Path, tmp_path: Path, capfd) -> None:
    """Frames of a hall: after adapting, boxes and scores are what they were, embeddings are not."""
    footage = shared / "data" / "video" / "people.mp4"
    out = tmp_path / "out"
    settings = ["adapt.epochs=1", "adapt.steps=4", "adapt.held_out=0", "adapt.min_seconds=0.7", "adapt.frame_rate=8"]
    argv = ["--video", str(footage), "--out", str(out), "--end", "30", "--device", "cpu", "--set", *settings]
    assert tool.main(argv) == 0
    assert "detections are the same to the bit in 1 of 1 videos" in capfd.readouterr().out
    report = json.loads((out / "report.json").read_text())
    assert report["best_epoch"] == 1
    assert report["before"]["tracklets"] > 5

    capture = cv2.VideoCapture(str(footage))
    frames = [capture.read()[1] for _ in range(3)]
    first, second = (Detector(load_model(path), "cpu", DetectorConfig()) for path in (None, out / "model.safetensors"))
    for before, after in zip(first(frames), second(frames), strict=True):
        assert len(before["boxes"]) > 5
        for name in ("boxes", "scores", "labels"):
            assert np.array_equal(before[name], after[name])
        moved = 1 - (before["embeddings"] * after["embeddings"]).sum(axis=1)
        assert 1e-4 < moved.max() < 0.3
    changed = load_model(out / "model.safetensors").state_dict()
    assert all(
        torch.equal(value, changed[name]) for name, value in load_model().state_dict().items() if not is_embedding(name)
    )
