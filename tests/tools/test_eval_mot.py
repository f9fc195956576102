"""`tools/eval_mot.py` end to end: its outputs, runs of the tracker, and what it says to bad input."""

import csv
import functools
import hashlib
import json
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from detector.checkpoint import BUNDLED
from tests.tools.conftest import TOOLS, call_tool, failing, load_tool
from tests.tracker.clips import find_square
from tests.tracker.test_evaluation import RESULT, TRUTH, add_sequence
from tracker.video import VideoSource

TOOL = TOOLS / "eval_mot.py"


@pytest.fixture(scope="module")
def tool():
    return load_tool("eval_mot")


@pytest.fixture
def call(tool, capfd):
    """The tool in this process: arguments -> (status, stdout, stderr)."""

    return functools.partial(call_tool, tool, capfd)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Two sequences of three frames with results; the working folder is theirs."""
    add_sequence(tmp_path, "A")
    add_sequence(tmp_path, "B", result=RESULT[:1])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def scores(path):
    return json.loads(Path(path).read_text())


# --- scoring


def test_the_fixed_call_as_a_program(folders):
    command = [sys.executable, str(TOOL), "--gt", "gt", "--results", "results", "--json", "out.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == ""
    assert list(scores("out.json")) == ["A", "B", "COMBINED"]
    assert scores("out.json")["COMBINED"]["MOTA"] == pytest.approx(4 / 8)
    assert "COMBINED  " in done.stdout and "rules:       MOT17" in done.stdout


@pytest.mark.shared
def test_lift_on_mot17(shared, call, tmp_path):
    data = shared / "data" / "mot_results" / "LifT_MOT17_train"
    golden = json.loads((shared / "golden" / "trackeval_lift_mot17_train.json").read_text())
    path = tmp_path / "out.json"
    status, out, _ = call("--gt", data / "MOT17" / "train", "--results", data / "Lif_T", "--json", path)
    assert status == 0 and "791  2655  107803  679  595  364  1153" in out
    ours = scores(path)
    for sequence, expected in golden.items():
        row = ours["COMBINED" if sequence == "COMBINED_SEQ" else sequence]
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, abs=1e-9), (sequence, name)


@pytest.mark.shared
@pytest.mark.parametrize(("name", "idf1", "mota"), [("TUD-Campus", 0.558, 0.526), ("TUD-Stadtmitte", 0.645, 0.564)])
def test_motmetrics_own_figures(shared, call, tmp_path, name, idf1, mota):
    folder = shared / "data" / "mot" / name
    path = tmp_path / "out.json"
    options = ("--engine", "motmetrics", "--json", path, "--events", tmp_path / "events.csv")
    status, out, _ = call("--gt", folder / "gt" / "gt.txt", "--results", folder / "motmetrics_test.txt", *options)
    assert status == 0 and "motmetrics" in out
    ours = scores(path)[name]
    assert (round(ours["IDF1"], 3), round(ours["MOTA"], 3)) == (idf1, mota)
    with (tmp_path / "events.csv").open() as file:
        kinds = [row["event"] for row in csv.DictReader(file)]
    assert (kinds.count("SWITCH"), kinds.count("MISS")) == (ours["IDSW"], ours["CLR_FN"])


def test_everything_a_report_holds(folders, call):
    assert call("--gt", "gt", "--results", "results", "--out", "report")[0] == 0
    written = {str(path.relative_to("report")) for path in Path("report").rglob("*") if path.is_file()}
    assert written == {
        "scores.json", "scores.csv", "events.csv", "run.json", "plots/hota.png",
        "plots/timelines/A.png", "plots/timelines/B.png",
    }  # fmt: skip
    for name in ("hota", "timelines/A", "timelines/B"):
        assert min(cv2.imread(f"report/plots/{name}.png").shape[:2]) > 200
    run = json.loads(Path("report/run.json").read_text())
    assert (run["rules"], run["frames"], run["sequences"]) == (["MOT17"], "all", ["A", "B"])
    with Path("report/events.csv").open() as file:
        events = [(row["sequence"], row["frame"], row["event"]) for row in csv.DictReader(file)]
    assert events == [("A", "3", "MISS"), ("B", "2", "MISS"), ("B", "3", "MISS"), ("B", "3", "MISS")]


def test_switches_are_printed(folders, call):
    (folders / "results" / "A.txt").write_text("\n".join([RESULT[0], "3,9,5,0,10,20\n"]))
    status, out, _ = call("--gt", "gt", "--results", "results", "--events")
    assert status == 0
    assert "A frame 3: SWITCH of person 1, 4 -> 9 (IoU 1.00)" in out


def test_a_choice_of_sequences_and_frames(folders, call):
    Path("map.txt").write_text("name\nB\n")
    for choice in (("--sequences", "B"), ("--seqmap", "map.txt"), ("--sequences", "[B-Z]")):
        assert call("--gt", "gt", "--results", "results", "--json", "o.json", *choice)[0] == 0
        assert list(scores("o.json")) == ["B", "COMBINED"]
    for part, boxes in ((("--frames", "3:3"), 4), (("--half", "train"), 4), (("--half", "val"), 4), ((), 8)):
        call("--gt", "gt", "--results", "results", "--json", "o.json", *part)
        row = scores("o.json")["COMBINED"]
        assert row["CLR_TP"] + row["CLR_FN"] == boxes
    call("--gt", "gt", "--results", "results", "--json", "o.json", "--half", "val", "--sequences", "A")
    assert scores("o.json")["A"]["CLR_TP"] == 1
    (folders / "results" / "A.txt").write_text("1,4,5,0,10,20\n")
    options = ("--half", "val", "--sequences", "A", "--renumbered")
    call("--gt", "gt", "--results", "results", "--json", "o.json", *options)
    assert scores("o.json")["A"]["CLR_TP"] == 1


def test_rules_can_be_chosen(folders, call):
    truth = [*TRUTH, "1,9,300,0,10,20,0,6,1"]
    (folders / "gt" / "A" / "gt" / "gt.txt").write_text("\n".join(truth))
    (folders / "results" / "A.txt").write_text("\n".join([*RESULT, "1,9,300,0,10,20\n"]))
    for benchmark, wrong in (("MOT17", 1), ("MOT20", 0)):
        call("--gt", "gt/A", "--results", "results", "--json", "o.json", "--benchmark", benchmark)
        assert scores("o.json")["A"]["CLR_FP"] == wrong


def test_classes_by_themselves(folders, call):
    (folders / "gt" / "A" / "gt" / "gt.txt").write_text("1,1,0,0,10,20,1,1,1\n1,2,50,0,10,20,1,3,1\n")
    (folders / "results" / "A.txt").write_text("1,1,0,0,10,20,1,1\n1,2,50,0,10,20,1,1\n1,3,90,0,10,20,1,5\n")
    status, out, _ = call(
        "--gt", "gt", "--results", "results/", "--sequences", "A", "--classes", "all", "--json", "o.json"
    )
    assert status == 0 and "CLASS-AVERAGED" in out
    ours = scores("o.json")
    assert [ours[f"A/{number}"]["CLR_TP"] for number in (1, 3, 5)] == [1, 0, 0]
    assert [ours[f"COMBINED/{number}"]["CLR_FP"] for number in (1, 3, 5)] == [1, 0, 1]
    assert ours["A"]["CLR_FN"] == ours["COMBINED"]["CLR_FN"] == 1
    assert ours["CLASS-AVERAGED"]["CLR_Re"] == pytest.approx((1 + 0 + 0) / 3)
    assert call("--gt", "gt", "--results", "results", "--sequences", "A", "--classes", "3", "--out", "r")[0] == 0
    assert Path("r/plots/timelines/A-class3.png").is_file()


def test_video_of_what_is_wrong(folders, call):
    draw_pictures(folders / "gt" / "A", 3)
    status, out, _ = call("--gt", "gt/A", "--results", "results", "--video", "films")
    assert status == 0 and "wrote films/A.errors.mp4" in out
    with VideoSource("films/A.errors.mp4") as film:
        assert len(list(film)) == 3
    err = failing(call("--gt", "gt", "--results", "results", "--video", "films", "--json", "o.json"))
    assert "gt/B/img1" in err


def test_archive_of_results_that_cannot_be_scored(folders, call):
    for name in "AB":
        (folders / "gt" / name / "gt" / "gt.txt").unlink()
    status, out, _ = call("--gt", "gt", "--results", "results", "--submission", "mine.zip")
    assert (status, out) == (0, "wrote mine.zip: 2 sequences\n")
    with zipfile.ZipFile("mine.zip") as archive:
        assert archive.namelist() == ["A.txt", "B.txt"]
    Path("mine.zip").unlink()
    err = failing(call("--gt", "gt", "--results", "results", "--submission", "mine.zip", "--json", "o.json"))
    assert err == "error: gt: without ground truth there is nothing to write but --submission"
    (folders / "results" / "B.txt").write_text("4,1,0,0,10,20\n")
    err = failing(call("--gt", "gt", "--results", "results", "--submission", "mine.zip"))
    assert err.endswith("results/B.txt:1: frame: expected 1 to 3, the sequence's length, got 4")
    assert not Path("mine.zip").exists()


def test_archive_of_results_that_are_scored_too(folders, call):
    options = ("--submission", "mine.zip", "--classes", "1", "--json", "o.json")
    (folders / "results" / "A.txt").write_text("1,1,0,0,10,20,1,1\n")
    (folders / "results" / "B.txt").write_text("")
    status, out, _ = call("--gt", "gt", "--results", "results", *options)
    assert status == 0 and "wrote mine.zip: 2 sequences" in out and "A/1" in scores("o.json")
    (folders / "gt" / "B" / "gt" / "gt.txt").unlink()
    err = failing(call("--gt", "gt", "--results", "results", "--submission", "mine.zip"))
    assert err == "error: gt/B/gt/gt.txt: no such file, though other sequences have theirs"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc tells when the others are at work")
def test_interrupted_while_scoring(folders):
    """Several processes, and sequences large enough to be in the midst of them."""
    rows = "".join(f"{frame},{i},{i % 60},{i // 60},40,80,1,1,1\n" for frame in range(1, 101) for i in range(400))
    for name in "ABCD":
        add_sequence(folders / "big", name, truth=[rows], result=[rows], length=100)
    command = [sys.executable, str(TOOL), "--gt", "big/gt", "--results", "big/results", "--json", "o.json"]
    with subprocess.Popen([*command, "--processes", "2"], stderr=subprocess.PIPE, text=True) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while process.poll() is None and not children.read_text():
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and err.strip() == "interrupted"
    assert not Path("o.json").exists() and not list(folders.glob("*.part"))


# --- the tracker first


def draw_pictures(folder, count):
    """A bright square that moves, which `find_square` finds."""
    (folder / "img1").mkdir()
    for number in range(count):
        picture = np.zeros((64, 96, 3), np.uint8)
        picture[20:40, 10 + 3 * number : 30 + 3 * number] = 255
        cv2.imwrite(str(folder / "img1" / f"{number + 1:06d}.png"), picture)


@pytest.fixture
def square(tmp_path, tool, monkeypatch):
    """A sequence of twelve frames in three copies, as in MOT17, and a detector of its square."""
    truth = [f"{number + 1},7,{10 + 3 * number},20,20,20,1,1,1" for number in range(12)]
    for name in ("MOT17-02-DPM", "MOT17-02-SDP", "MOT17-04-SDP"):
        add_sequence(tmp_path, name, truth=truth, length=12)
        draw_pictures(tmp_path / "gt" / name, 12)
        (tmp_path / "gt" / name / "det").mkdir()
        lines = "".join(line.replace(",7,", ",-1,", 1).rsplit(",", 3)[0] + ",0.9,-1,-1,-1\n" for line in truth[:10])
        (tmp_path / "gt" / name / "det" / "det.txt").write_text(lines)
    sys.path.insert(0, str(TOOL.parent))
    import track

    monkeypatch.setattr(track, "load", lambda args, config: (find_square, 1, 1))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_track_then_score(square, call):
    status, out, err = call("--gt", "gt", "--weights", "--out", "report", "--", "--set", "tracker.track_buffer=2")
    assert status == 0
    assert "tracking MOT17-02-DPM, 1 of 2" in err and "MOT17-02-SDP, " not in err  # it has the same pictures
    digest = hashlib.sha256(BUNDLED.read_bytes()).hexdigest()
    assert digest in out and "track_buffer: 2.0" in out
    run = json.loads(Path("report/run.json").read_text())
    assert run["sha256"] == digest and run["config"]["tracker"]["track_buffer"] == 2.0
    ours = scores("report/scores.json")
    assert len(ours) == 4 and ours["COMBINED"]["MOTA"] == 1.0
    assert call("--gt", "gt/MOT17-04-SDP", "--weights", "--out", "report")[0] == 0  # others of before lie there
    assert list(scores("report/scores.json")) == ["MOT17-04-SDP", "COMBINED"]
    texts = [Path(f"report/results/{name}.txt").read_text() for name in ("MOT17-02-DPM", "MOT17-02-SDP")]
    assert texts[0] == texts[1]


def test_public_detections_then_score(square, call):
    status, _, _ = call("--gt", "gt", "--detections", "public", "--sequences", "*-SDP", "--out", "report")
    assert status == 0
    ours = scores("report/scores.json")
    assert list(ours) == ["MOT17-02-SDP", "MOT17-04-SDP", "COMBINED"]
    assert ours["MOT17-02-SDP"]["CLR_TP"] == 10 and ours["MOT17-02-SDP"]["CLR_FN"] == 2
    assert call("--gt", "gt", "--detections", "public", "--sequences", "*-SDP", "--", "--fill-gaps", "--frames", "2")[0]


def test_detections_of_a_folder(square, call):
    Path("mine").mkdir()
    text = Path("gt/MOT17-04-SDP/det/det.txt").read_text()
    Path("mine/MOT17-04-SDP.txt").write_text(text)
    assert call("--gt", "gt/MOT17-04-SDP", "--detections", "mine", "--out", "r", "--frames", "3:12")[0] == 0
    ours = scores("r/scores.json")["MOT17-04-SDP"]
    assert (ours["CLR_TP"], ours["CLR_FN"]) == (8, 2)
    err = failing(call("--gt", "gt", "--detections", "mine", "--out", "r"))
    assert "mine/MOT17-02-DPM.txt: no such file; expected the detections of MOT17-02-DPM" in err


def test_the_tracker_is_not_run_on_a_part_of_the_pictures(square, call):
    Path("gt/MOT17-04-SDP/img1/000012.png").unlink()
    err = failing(call("--gt", "gt", "--weights", "--out", "report"))
    assert err == "error: gt/MOT17-04-SDP/img1: expected 12 pictures, found 11"


def test_errors_of_the_tracker_are_its_own(square, call):
    status, _, err = call("--gt", "gt", "--weights", "--out", "report", "--", "--star", "2")
    assert status == 2 and "unrecognized arguments: --star" in err
    status, _, err = call("--gt", "gt", "--weights", "--out", "report", "--", "--set", "tracker.no=1")
    assert status == 1 and "tracker.no=1': unknown key" in err.splitlines()[-1]
    Path("gt/MOT17-04-SDP/img1/000002.png").write_bytes(b"no picture")
    status, _, err = call("--gt", "gt/MOT17-04-SDP", "--weights", "--out", "report")
    assert status == 1 and "000002.png" in err.splitlines()[-1] and "Traceback" not in err


# --- bad input: one line, path and line where there is one, and no scores


def truth(*lines):
    return "gt/A/gt/gt.txt", [*TRUTH, *lines]


def result(*lines):
    return "results/A.txt", [*RESULT, *lines]


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (result("2,x,9,0,10,20"), "results/A.txt:5: id: expected a number, got 'x'"),
        (result("2,5,nan,0,10,20"), "results/A.txt:5: left: expected a finite number, got 'nan'"),
        (result("2,5,9,0,-10,20"), "results/A.txt:5: width: expected a size of at least 0, got -10"),
        (result("2,5,9,0,10,-1"), "results/A.txt:5: height: expected a size of at least 0, got -1"),
        (result("2,5.5,9,0,10,20"), "results/A.txt:5: id: expected a whole number, got 5.5"),
        (result("2,-1,9,0,10,20"), "results/A.txt:5: id: expected a number from 0, got -1"),
        (result("0,5,9,0,10,20"), "results/A.txt:5: frame: expected a number from 1, got 0"),
        (result("4,5,9,0,10,20"), "results/A.txt:5: frame: expected 1 to 3, the sequence's length, got 4"),
        (result("2,4,9,0,10,20"), "results/A.txt:5: id 4 comes twice in frame 2, first at results/A.txt:3"),
        (("results/A.txt", [*RESULT, "2,5,9,0,10,2\0"]), "results/A.txt:5: the file is cut here: expected"),
        (result("2,5,9,0"), "results/A.txt:5: expected 6 to 10 fields (frame,id,left,top,width,height,...), got 4"),
        (result("2,5,9,0,10,20,1,2"), "results/A.txt:5: class: expected at most 1, got 2; choose the classes to score"),
        (result("2,5,9,0,10,20,1,2,1,0"), "results/A.txt:5: class: expected at most 1, got 2; choose"),
        (result("2,1_0,9,0,10,20"), "results/A.txt:5: id: expected a number, got '1_0'"),
        (result("20000000,1,9,0,10,20"), "results/A.txt:5: frame: expected a number up to 10,000,000, got 20000000"),
        (result("2,5,9,0,10,1e999"), "results/A.txt:5: height: expected a finite number, got '1e999'"),
        (("results/A.txt", None), "results/A.txt: no such file; expected a result for each of 2 sequences, 1"),
        (("results/C.txt", RESULT), "results/C.txt: unknown sequence, gt has A, B"),
        (("results/A.txt", ["\x01\xff\x89PNG"]), "results/A.txt:1: expected 6 to 10 fields"),
        (truth("4,9,0,0,10,20,1,1,1"), "gt/A/gt/gt.txt:5: frame: expected 1 to 3, the sequence's length, got 4"),
        (truth("3,2,0,0,10,20,1,1,1"), "gt/A/gt/gt.txt:5: id 2 comes twice in frame 3"),
        (truth("3,3,0,0,10,20,1,14,1"), "gt/A/gt/gt.txt:5: class: expected 1 to 13 in ground truth of MOT17, got 14"),
        (truth("3,3,0,0,10,20,1,1.5,1"), "gt/A/gt/gt.txt:5: class: expected a whole number, got 1.5"),
        (truth("3,3,0,0,10,20,one,1,1"), "gt/A/gt/gt.txt:5: score: expected a number, got 'one'"),
        (("gt/A/gt/gt.txt", None), "gt/A/gt/gt.txt: no such file; there is nothing to score A against"),
        (("gt/A/seqinfo.ini", None), "gt/A/seqinfo.ini: no such file or directory"),
        (("gt/A/seqinfo.ini", ["[Sequence]", "frameRate=25"]), "gt/A/seqinfo.ini: seqLength: expected a number"),
        (("gt/A/seqinfo.ini", ["[Sequence]", "frameRate=25", "seqLength=2"]),
         "gt/A/gt/gt.txt:3: frame: expected 1 to 2, the sequence's length, got 3"),
        (("gt/A/seqinfo.ini", ["[Sequence]", "frameRate=25", "seqLength=2.5"]),
         "gt/A/seqinfo.ini: seqLength: expected a whole number up to 10,000,000, got 2.5"),
        (("gt/A/seqinfo.ini", ["no ini"]), "gt/A/seqinfo.ini: not a sequence description"),
    ],
)  # fmt: skip
def test_malformed_files(folders, call, file, message):
    path, lines = file
    if lines is None:
        Path(path).unlink()
    else:
        Path(path).write_text(("\n".join(lines) + "\n").replace("\0\n", ""), encoding="latin-1")
    err = failing(call("--gt", "gt", "--results", "results", "--json", "o.json"))
    assert err.startswith(f"error: {message}")
    assert not Path("o.json").exists()


SCORE = ("--gt", "gt", "--results", "results")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gt", "no", "--results", "results"], "no: no such file or folder"),
        (["--gt", "gt", "--results", "no"], "no: no such file or folder"),
        (["--gt", "results", "--results", "results"], "results: expected folders of sequences with gt/gt.txt"),
        ([*SCORE, "--sequences", "X"], "sequences: expected one of A, B (gt), got 'X'"),
        ([*SCORE, "--seqmap", "no.txt"], "no.txt: no such file or directory"),
        ([*SCORE, "--frames", "2:9"], "A: expected first and last frame within 1 to 3"),
        ([*SCORE, "--half", "val", "--frames", "1:2"], "--frames: expected either"),
        ([*SCORE, "--renumbered"], "--renumbered: is for a part"),
        ([*SCORE, "--classes", "a"], "--classes: expected numbers with commas between"),
        ([*SCORE, "--json", "no/o.json"], "no: no such folder"),
        ([*SCORE, "--json", "gt"], "gt: cannot be written"),
        ([*SCORE, "--json", "results/A.txt"], "results/A.txt: the result would overwrite"),
        ([*SCORE, "--csv", "gt/B/gt/gt.txt"], "gt/B/gt/gt.txt: the result would overwrite"),
        ([*SCORE, "--seqmap", "map.txt", "--events", "map.txt"], "map.txt: the result would"),
        ([*SCORE, "--plots", "results/A.txt"], "results/A.txt: expected a folder, got a file"),
        ([*SCORE, "--out", "results/A.txt"], "results/A.txt: "),
        ([*SCORE, "--classes", "1,9"], "--classes: expected some of those in ground truth"),
        ([*SCORE, "--classes=-3"], "--classes: expected some of those in ground truth"),
        ([*SCORE, "--classes", "1", "--engine", "motmetrics"], "--classes: is not for"),
        ([*SCORE, "--submission", "a.zip", "--half", "val"], "--submission: the server"),
        ([*SCORE, "--json", "o", "--csv", "o"], "o: the result would overwrite another result"),
        ([*SCORE, "--processes", "0"], "--processes: expected at least 1, got 0"),
        ([*SCORE, "--", "--smooth"], "--smooth: what follows -- is for the tracker"),
        (["--gt", "gt", "--weights", "--", "--video", "x"], "--video: is set by this tool"),
        (["--gt", "gt/A/gt/gt.txt", "--weights"], "gt/A/gt/gt.txt: expected a folder of sequences for the tracker"),
        (["--gt", "gt", "--detections", "public"], "gt/A/det/det.txt: no such file; expected the detections of A"),
        (["--gt", "gt", "--weights", ""], "--weights, --detections, --classes: expected a value, got nothing"),
        (["--gt", "gt", "--weights", "no.safetensors"], "gt/A/img1: expected 3 pictures, found 0"),
        (["--gt", "gt/A/gt/gt.txt", "--results", "results/A.txt", "--video"], "gt/A/img1: --video needs 3"),
    ],
)  # fmt: skip
def test_impossible_options(folders, call, options, message):
    Path("map.txt").write_text("A\n")
    assert failing(call(*options)).startswith(f"error: {message}")


def test_one_source_of_results(call, folders):
    for options in ((), ("--results", "results", "--weights")):
        status, _, err = call("--gt", "gt", *options)
        assert status == 2 and "expected one of --results, --weights, --detections" in err
