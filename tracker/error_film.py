"""A film of an evaluated sequence that shows each miss, false positive and switch where it happens."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tracker.boxes import tlwh_to_xyxy
from tracker.comparison import Compared
from tracker.console import progress
from tracker.draw import Colour, text_picture, track_colour
from tracker.events import Events
from tracker.files import replacing
from tracker.images import ImageSource
from tracker.sources import SourceError, open_source
from tracker.types import IntArray
from tracker.video import Frame
from tracker.writer import VideoWriter

# What a box stands for, in the order of drawing: what matters more lies above the rest.
_UNSCORED, _FOUND, _FP, _MISS, _SWITCH = range(5)
_TEXTS = {_FOUND: "{}", _FP: "fp {}", _MISS: "miss gt {}", _SWITCH: "gt {}: {} -> {}"}
_COLOURS: dict[int, Colour] = {
    _UNSCORED: (170, 170, 170),
    _FP: (0, 200, 255),
    _MISS: (40, 40, 255),
    _SWITCH: (255, 0, 255),
}
_STRIP_COLOUR: Colour = (40, 40, 40)
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_USUAL_FRAME_RATE = 30.0
# Frames of a shorter side than this are shown enlarged.
_COMFORTABLE_SIDE, _GREATEST_ZOOM = 720, 4
# By so many frames, what a video's container says of their number can be wrong.
_UNSURE_FRAMES = 5


def write_error_film(
    compared: Compared, events: Events, source: str | Path, path: str | Path, frame_rate: float | None = None
) -> None:
    """Write a film of the frames that were scored, with everything that `ErrorDrawer` draws.

    Args:
        compared: the sequence.
        events: its events, of `events.clear_events`.
        source: its frames, from its first one on: a video file, or a folder of images.
        path: the MP4 file; written beside its place, then renamed.
        frame_rate: frames per second; None: that of the source, or 30 where nobody knows.

    Raises:
        FileNotFoundError: no such source.
        ValueError: too few frames, or they cannot be read; an older film is still there.
        OSError: the film cannot be written; an older one is still there.
    """
    first, last = compared.first_frame, compared.first_frame + compared.comparison.frames - 1
    with contextlib.closing(open_source(source)) as whole:
        count = whole.frame_count
        unsure = 0 if isinstance(whole, ImageSource) else _UNSURE_FRAMES
        if count is not None and count + unsure < last:
            raise ValueError(f"{source}: expected at least {last} frames for {compared.name}, found {count}")
        rate = frame_rate or whole.frame_rate or _USUAL_FRAME_RATE
    with replacing(path) as part:
        with contextlib.closing(open_source(source, first, last)) as frames:
            drawer = ErrorDrawer(compared, events, frames.size, rate)
            with VideoWriter(part, rate, drawer.size) as film:
                number = first - 1
                for number, frame in enumerate(progress(frames, last - first + 1, doing=compared.name), start=first):
                    film.write(drawer.draw(frame, number))
        if number < last:
            raise SourceError(f"{source}: expected at least {last} frames for {compared.name}, found {number}")


class ErrorDrawer:
    """Draws what is right and wrong in the frames of one sequence.

    - found: the result's box, thin, in the colour of its id
    - missed: the person's box, dashed red
    - false positive: the result's box, thick yellow
    - switch: the person's box, thick magenta, with the track before and the one that took over, for half a second
    - not scored (ground truth to be ignored, results on distractors): thin grey

    A strip above the frame explains this, and counts what has happened up to the frame. Small frames are enlarged.

    Attributes:
        size: (width, height) of the pictures that `draw` returns.

    Args:
        compared: the sequence.
        events: its events, of `events.clear_events`.
        size: (width, height) of the frames in pixels.
        frame_rate: frames per second.
        switch_seconds: how long a switch stays visible.
    """

    def __init__(
        self,
        compared: Compared,
        events: Events,
        size: tuple[int, int],
        frame_rate: float = _USUAL_FRAME_RATE,
        switch_seconds: float = 0.5,
    ) -> None:
        # Labels next to each other need room, which small frames do not have.
        self._zoom = min(max(1, round(_COMFORTABLE_SIDE / min(size))), _GREATEST_ZOOM)
        width, height = size[0] * self._zoom, size[1] * self._zoom
        short_side = min(width, height)
        self._thin = max(1, round(short_side / 400))
        self._thick = max(2, round(short_side / 220))
        self._text_scale = max(0.4, short_side / 1500)
        self._marks = _find_marks(compared, events, max(1, round(frame_rate * switch_seconds)))
        last = compared.first_frame + compared.comparison.frames - 1
        self._strip = _Strip(events, last, width, self._text_scale, self._thin, self._thick)
        self.size = (width, self._strip.height + height)

    def draw(self, frame: Frame, number: int) -> Frame:
        """A new picture: the strip, and below it the frame (H, W, 3) uint8 BGR with its boxes.

        Args:
            frame: the picture; it is not changed.
            number: of the frame in the file of ground truth.
        """
        picture: Frame = np.empty((self.size[1], self.size[0], 3), np.uint8)
        self._strip.draw(picture[: self._strip.height], number)
        scene = picture[self._strip.height :]
        if self._zoom > 1:
            cv2.resize(frame, (scene.shape[1], scene.shape[0]), dst=scene, interpolation=cv2.INTER_CUBIC)
        else:
            scene[:] = frame
        marks = self._marks.of_frame(number)
        # The box of a switch lies around what else is drawn of this person.
        margin = np.where(marks.kinds == _SWITCH, 2 * self._thick, 0)[:, None] * (-1, -1, 1, 1)
        # Far outside the frame nothing shows, and OpenCV takes 32-bit coordinates only.
        xyxy = np.clip((marks.xyxy * self._zoom + margin).round(), -10_000, 40_000)
        boxes, kinds = xyxy.astype(np.int64).tolist(), marks.kinds.tolist()
        colours = [
            track_colour(track_id) if kind == _FOUND else _COLOURS[kind]
            for kind, track_id in zip(kinds, marks.ids[:, 0].tolist(), strict=True)
        ]
        for kind, box, colour in zip(kinds, boxes, colours, strict=True):
            _draw_box(scene, kind, box, colour, self._thin, self._thick)
        labels = [
            text_picture(_TEXTS[kind].format(*ids), colour, self._text_scale) if kind != _UNSCORED else None
            for kind, ids, colour in zip(kinds, marks.ids.tolist(), colours, strict=True)
        ]
        _draw_labels(scene, boxes, labels)
        return picture


@dataclass(frozen=True)
class _Marks:
    """B boxes to draw, by rising frame, then kind: `frames` (B,), `kinds` (B,), `xyxy` (B, 4), `ids` (B, 3).

    `ids` are what stands in the text of a kind: one, or of a switch the person, the track before, the one after.
    """

    frames: IntArray
    kinds: IntArray
    xyxy: NDArray[np.float64]
    ids: IntArray

    def of_frame(self, number: int) -> _Marks:
        here = slice(*self.frames.searchsorted([number, number + 1]).tolist())
        return _Marks(self.frames[here], self.kinds[here], self.xyxy[here], self.ids[here])


def _find_marks(compared: Compared, events: Events, hold: int) -> _Marks:
    """All that is to be drawn; a switch for `hold` frames."""
    truth, results, comparison = compared.truth, compared.results, compared.comparison
    ignored = np.setdiff1d(np.arange(len(truth)), comparison.truth_rows)
    outside = np.setdiff1d(np.arange(len(results)), comparison.result_rows)
    found, wrong, missed = events.of("MATCH", "SWITCH"), events.of("FP"), events.of("MISS")
    switches = events.of("SWITCH")
    of_switch, switch_frames, switch_rows = _hold(compared, switches, hold)
    switch_ids = np.stack((switches.truth_ids, switches.previous_ids, switches.track_ids), axis=1)
    parts = [
        (_UNSCORED, truth.frames[ignored], truth.tlwh[ignored], truth.track_ids[ignored]),
        (_UNSCORED, results.frames[outside], results.tlwh[outside], results.track_ids[outside]),
        (_FOUND, found.frames, results.tlwh[found.result_rows], found.track_ids),
        (_FP, wrong.frames, results.tlwh[wrong.result_rows], wrong.track_ids),
        (_MISS, missed.frames, truth.tlwh[missed.truth_rows], missed.truth_ids),
        (_SWITCH, switch_frames, truth.tlwh[switch_rows], switch_ids[of_switch]),
    ]
    kinds = np.concatenate([np.full(len(frames), kind) for kind, frames, _, _ in parts])
    frames = np.concatenate([frames for _, frames, _, _ in parts])
    xyxy = tlwh_to_xyxy(np.concatenate([tlwh for _, _, tlwh, _ in parts]))
    ids = np.concatenate([np.broadcast_to(ids.T, (3, len(ids))).T for _, _, _, ids in parts])
    order = np.lexsort((kinds, frames))
    return _Marks(frames[order], kinds[order], xyxy[order], ids[order])


def _hold(compared: Compared, switches: Events, hold: int) -> tuple[IntArray, IntArray, IntArray]:
    """Where each switch is shown in each frame: which of them, the frame, and the row of the person's latest box.

    It is shown for `hold` frames, but not beyond the person's next switch.
    """
    rows = compared.comparison.truth_rows
    rows = rows[np.lexsort((compared.truth.frames[rows], compared.truth.track_ids[rows]))]
    people, frames = compared.truth.track_ids[rows], compared.truth.frames[rows]
    last = compared.first_frame + compared.comparison.frames - 1
    span = last + 1  # so that a number stands for a person and a frame
    order = np.lexsort((switches.frames, switches.truth_ids))
    person, start = switches.truth_ids[order], switches.frames[order]
    end = np.minimum(start + hold, last + 1)
    again = person[1:] == person[:-1]
    end[:-1][again] = np.minimum(end[:-1], start[1:])[again]
    of_switch = np.repeat(np.arange(len(order)), end - start)
    first_of_each = np.repeat((end - start).cumsum() - (end - start), end - start)
    shown = start[of_switch] + np.arange(len(of_switch)) - first_of_each
    latest = (people * span + frames).searchsorted(person[of_switch] * span + shown, "right") - 1
    return order[of_switch], shown, rows[latest]


def _draw_box(frame: Frame, kind: int, box: list[int], colour: Colour, thin: int, thick: int) -> None:
    left, top, right, bottom = box
    if kind in (_UNSCORED, _FOUND):
        cv2.rectangle(frame, (left, top), (right, bottom), colour, thin if kind == _FOUND else max(1, thin // 2))
        return
    # Black around it: seen on any ground, and told from the boxes of ids whose colour is near.
    cv2.rectangle(frame, (left, top), (right, bottom), (0, 0, 0), thick + 2)
    if kind == _MISS:
        cv2.polylines(frame, list(_dashes(left, top, right, bottom, 4 * thick)), False, colour, thick)
    else:
        cv2.rectangle(frame, (left, top), (right, bottom), colour, thick)


def _dashes(left: int, top: int, right: int, bottom: int, length: int) -> NDArray[np.int32]:
    """The dashes (D, 2, 2) of a rectangle's outline, in pixels; gaps are as long as they are."""
    x, y = (np.arange(*edge, 2 * length) for edge in ((left, right + 1), (top, bottom + 1)))
    x_end, y_end = np.minimum(x + length, right), np.minimum(y + length, bottom)
    across = [np.stack((x, np.full_like(x, at), x_end, np.full_like(x, at)), axis=1) for at in (top, bottom)]
    down = [np.stack((np.full_like(y, at), y, np.full_like(y, at), y_end), axis=1) for at in (left, right)]
    return np.concatenate(across + down).reshape(-1, 2, 2).astype(np.int32)


