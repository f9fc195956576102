import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from detector import Detector, DetectorConfig
from detector import patches as module
from detector.inference import letterbox
from detector.model import sample_boxes
from detector.patches import (
    BETWEEN_VIDEOS,
    Collector,
    Patches,
    Sighting,
    TrackedBoxes,
    cut_patches,
    embed_all,
    embed_patches,
)
from detector.priors import Picks
from tests.detector.scenes import lively_darknet, lively_model, noise

N = 9
WIDTH, HEIGHT = 96, 64


def pictures(count: int = 2) -> torch.Tensor:
    return torch.stack([torch.from_numpy(noise(HEIGHT, WIDTH, seed)).permute(2, 0, 1).float() for seed in range(count)])


def some_picks(count: int = N, images: int = 2, seed: int = 0) -> Picks:
    """Boxes at cells of all levels, mixed."""
    rng = np.random.default_rng(seed)
    level = torch.from_numpy(rng.integers(0, 3, count))
    stride = 8 * 2**level
    xy = torch.from_numpy(rng.random((count, 2))) * torch.tensor([WIDTH, HEIGHT]) / stride[:, None]
    corner = torch.from_numpy(rng.uniform((0, 0), (60, 20), (count, 2)))
    boxes = torch.cat((corner, corner + torch.from_numpy(rng.uniform(10, 40, (count, 2)))), dim=1).float()
    return Picks(torch.from_numpy(rng.integers(0, images, count)), level, xy.long(), boxes)


@pytest.fixture(params=[lively_model, lively_darknet])
def model(request: pytest.FixtureRequest):
    return request.param(embedding_dim=16)


@torch.no_grad()
def cut(model, count: int = N) -> tuple[Patches, torch.Tensor]:
    """Patches of random boxes, and the embeddings the model gives them itself."""
    _, maps = model(pictures())
    picks = some_picks(count)
    return cut_patches(model, maps, picks), model.embed(maps, picks)


@torch.no_grad()
def test_patches_are_embedded_as_the_model_does_itself(model) -> None:
    patches, wanted = cut(model)
    assert len(patches) == N
    assert torch.equal(embed_patches(model, patches), wanted)
    rows = torch.tensor([4, 0, 7, 4, 8])  # any order, some again
    assert torch.allclose(embed_patches(model, patches[rows]), wanted[rows], atol=1e-6)
    assert torch.equal(patches[rows].picks.boxes, patches.picks.boxes[rows])
    assert torch.equal(patches[rows].picks.xy, patches.picks.xy[rows])
    for level in range(3):  # a level alone, the others empty
        own = (patches.picks.level == level).nonzero()[:, 0]
        assert torch.allclose(embed_patches(model, patches[own]), wanted[own], atol=1e-6)
    nobody = patches[torch.zeros(0, dtype=torch.int64)]
    assert embed_patches(model, nobody).shape == (0, 16)


@torch.no_grad()
def test_many_are_embedded_in_parts(model, monkeypatch: pytest.MonkeyPatch) -> None:
    patches, wanted = cut(model)
    monkeypatch.setattr(module, "CHUNK", 4)
    assert torch.allclose(embed_all(model, patches), wanted, atol=1e-6)


@torch.no_grad()
def test_a_mirrored_patch_is_that_of_mirrored_maps(model) -> None:
    _, maps = model(pictures())
    picks = some_picks()
    patches = cut_patches(model, maps, picks)
    x1, y1, x2, y2 = picks.boxes.unbind(1)
    columns = WIDTH // (8 * 2**picks.level)
    mirrored = replace(
        picks,
        xy=torch.stack((columns - 1 - picks.xy[:, 0], picks.xy[:, 1]), dim=1),
        boxes=torch.stack((WIDTH - x2, y1, WIDTH - x1, y2), dim=1),
    )
    wanted = cut_patches(model, [level.flip(-1) for level in maps], mirrored)
    rows = torch.arange(N) % 3 > 0
    found = patches.mirrored(rows)
    for i in range(N):
        one, other = found[torch.tensor([i])], (wanted if rows[i] else patches)[torch.tensor([i])]
        for a, b in zip(one.coarse, other.coarse, strict=True):
            assert torch.allclose(a, b, atol=1e-4)
        if one.fine is not None:
            assert torch.allclose(one.fine, other.fine, atol=1e-4)
    assert not torch.allclose(found.coarse[0], patches.coarse[0], atol=1e-2)


