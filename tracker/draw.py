"""Boxes, identities and short trails drawn over a frame."""

from __future__ import annotations

import colorsys
from collections import deque
from functools import lru_cache

import cv2
import numpy as np

from tracker.types import FrameResult
from tracker.video import Frame

Colour = tuple[int, int, int]

# Steps of the golden ratio around the colour circle: consecutive ids lie far apart, and no hue repeats.
_GOLDEN_RATIO = 0.6180339887498949
_FONT = cv2.FONT_HERSHEY_SIMPLEX


@lru_cache(maxsize=4096)
def track_colour(track_id: int) -> Colour:
    """The colour of an identity, BGR in 0..255: a function of the id alone, bright enough on dark scenes."""
    hue = track_id * _GOLDEN_RATIO % 1.0
    saturation = (0.85, 0.6)[track_id // 8 % 2]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, 1.0)
    return round(blue * 255), round(green * 255), round(red * 255)


class TrackDrawer:
    """Draws the results of consecutive frames; line and text sizes follow the frame's size.

    Trails show where the feet were during the last second. A trail is forgotten once its track has been unseen
    for that long, so memory depends on the people in view, not on the length of the video.

    Args:
        size: (width, height) of the frames in pixels.
        frame_rate: frames per second.
        trail_seconds: length of the trails.
        with_classes: put each person's class behind the id, as in `17 c2`.
    """

    def __init__(
        self, size: tuple[int, int], frame_rate: float = 30.0, trail_seconds: float = 1.0, with_classes: bool = False
    ) -> None:
        short_side = min(size)
        self._line = max(1, round(short_side / 360))
        self._text_scale = max(0.35, short_side / 1500)
        self._trail_frames = max(1, round(frame_rate * trail_seconds))
        self._with_classes = with_classes
        # track id -> (frame, x, y) of the middle of the box's lower edge, oldest first.
        self._trails: dict[int, deque[tuple[int, int, int]]] = {}

    @property
    def trail_count(self) -> int:
        """Number of tracks whose trail is remembered."""
        return len(self._trails)

    def draw(self, frame: Frame, result: FrameResult) -> Frame:
        """Draw on `frame` (H, W, 3) uint8 BGR in place, and return it."""
        self._extend_trails(result)
        corners = result.xyxy.round().astype(np.int64)
        # Far outside the frame nothing shows, and OpenCV takes 32-bit coordinates only.
        corners = np.clip(corners, -10_000, 40_000).tolist()
        track_ids = result.track_ids.tolist()
        for track_id in track_ids:
            self._draw_trail(frame, track_id)
        for track_id, (left, top, right, bottom) in zip(track_ids, corners, strict=True):
            cv2.rectangle(frame, (left, top), (right, bottom), track_colour(track_id), self._line)
        # Labels last: neither a box nor a trail may cross out a number.
        height, width = frame.shape[:2]
        classes = result.classes.tolist() if self._with_classes else [None] * len(track_ids)
        for track_id, class_id, (left, top, right, bottom) in zip(track_ids, classes, corners, strict=True):
            if right >= 0 and bottom >= 0 and left < width and top < height:
                self._draw_label(frame, track_id, class_id, left, top)
        return frame

    def _extend_trails(self, result: FrameResult) -> None:
        feet_x = np.clip((result.xyxy[:, 0] + result.xyxy[:, 2]) / 2, -10_000, 40_000).round().astype(int)
        feet_y = np.clip(result.xyxy[:, 3], -10_000, 40_000).round().astype(int)
        for track_id, x, y in zip(result.track_ids.tolist(), feet_x.tolist(), feet_y.tolist(), strict=True):
            self._trails.setdefault(track_id, deque()).append((result.frame, x, y))
        oldest = result.frame - self._trail_frames
        for track_id, trail in list(self._trails.items()):
            while trail and trail[0][0] <= oldest:
                trail.popleft()
            if not trail:
                del self._trails[track_id]

    def _draw_trail(self, frame: Frame, track_id: int) -> None:
        points = np.array([(x, y) for _, x, y in self._trails[track_id]], dtype=np.int32)
        if len(points) > 1:
            cv2.polylines(frame, [points], False, track_colour(track_id), self._line)

    def _draw_label(self, frame: Frame, track_id: int, class_id: int | None, left: int, top: int) -> None:
        label = label_picture(track_id, self._text_scale, class_id)
        height, width = label.shape[:2]
        # Above the box, or inside it where the box touches the frame's upper edge; never outside the frame.
        x = min(max(left, 0), frame.shape[1] - width)
        y = top - height if top >= height else top
        y = min(max(y, 0), frame.shape[0] - height)
        if x >= 0 and y >= 0:
            frame[y : y + height, x : x + width] = label


def label_picture(track_id: int, scale: float, class_id: int | None = None) -> Frame:
    """An id, and a class where given, on a patch of the id's colour, (H, W, 3) uint8 BGR."""
    text = str(track_id) if class_id is None else f"{track_id} c{class_id}"
    return text_picture(text, track_colour(track_id), scale)


@lru_cache(maxsize=1024)
def text_picture(text: str, colour: Colour, scale: float) -> Frame:
    """A text on a patch of a colour, (H, W, 3) uint8 BGR.

    It is written in black or white, whichever stands out; the weights are those of luminance in ITU-R BT.601.
    """
    thickness = max(1, round(scale * 2))
    (width, height), baseline = cv2.getTextSize(text, _FONT, scale, thickness)
    margin = 2 + thickness
    blue, green, red = colour
    ink = (0, 0, 0) if 0.114 * blue + 0.587 * green + 0.299 * red > 110 else (255, 255, 255)
    patch: Frame = np.full((height + baseline // 2 + 2 * margin, width + 2 * margin, 3), colour, np.uint8)
    cv2.putText(patch, text, (margin, height + margin), _FONT, scale, ink, thickness, cv2.LINE_AA)
    return patch
