import re
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.tracker.clips import SIZE, decoded, scene, square_left, write_clip, write_images
from tests.tracker.scored import scored, standing
from tracker.draw import track_colour
from tracker.error_film import ErrorDrawer, text_picture, write_error_film
from tracker.video import SourceError, VideoSource

RED, YELLOW, MAGENTA, GREY = (40, 40, 255), (0, 200, 255), (255, 0, 255), (170, 170, 170)
BIG = (1280, 720)


def drawn(drawer, number, size=BIG, shade=100):
    """The strip and the scene of a frame that is grey."""
    picture = drawer.draw(np.full((size[1], size[0], 3), shade, np.uint8), number)
    assert picture.shape == (drawer.size[1], drawer.size[0], 3)
    strip = drawer.size[1] - size[1]
    return picture[:strip], picture[strip:]


def has(picture, text, colour, scale):
    """Whether a label is there; one that is cut off or hidden differs by far more than the rounding."""
    return cv2.matchTemplate(picture, text_picture(text, colour, scale), cv2.TM_SQDIFF).min() < 1000


def counts(strip, text, scale):
    """Whether a text is written in the strip."""
    (width, height), baseline = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    # As wide again at its end: 1 must not be found in 12.
    patch = np.full((height + baseline + 2, width + height, 3), 40, np.uint8)
    cv2.putText(patch, text, (1, height + 1), cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), 1, cv2.LINE_AA)
    return cv2.matchTemplate(strip, patch, cv2.TM_SQDIFF).min() < 1000


def pixels(scene, colour):
    return int((np.abs(scene.astype(int) - colour).max(axis=2) < 3).sum())


def story():
    """Person 12: track 5 in frames 1 to 4, missed in 5 and 6, then track 9. Track 7 follows nobody; 50 is ignored."""
    truth = standing(12, range(1, 31), 300, 300) + standing(50, range(1, 31), 900, 300, score=0)
    results = standing(5, range(1, 5), 302, 300) + standing(9, range(7, 31), 302, 300)
    return scored(truth, results + standing(7, range(3, 9), 600, 300), 30)


def test_found_pairs_are_thin_and_in_the_colour_of_the_track():
    drawer = ErrorDrawer(*story(), BIG, 20)
    _, scene = drawn(drawer, 1)
    colour = track_colour(5)
    for x, y in ((302, 320), (322, 320), (312, 340)):
        assert scene[y, x].tolist() == list(colour)
    assert (scene[310:330, 306:318] == 100).all()
    assert has(scene, "5", colour, 0.48)
    assert pixels(scene, RED) == pixels(scene, YELLOW) == pixels(scene, MAGENTA) == 0


def test_a_missed_person_is_dashed_red_and_named():
    drawer = ErrorDrawer(*story(), BIG, 20)
    _, scene = drawn(drawer, 5)
    assert has(scene, "miss gt 12", RED, 0.48)
    column = scene[300:341, 300]
    red, black = (column == RED).all(axis=1), (column == 0).all(axis=1)
    assert red.sum() > 10
    assert black.sum() > 5  # between the dashes
    assert (red | black).all()
    assert pixels(scene, track_colour(5)) == 0


def test_a_false_positive_is_thick_yellow_and_named():
    drawer = ErrorDrawer(*story(), BIG, 20)
    _, scene = drawn(drawer, 3)
    assert has(scene, "fp 7", YELLOW, 0.48)
    row = scene[320, 590:612]
    assert (row == YELLOW).all(axis=1).sum() >= 3
    assert (row == 0).all(axis=1).sum() >= 2  # black around it
    assert pixels(drawn(drawer, 2)[1], YELLOW) == 0


def test_a_switch_says_from_which_track_to_which_for_half_a_second():
    drawer = ErrorDrawer(*story(), BIG, frame_rate=20)
    for number in range(1, 31):
        scene = drawn(drawer, number)[1][240:400, 240:480]
        shown = 7 <= number < 17
        assert has(scene, "gt 12: 5 -> 9", MAGENTA, 0.48) == shown, number
        assert (pixels(scene, MAGENTA) > 500) == shown
        if shown:  # the box of the new track is seen in it
            assert scene[80, 62].tolist() == list(track_colour(9))


def test_a_switch_follows_the_person_and_ends_with_the_next_one():
    tracks = (3, 3, 4, 4, 5, 5, 5, 5)
    truth = [row for frame in range(1, 9) for row in standing(1, [frame], 100 + 30 * frame, 300)]
    results = [(frame, track, *box) for (frame, _, *box), track in zip(truth, tracks, strict=True)]
    drawer = ErrorDrawer(*scored(truth, results, 12), BIG, frame_rate=20)
    for number, text in ((4, "gt 1: 3 -> 4"), (5, "gt 1: 4 -> 5"), (8, "gt 1: 4 -> 5"), (11, "gt 1: 4 -> 5")):
        _, scene = drawn(drawer, number)
        assert has(scene, text, MAGENTA, 0.48), number
        assert not has(scene, "gt 1: 3 -> 4" if number > 4 else "gt 1: 4 -> 5", MAGENTA, 0.48)
        left = 100 + 30 * min(number, 8)  # where it was seen last
        columns = (scene[320] == MAGENTA).all(axis=1).nonzero()[0]
        assert left - 12 < columns.min() < left < left + 20 < columns.max() < left + 32