def _draw_labels(frame: Frame, boxes: list[list[int]], labels: list[Frame | None]) -> None:
    """Put labels beside or in their boxes, inside the frame, where they hide each other least.

    Later ones choose their place first, and lie above the others.
    """
    height, width = frame.shape[:2]
    taken = np.zeros((0, 4), np.int64)
    placed: list[tuple[int, int, Frame]] = []
    for (left, top, right, bottom), label in zip(reversed(boxes), reversed(labels), strict=True):
        if label is None or right < 0 or bottom < 0 or left >= width or top >= height:
            continue
        label = label[:height, :width]
        h, w = label.shape[:2]
        corners = [(left, top - h), (right - w, top - h), (left, bottom), (right - w, bottom)]
        corners += [(left, top), (left, bottom - h), (right, top), (left - w, top)]
        at = np.clip(corners, 0, (width - w, height - h))
        end = at + np.array([w, h])
        meet = np.minimum(end[:, None], taken[:, 2:]) - np.maximum(at[:, None], taken[:, :2])
        hidden = np.maximum(meet, 0).prod(axis=2).sum(axis=1)
        x, y = at[hidden.argmin()].tolist()
        taken = np.append(taken, [[x, y, x + w, y + h]], axis=0)
        placed.append((x, y, label))
    for x, y, label in reversed(placed):
        frame[y : y + label.shape[0], x : x + label.shape[1]] = label