@torch.no_grad()
def test_a_detector_that_gives_patches_detects_the_same(model) -> None:
    frames = [noise(HEIGHT, WIDTH, seed) for seed in range(3)]
    config = DetectorConfig(input_size=WIDTH, score_thresh=0.6, engine="torch")
    plain, cutting = Detector(model, "cpu", config), Detector(model, "cpu", config, patches=True)
    for without, found in zip(plain(frames), cutting(frames), strict=True):
        assert "patches" not in without
        assert len(found["boxes"]) > 2
        for name in ("boxes", "scores", "labels", "embeddings"):
            assert np.array_equal(without[name], found[name])
        # The model as it is trained, batch norms not folded, embeds the patches of the detector.
        again = embed_patches(model, found["patches"]).numpy()
        np.testing.assert_allclose(again, found["embeddings"], atol=1e-5)


def boxes_of(tracks: list[int], seconds: list[float], seed: int = 0) -> TrackedBoxes:
    """Boxes with patches of the compact family."""
    count = len(tracks)
    rng = torch.Generator().manual_seed(seed)
    patches, _ = cut(lively_model(embedding_dim=16), count)
    return TrackedBoxes(
        patches,
        tracks=torch.tensor(tracks),
        videos=torch.zeros(count, dtype=torch.int64),
        camids=torch.zeros(count, dtype=torch.int64),
        frames=torch.arange(1, count + 1),
        seconds=torch.tensor(seconds, dtype=torch.float64),
        boxes=torch.rand(count, 4, generator=rng),
        thumbs=torch.randint(0, 255, (count, 4, 2, 3), generator=rng).byte(),
    )


def test_boxes_are_kept_in_a_file(tmp_path: Path) -> None:
    boxes = boxes_of([0, 0, 1], [0.0, 0.1, 0.1])
    boxes.save(tmp_path / "boxes.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["boxes.safetensors"]
    again = TrackedBoxes.load(tmp_path / "boxes.safetensors")
    for name in ("tracks", "videos", "camids", "frames", "seconds", "boxes", "thumbs"):
        assert torch.equal(getattr(again, name), getattr(boxes, name))
    for name, value in boxes.patches.tensors.items():
        assert torch.equal(again.patches.tensors[name], value)
    (tmp_path / "other").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="other: not a readable file of boxes"):
        TrackedBoxes.load(tmp_path / "other")


def test_videos_are_joined_by_camera() -> None:
    """The second camera has a clock of its own; the third video follows the first, nobody is in both."""
    parts = [boxes_of([0, 0, 1], [0.0, 1.0, 1.0]), boxes_of([0, 1], [0.0, 0.0], 1), None, boxes_of([0], [0.5], 2)]
    joined = TrackedBoxes.join(parts, [7, 8, 8, 7])
    assert joined is not None
    assert joined.tracks.tolist() == [0, 0, 1, 2, 3, 4]
    assert joined.camids.tolist() == [7, 7, 7, 8, 8, 7]
    assert joined.videos.tolist() == [0, 0, 0, 1, 1, 3]
    assert joined.seconds.tolist() == [0, 1, 1, 0, 0, 61.5]
    assert torch.equal(joined.boxes[3:5], parts[1].boxes)
    assert torch.equal(joined[torch.tensor([5, 0])].thumbs, torch.cat((parts[3].thumbs, parts[0].thumbs[:1])))
    assert TrackedBoxes.join([None, None], [1, 2]) is None


