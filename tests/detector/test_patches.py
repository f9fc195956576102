from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detector import Detector, DetectorConfig
from detector import patches as module
from detector.patches import Collector, Patches, Sighting, TrackedBoxes, cut_patches, embed_all, embed_patches
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
def test_half_precision_hardly_moves_an_embedding(model) -> None:
    patches, wanted = cut(model)
    half = patches.to("cpu", torch.float16)
    assert half.coarse[0].dtype == torch.float16
    assert half.picks.boxes.dtype == torch.float32
    assert (1 - (embed_patches(model, half) * wanted).sum(dim=1)).abs().max() < 1e-5


@torch.no_grad()
def test_parts_put_together_and_names_taken_apart(model) -> None:
    patches, wanted = cut(model)
    parts = [patches[torch.tensor(rows)] for rows in ([0, 1, 2, 3], [4], [5, 6, 7, 8])]
    whole = Patches.cat(parts)
    assert torch.allclose(embed_patches(model, whole), wanted, atol=1e-6)
    again = Patches.of(whole.tensors)
    assert all(torch.equal(value, again.tensors[name]) for name, value in whole.tensors.items())
    assert (again.fine is None) == (patches.fine is None)


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