def test_what_is_not_scored_is_thin_grey_without_a_name():
    _, scene = drawn(ErrorDrawer(*story(), BIG, 20), 1)
    assert scene[320, 900].tolist() == list(GREY)
    assert pixels(scene, GREY) == 2 * 21 + 2 * 39
    assert not has(scene, "50", GREY, 0.48)


def test_a_result_on_a_distractor_is_no_false_positive():
    truth = standing(12, [1], 300, 300) + standing(50, [1], 900, 300, class_id=8)
    results = standing(5, [1], 300, 300) + standing(6, [1], 904, 300)
    _, scene = drawn(ErrorDrawer(*scored(truth, results, 1), BIG, 20), 1)
    assert scene[320, 904].tolist() == scene[320, 900].tolist() == list(GREY)
    assert pixels(scene, YELLOW) == 0


def test_the_strip_counts_what_has_happened_so_far():
    drawer = ErrorDrawer(*story(), BIG, 20)
    for number, missed, wrong, switches in ((1, 0, 0, 0), (5, 1, 3, 0), (6, 2, 4, 0), (7, 2, 5, 1), (30, 2, 6, 1)):
        strip, _ = drawn(drawer, number)
        for text in (f"frame {number}/30", f"missed {missed}", f"false positives {wrong}", f"switches {switches}"):
            assert counts(strip, text, 0.48), (number, text)
        assert not counts(strip, f"missed {missed + 1}", 0.48)
        for colour in (RED, YELLOW, MAGENTA, GREY):
            assert pixels(strip, colour) > 10


def test_the_strip_is_broken_where_the_frame_is_narrow():
    wide = ErrorDrawer(*story(), (1280, 720), 20)
    narrow = ErrorDrawer(*story(), (360, 720), 20)
    assert wide.size[0] == 1280
    assert narrow.size[0] == 720  # enlarged
    assert narrow.size[1] - 1440 > wide.size[1] - 720
    strip = narrow.draw(np.zeros((720, 360, 3), np.uint8), 30)[: narrow.size[1] - 1440]
    for text in ("frame 30/30", "missed 2", "false positives 6", "switches 1"):
        assert counts(strip, text, 0.48)


def test_small_frames_are_enlarged_with_their_boxes():
    compared, events = scored(standing(1, [1], 20, 10), standing(4, [1], 20, 10), 1)
    drawer = ErrorDrawer(compared, events, (320, 240), 20)
    assert drawer.size[0] == 960
    frame = np.full((240, 320, 3), 100, np.uint8)
    frame[120:, 160:] = 200
    picture = drawer.draw(frame, 1)
    assert (frame[:120] == 100).all()  # the caller's is left as it is
    scene = picture[drawer.size[1] - 720 :]
    assert scene[90, 60].tolist() == scene[90, 120].tolist() == list(track_colour(4))
    assert scene[500, 700].tolist() == [200] * 3
    assert scene[300, 400].tolist() == [100] * 3


def test_labels_at_the_edges_stay_inside_and_far_boxes_draw_nothing():
    for left, top in ((0, 0), (1270, -20), (1265, 700), (-15, 690)):
        _, scene = drawn(ErrorDrawer(*scored(standing(123, [1], left, top), [], 1), BIG, 20), 1)
        assert has(scene, "miss gt 123", RED, 0.48), (left, top)
    far = standing(1, [1], -1e9, -1e9) + standing(2, [1], 1e9, 1e9)
    _, scene = drawn(ErrorDrawer(*scored(far, [], 1), BIG, 20), 1)
    assert (scene == 100).all()


def test_labels_of_a_crowd_do_not_hide_each_other():
    truth = [row for i in range(10) for row in standing(100 + i, [1], 400 + 25 * i, 300)]
    _, scene = drawn(ErrorDrawer(*scored(truth, [], 1), BIG, 20), 1)
    seen = [has(scene, f"miss gt {100 + i}", RED, 0.48) for i in range(10)]
    assert sum(seen) >= 8  # ten labels of 90 pixels round a row of 250