def sighting(step: int) -> Sighting:
    patches, _ = cut(lively_model(embedding_dim=16), 1)
    return Sighting(step + 1, step / 10, np.zeros(4, np.float32), patches, np.zeros((4, 2, 3), np.uint8))


ANYTHING = sighting(0)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.sets(st.integers(0, 4)), max_size=120),
    st.integers(2, 9),
    st.integers(10, 40),
)
def test_what_is_kept_is_bounded_and_spread(people: list[set[int]], per_track: int, total: int) -> None:
    """Of each tracklet exactly the steps that a power of two divides; together no more than there is room for."""
    collector = Collector(per_track, total)
    for step, present in enumerate(people):
        for track in sorted(present):
            if collector.wants(track, step):
                collector.add(track, step, ANYTHING)
    kept = {track: [step for step, _ in own] for track, own in collector._tracks.items()}
    assert sum(map(len, kept.values())) <= total
    assert collector.refused == 0  # five tracklets of two boxes find room
    for track, steps in kept.items():
        seen = [step for step, present in enumerate(people) if track in present]
        assert len(steps) <= collector.per_track <= per_track
        spacings = [[step for step in seen if step % 2**power == 0] for power in range(8)]
        # A tracklet is thinned when it has too many, so that it may end with one fewer halving than it could.
        assert steps in spacings


def test_boxes_without_room_are_counted() -> None:
    collector = Collector(2, 3)
    for track in range(3):
        for step in range(2):
            if collector.wants(track, step):
                collector.add(track, step, ANYTHING)
    assert collector.refused == 3
    assert sum(map(len, collector._tracks.values())) == 3


def test_short_tracklets_are_left_out() -> None:
    collector = Collector(32, 1000)
    for track, steps in ((5, range(6)), (2, range(3)), (9, range(4, 5)), (3, [0, 8])):
        for step in steps:
            collector.add(track, step, sighting(step))
    found = collector.boxes(0.5)
    assert found is not None
    assert found.tracks.tolist() == [0] * 6 + [1] * 2
    assert found.seconds.tolist() == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0, 0.8])
    assert found.frames.tolist() == [1, 2, 3, 4, 5, 6, 1, 9]
    assert len(found.patches) == len(found) == 8
    assert collector.boxes(0.9) is None
    assert len(collector.boxes(0.0) or []) == 11  # a box alone is no tracklet at all


# ---- what a detector hands out --------------------------------------------------------------------------------------

LOOK = DetectorConfig(input_size=WIDTH, score_thresh=0.3, max_detections=20, engine="torch", precision="fp32")


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "engine"), [(lively_model, "onnxruntime"), (lively_model, "torch"), (lively_darknet, "torch")]
)
def test_embeddings_of_a_detector_come_from_its_patches_to_the_bit(family, engine) -> None:
    detector = Detector(family(embedding_dim=16), "cpu", replace(LOOK, engine=engine, max_detections=300), patches=True)
    found = detector([noise(60, 90)])[0]
    patches = found["patches"]
    assert len(patches) == len(found["scores"]) > 10
    assert len(patches.picks.level.unique()) >= 2
    assert np.array_equal(embed_patches(detector.model, patches).numpy(), found["embeddings"])
    lower = patches.to("cpu", torch.float16)
    assert (lower.coarse[0].dtype, lower.picks.boxes.dtype) == (torch.float16, torch.float32)
    half = embed_patches(detector.model, lower).numpy()
    moved = np.square(half - found["embeddings"]).sum(axis=1) / 2  # cosine distance of unit rows
    assert 0 < moved.max() < 1e-6