class _Strip:
    """The legend above the frames: what the boxes mean, and how many there have been; in as many lines as it takes.

    Attributes:
        height: in pixels.
    """

    def __init__(self, events: Events, last_frame: int, width: int, scale: float, thin: int, thick: int) -> None:
        self._frames = {name: events.of(name).frames for name in ("MISS", "FP", "SWITCH")}
        self._last_frame, self._scale, self._thin, self._thick = last_frame, scale, thin, thick
        self._weight = max(1, round(2 * scale))
        (_, self._letter), baseline = cv2.getTextSize("8", _FONT, scale, self._weight)
        self._line = self._letter + baseline + 2 * thick + 2
        self._items: list[tuple[int, int]] = []  # left edge and line of each item
        x, line = self._letter, 0
        for kind, text in self._content(last_frame):
            needed = self._sample(kind) + cv2.getTextSize(text, _FONT, scale, self._weight)[0][0] + 2 * self._letter
            if x + needed > width and x > self._letter:
                x, line = self._letter, line + 1
            self._items.append((x, line))
            x += needed
        self.height = (line + 1) * self._line + thick

    def draw(self, strip: Frame, number: int) -> None:
        """Draw on `strip` (height, W, 3) uint8 BGR what holds at the end of frame `number`."""
        strip[:] = _STRIP_COLOUR
        for (x, line), (kind, text) in zip(self._items, self._content(number), strict=True):
            foot = (line + 1) * self._line - self._line // 4
            if kind is not None:
                box = [x, foot - self._letter, x + self._sample(kind) - self._letter, foot]
                _draw_box(strip, kind, box, _COLOURS.get(kind, track_colour(4)), self._thin, self._thick)
            place = (x + self._sample(kind), foot)
            cv2.putText(strip, text, place, _FONT, self._scale, (255, 255, 255), self._weight, cv2.LINE_AA)

    def _sample(self, kind: int | None) -> int:
        """Room for the picture of a box, in pixels."""
        return 0 if kind is None else 4 * self._letter

    def _content(self, number: int) -> list[tuple[int | None, str]]:
        count = {name: frames.searchsorted(number, "right") for name, frames in self._frames.items()}
        return [
            (None, f"frame {number}/{self._last_frame}"),
            (_FOUND, "found (track)"),
            (_MISS, f"missed {count['MISS']}"),
            (_FP, f"false positives {count['FP']}"),
            (_SWITCH, f"switches {count['SWITCH']}"),
            (_UNSCORED, "not scored"),
            (None, "gt: person in the ground truth"),
        ]
