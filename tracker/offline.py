"""What can still be mended in a result once the whole video is known.

trajectories = Trajectories.from_mot(read_mot("video.txt"))
better = refine(trajectories, frame_rate=25, config=OfflineConfig(relink=True, fill_gaps=1.0, smooth=True))
with MotWriter("better.txt") as writer:
    for result in better.results():
        writer.write(result)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tracker.relinking import relink
from tracker.smoothing import Progress, fill_gaps, smooth
from tracker.trajectories import Trajectories

FILL_SECONDS = 1.0
"""Gaps worth filling: most are still near a straight line, and hide nobody who stood behind something for long."""


@dataclass(frozen=True)
class OfflineConfig:
    """What `refine` does, in this order, and `join_cameras` behind it. Nothing, by default.

    Raises:
        ValueError: a value out of its range; the message names the field, what is expected and what was given.
    """

    relink: bool = False
    """Join tracks that are pieces of one person's; see `tracker.relinking`."""
    relink_seconds: float = 10.0
    """Longest time between two pieces that are both described by embeddings, at least 0."""
    relink_embedding_thresh: float = 0.3
    """Largest cosine distance of their mean embeddings, (0, 2]."""
    relink_deviation: float = 0.1
    """Box heights per second by which somebody out of sight may have departed from walking on, at least 0. Embeddings
    alone mistake a person who comes for another one who has left."""
    relink_motion_seconds: float = 2.0
    """Longest time between pieces where embeddings are missing, at least 0."""
    relink_motion_thresh: float = 0.25
    """Box heights by which the motions of such pieces may miss each other, above 0. The tracker has tried to go on by
    position itself: more than this is mostly somebody else."""
    fill_gaps: float | None = None
    """Fill gaps of up to so many seconds with boxes on a straight line, scored 0, at least 0; None fills none."""
    smooth: bool = False
    """Replace boxes by the estimate from all sightings of a person. Worth it where boxes jitter, as a small detector's
    do; boxes that are exact already lose by it."""
    global_ids: bool = False
    """Give the tracks of all inputs ids of one space, by what people look like; see `tracker.global_ids`."""
    global_thresh: float = 0.35
    """Largest mean cosine distance of groups of tracks that become one person, (0, 2]."""

    def __post_init__(self) -> None:
        for name in ("relink_seconds", "relink_deviation", "relink_motion_seconds", "fill_gaps"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name}: expected a number of at least 0, got {value!r}")
        for name, highest in (
            ("relink_embedding_thresh", 2.0),
            ("relink_motion_thresh", math.inf),
            ("global_thresh", 2.0),
        ):
            value = getattr(self, name)
            if not (0 < value <= highest and value < math.inf):
                limit = f" up to {highest:g}" if highest < math.inf else ""
                raise ValueError(f"{name}: expected a number above 0{limit}, got {value!r}")


def refine(
    trajectories: Trajectories, frame_rate: float, config: OfflineConfig, progress: Progress | None = None
) -> Trajectories:
    """Relink, fill and smooth, as far as the settings ask for it.

    Args:
        trajectories: the result of a whole video.
        frame_rate: its frames per second.
        config: what to do.
        progress: called with the number of identities smoothed, and of all; nothing else takes long.

    Returns:
        A new result; identities count from 1 where they were relinked, and are as given otherwise.

    Raises:
        ValueError: a frame rate that is not a number above 0.
    """
    if not 0 < frame_rate < math.inf:
        raise ValueError(f"frame_rate: expected a number above 0, got {frame_rate!r}")
    if config.relink:
        trajectories = relink(
            trajectories,
            frame_rate,
            max_seconds=config.relink_seconds,
            embedding_thresh=config.relink_embedding_thresh,
            max_deviation=config.relink_deviation,
            motion_seconds=config.relink_motion_seconds,
            motion_thresh=config.relink_motion_thresh,
        )
    if config.fill_gaps is not None:
        trajectories = fill_gaps(trajectories, frame_rate, config.fill_gaps)
    if config.smooth:
        trajectories = smooth(trajectories, progress)
    return trajectories