@torch.no_grad()
def test_rows_of_the_patches_are_those_of_the_detections(model) -> None:
    detector = Detector(model, "cpu", LOOK, patches=True)
    frames = [noise(60, 90, 1), noise(90, 60, 2), noise(60, 90, 3)]
    for picture, found in zip(frames, detector(frames), strict=True):
        patches = found["patches"]
        _, scale, place = letterbox(picture, detector.model.canvas(*picture.shape[:2], WIDTH), 0)
        boxes = (patches.picks.boxes - torch.tensor(place * 2)) / torch.tensor(scale * 2)
        np.testing.assert_allclose(boxes, found["boxes"], atol=1e-3)
        turned = embed_patches(detector.model, patches[torch.arange(len(patches)).flip(0)])
        np.testing.assert_allclose(turned, found["embeddings"][::-1], atol=1e-5)


@torch.no_grad()
def test_nobody_there(model) -> None:
    detector = Detector(model, "cpu", replace(LOOK, score_thresh=1.0), patches=True)
    nobody = detector([noise(60, 90)])[0]["patches"]
    assert len(nobody) == 0
    assert embed_patches(model, nobody).shape == embed_all(model, nobody).shape == (0, 16)
    somebody, _ = cut(model)
    same(Patches.cat([nobody, somebody]), somebody)


# ---- what is cut, cell by cell --------------------------------------------------------------------------------------


@torch.no_grad()
def test_compact_patches_are_the_maps_under_each_box() -> None:
    model = lively_model(embedding_dim=16)
    _, maps = model(pictures())
    picks = some_picks()
    patches = cut_patches(model, maps, picks)
    count = [0, 0, 0]
    for i, level in enumerate(picks.level.tolist()):
        box, image = picks.boxes[i : i + 1], picks.image[i : i + 1]
        wanted = [sample_boxes(maps[1 + 2 * level + k], box / (8 << level), image, (8, 4)) for k in (0, 1)]
        assert torch.allclose(patches.coarse[level][count[level]], torch.cat(wanted, dim=1)[0], atol=1e-6)
        assert torch.allclose(patches.fine[i], sample_boxes(maps[0], box / 4, image, (16, 8))[0], atol=1e-6)
        count[level] += 1


@torch.no_grad()
def test_published_patches_are_the_cells_around_each_pick() -> None:
    model = lively_darknet(embedding_dim=16)
    _, maps = model(pictures())
    picks = some_picks(20)
    patches = cut_patches(model, maps, picks)
    assert patches.fine is None
    count, outside = [0, 0, 0], 0
    for i, level in enumerate(picks.level.tolist()):
        level_map = maps[level][picks.image[i]]
        for dy, dx in itertools.product((-1, 0, 1), repeat=2):
            x, y = (picks.xy[i] + torch.tensor([dx, dy])).tolist()
            inside = 0 <= x < level_map.shape[2] and 0 <= y < level_map.shape[1]
            outside += not inside
            wanted = level_map[:, y, x] if inside else torch.zeros(len(level_map))
            assert torch.equal(patches.coarse[level][count[level]][:, dy + 1, dx + 1], wanted)
        count[level] += 1
    assert outside  # some are at the edge


@torch.no_grad()
def test_mirroring_twice_is_nothing(model) -> None:
    patches, _ = cut(model)
    mask = torch.arange(N) % 3 > 0
    once = patches.mirrored(mask)
    assert torch.equal(once.picks.boxes, patches.picks.boxes)
    same(once.mirrored(mask), patches)
    same(patches.mirrored(~mask).mirrored(mask), patches.mirrored(torch.ones(N, dtype=torch.bool)))


# ---- rows -----------------------------------------------------------------------------------------------------------

LEVELS = st.lists(st.integers(0, 2), max_size=8)


def numbered(levels: list[int], fine: bool = True, image: int = 0) -> Patches:
    """Patches of these levels whose features are the number of their row."""
    level = torch.tensor(levels, dtype=torch.int64)
    number = torch.arange(len(level), dtype=torch.float32)
    coarse = tuple(number[level == i][:, None, None, None].expand(-1, i + 1, 2, 2) for i in range(3))
    picks = Picks(torch.full_like(level, image), level, torch.stack((level, level), 1), number[:, None].expand(-1, 4))
    return Patches(picks, coarse, number[:, None, None, None].expand(-1, 1, 2, 2) if fine else None)