def test_hundred_people_cost_little():
    truth, results = [], []
    for i in range(100):
        left, top = 60 * (i % 20), 60 + 120 * (i // 20)
        truth += standing(i + 1, range(1, 21), left, top)
        results += standing(i + 1, range(1, 21) if i % 3 else range(1, 11), left, top)
    drawer = ErrorDrawer(*scored(truth, results, 20), BIG, 20)
    frame = np.zeros((720, 1280, 3), np.uint8)
    seconds = []
    for number in range(1, 21):
        began = time.thread_time()
        drawer.draw(frame, number)
        seconds.append(time.thread_time() - began)
    assert np.median(seconds) < 0.1  # some 8 ms on an idle core


def walking(frames, first=1):
    """A person who stands where the square of `scene` is, found in all frames but the last."""
    rows = [(i, 1, square_left(scene(i)), 20, 16, 16, 1, 1) for i in range(first, first + frames)]
    return scored(rows, rows[:-1], frames, first)


@pytest.mark.parametrize("kind", ["folder", "video"])
def test_the_film_has_each_frame_that_is_scored(tmp_path, kind):
    source = write_images(tmp_path / "img1", 30) if kind == "folder" else write_clip(tmp_path / "source.mp4", 30)
    path = tmp_path / "a.mp4"
    compared, events = walking(12, first=9)
    write_error_film(compared, events, source, path, 10)
    film = VideoSource(path)
    drawer = ErrorDrawer(compared, events, SIZE)
    assert film.size == (drawer.size[0], drawer.size[1] + drawer.size[1] % 2)
    assert film.frame_rate == 10
    frames = list(film)
    assert len(frames) == 12
    strip = drawer.size[1] - 4 * SIZE[1]
    for number, frame in enumerate(frames, start=9):
        # The middle of the square is bright only where the picture is that of the boxes; its label lies elsewhere.
        left = 4 * square_left(scene(number))
        assert (frame[strip + 4 * 25 : strip + 4 * 33, left + 12 : left + 48] > 200).all(), number
    assert sorted(p.name for p in tmp_path.glob("a*")) == ["a.mp4"]
    # The last frame's person is missed: red around the square, as in the picture itself.
    middle = frames[-1][strip + 80 : strip + 144, 4 * square_left(scene(20)) - 2 :][:, :5].astype(int)
    assert (middle[..., 2] - middle[..., 1]).max() > 100


def test_the_rate_is_that_of_the_source_where_none_is_given(tmp_path):
    write_error_film(*walking(3), write_clip(tmp_path / "source.mp4", 5, rate=12), tmp_path / "a.mp4")
    assert VideoSource(tmp_path / "a.mp4").frame_rate == 12
    write_error_film(*walking(3), write_images(tmp_path / "img1", 5), tmp_path / "b.mp4")
    assert VideoSource(tmp_path / "b.mp4").frame_rate == 30


def test_too_few_frames_are_an_error_before_anything_is_written(tmp_path):
    folder = write_images(tmp_path / "img1", 5)
    old = tmp_path / "a.mp4"
    old.write_text("old")
    message = re.escape(f"{folder}: expected at least 12 frames for A, found 5")
    for first in (1, 6, 12):  # also where the part begins behind the last image
        with pytest.raises(ValueError, match=message):
            write_error_film(*walking(13 - first, first), folder, old)
    clip = write_clip(tmp_path / "source.mp4", 5)
    with pytest.raises(ValueError, match=re.escape(f"{clip}: expected at least 12 frames for A, found 5")):
        write_error_film(*walking(12), clip, old)
    # What a container says can be a little wrong: that is found out at the end.
    with pytest.raises(ValueError, match=re.escape(f"{clip}: expected at least 7 frames for A, found 5")):
        write_error_film(*walking(7), clip, old)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        write_error_film(*walking(7), tmp_path / "nowhere", old)
    assert old.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "img1", "source.mp4"]


def test_an_image_that_cannot_be_read_ends_it_and_the_older_film_stays(tmp_path, no_threads_left):
    folder = write_images(tmp_path / "img1", 5)
    (folder / "4.png").write_bytes((folder / "4.png").read_bytes()[:100])
    old = tmp_path / "a.mp4"
    write_error_film(*walking(3), folder, old)
    assert len(decoded(old)) == 3
    with pytest.raises(SourceError, match=r"4\.png: the image is cut short"):
        write_error_film(*walking(5), folder, old)
    assert len(decoded(old)) == 3
    assert not Path(f"{old}.part").exists()
    with pytest.raises(OSError, match="nowhere"):
        write_error_film(*walking(3), folder, tmp_path / "nowhere" / "a.mp4")


def test_without_results_everybody_is_missed(tmp_path):
    write_error_film(*scored([], [], 3), write_images(tmp_path / "img1", 3), tmp_path / "a.mp4")
    assert len(decoded(tmp_path / "a.mp4")) == 3
    _, scene = drawn(ErrorDrawer(*scored(standing(1, [1], 100, 100), [], 1), BIG, 20), 1)
    assert has(scene, "miss gt 1", RED, 0.48)


def test_label_stands_out_from_its_patch():
    for colour in (RED, YELLOW, MAGENTA, *map(track_colour, range(1, 50))):
        luminance = text_picture("gt 12: 5 -> 9", colour, 0.5) @ np.array([0.114, 0.587, 0.299])
        assert np.abs(luminance - np.array(colour) @ np.array([0.114, 0.587, 0.299])).max() > 90