def rows_of(patches: Patches) -> list[tuple[float, ...]]:
    """Level, box, coarse and fine number of each row, one at a time."""
    waiting = [iter(part[:, 0, 0, 0].tolist()) for part in patches.coarse]
    rows = []
    for i, level in enumerate(patches.picks.level.tolist()):
        fine = None if patches.fine is None else patches.fine[i, 0, 0, 0].item()
        rows.append((level, patches.picks.boxes[i, 0].item(), next(waiting[level]), fine))
    assert all(next(rest, None) is None for rest in waiting)
    return rows


def same(a: Patches, b: Patches) -> None:
    assert a.tensors.keys() == b.tensors.keys()
    for name, tensor in a.tensors.items():
        assert tensor.dtype == b.tensors[name].dtype
        assert torch.equal(tensor, b.tensors[name]), name


@settings(deadline=None, max_examples=50)
@given(st.data(), LEVELS, st.booleans())
def test_rows_in_any_order_again_and_again(data, levels, fine) -> None:
    patches = numbered(levels, fine)
    assert rows_of(patches) == [(level, i, i, i if fine else None) for i, level in enumerate(levels)]
    rows = data.draw(st.lists(st.integers(0, len(levels) - 1), max_size=8) if levels else st.just([]))
    picked = patches[torch.tensor(rows, dtype=torch.int64)]
    assert rows_of(picked) == [rows_of(patches)[row] for row in rows]
    odd = list(range(1, len(rows), 2))
    assert rows_of(picked[torch.tensor(odd, dtype=torch.int64)]) == [rows_of(picked)[i] for i in odd]


@settings(deadline=None, max_examples=30)
@given(st.lists(LEVELS, min_size=1, max_size=4), st.booleans())
def test_parts_one_after_the_other(parts, fine) -> None:
    patches = [numbered(levels, fine, image) for image, levels in enumerate(parts)]
    joined = Patches.cat(patches)
    assert rows_of(joined) == [row for part in patches for row in rows_of(part)]
    assert joined.picks.image.tolist() == [i for i, levels in enumerate(parts) for _ in levels]
    same(Patches.of(joined.tensors), joined)


# ---- files ----------------------------------------------------------------------------------------------------------


def test_some_rows_are_kept_in_a_file(model, tmp_path: Path) -> None:
    """Of either family, and rows that do not lie together in memory, as half precision."""
    boxes = boxes_of([0] * N, [i / 10 for i in range(N)])
    patches = cut(model)[0].to("cpu", torch.float16)
    some = replace(boxes, patches=patches)[torch.tensor([5, 3, 5, 8])]
    some.save(tmp_path / "boxes.safetensors")
    again = TrackedBoxes.load(tmp_path / "boxes.safetensors")
    same(again.patches, some.patches)
    assert again.seconds.tolist() == [0.5, 0.3, 0.5, 0.8]


def test_a_file_is_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "boxes.safetensors"
    boxes_of([0, 0], [0.0, 0.1]).save(path)
    before = path.read_bytes()

    def full(tensors, place) -> None:
        place.write_bytes(b"half of it")
        raise OSError("no space left")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(OSError, match=r"boxes\.safetensors: cannot be written \(no space left\)"):
        boxes_of([1, 1], [0.0, 0.1]).save(path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


def test_files_that_are_damaged_or_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "boxes.safetensors"
    wrong = r"boxes\.safetensors: not a readable file of boxes \("
    with pytest.raises(ValueError, match=wrong):
        TrackedBoxes.load(path)  # there is none
    boxes_of([0, 0], [0.0, 0.1]).save(path)
    whole = load_file(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=wrong):
        TrackedBoxes.load(path)
    for change in ({"patches.level": None}, {"seconds": None}, {"colour": torch.zeros(3)}):
        save_file({name: tensor for name, tensor in (whole | change).items() if tensor is not None}, path)
        with pytest.raises(ValueError, match=wrong):
            TrackedBoxes.load(path)


def test_no_two_videos_of_a_camera_share_a_moment() -> None:
    parts = [boxes_of([0, 0], [0.0, end]) for end in (9.0, 0.5, 30.0)]
    seconds = TrackedBoxes.join(parts, [4, 4, 4]).seconds.reshape(3, 2)
    for before, after in itertools.pairwise(seconds):
        assert after.min() - before.max() == pytest.approx(BETWEEN_VIDEOS)


# ---- collecting -----------------------------------------------------------------------------------------------------


def collect(collector: Collector, seen: list[tuple[int, int]]) -> list[int]:
    """Offer boxes (step, track) in order; after each, how many are kept."""
    counts = []
    for step, track in seen:
        if collector.wants(track, step):
            collector.add(track, step, ANYTHING)
        counts.append(sum(map(len, collector._tracks.values())))
    return counts


def kept(collector: Collector) -> dict[int, list[int]]:
    return {track: [step for step, _ in own] for track, own in collector._tracks.items()}


@settings(deadline=None, max_examples=50)
@given(st.sets(st.integers(0, 200), min_size=1), st.integers(2, 12))
def test_of_a_tracklet_alone_every_nth_step_is_kept(steps: set[int], most: int) -> None:
    """n is the lowest power of two that leaves no more than it may have, and memory is never above that."""
    collector = Collector(most, 10_000)
    counts = collect(collector, [(step, 7) for step in sorted(steps)])
    every = 1
    while sum(step % every == 0 for step in steps) > most:
        every *= 2
    assert kept(collector) == {7: [step for step in sorted(steps) if step % every == 0]}
    assert max(counts) <= most


def test_who_comes_later_is_kept_with_who_was_there() -> None:
    collector = Collector(8, 1000)
    collect(collector, [(step, track) for step in range(1000) for track in (1, 2) if track == 1 or step > 600])
    first, second = (set(kept(collector)[track]) for track in (1, 2))
    assert 4 <= len(first) <= 8
    assert {step for step in first if step > 600} <= second
    assert len(first & second) >= 2
    assert not collector.wants(1, 1001)
    assert collector.wants(1, 1024)
    assert collector.wants(3, 1001)  # somebody new


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 80)), max_size=12), st.integers(2, 9), st.integers(2, 30))
def test_memory_is_bounded_where_there_is_no_room_for_all(spans, most: int, total: int) -> None:
    """Each (begin, length) is a track."""
    seen = [(s, t) for s in range(95) for t, (begin, length) in enumerate(spans) if begin <= s < begin + length]
    collector = Collector(most, total)
    counts = collect(collector, seen)
    # The box that brings the limit down to two may find nobody to take the place of.
    assert max(counts, default=0) <= total + 1
    assert all(len(steps) <= collector.per_track for steps in kept(collector).values())
    assert 2 <= collector.per_track <= most
    if collector.refused:
        assert collector.per_track == 2
    if len(seen) <= total:
        assert (collector.refused, collector.per_track) == (0, most)


def test_when_all_have_too_many_each_may_have_half() -> None:
    collector = Collector(16, 40)
    collect(collector, [(step, track) for step in range(1, 16) for track in range(4)])
    assert collector.per_track == 8
    assert kept(collector) == {track: [2, 4, 6, 8, 10, 12, 14] for track in range(4)}
    assert collector.refused == 0


def test_no_tracklet() -> None:
    collector = Collector(8, 100)
    assert collector.boxes(0) is None
    collect(collector, [(1, 1), (2, 2)])
    assert collector.boxes(0) is None  # a box of each alone


def test_times_lose_no_digit() -> None:
    """Boxes of one frame must have exactly the same time, hours into a video."""
    collector = Collector(8, 100)
    for step in (360_001, 360_004):
        collector.add(1, step, sighting(step))
    assert collector.boxes(0.0).seconds.tolist() == [36_000.1, 36_000.4]
