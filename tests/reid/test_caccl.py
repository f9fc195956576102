"""Training without labels: what is drawn, what a step computes, and how labels and memories follow each other."""

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn import functional

import reid.caccl
from reid.caccl import ContrastStep, NoClustersError, Relabelling, UnlabelledCrops, build_contrast_step
from reid.contrast import ContrastConfig, ContrastCriterion
from reid.datasets import Crops, load_dataset
from reid.encoders import Encoder
from reid.jaccard import JaccardConfig, jaccard_graph
from reid.optimisation import make_optimizer, optimise
from reid.pseudo_labels import ClusterConfig, centre_cameras, cluster_graph
from reid.samplers import Draw
from reid.training import TrainConfig, chunks
from reid.transforms import AugmentConfig
from tests.reid.crops import SIZE, add_images, tiny_encoder

PEOPLE, EACH = 5, 3  # images of a person in each of two cameras
JACCARD, CLUSTERS = JaccardConfig(k1=5, k2=2), ClusterConfig(eps=0.5, min_samples=2)
TRAIN = TrainConfig(batch_size=8, images_per_identity=2)


def crops(folder: Path, people: int = PEOPLE) -> Crops:
    names = [f"{pid:04d}_c{camid}_{k}.png" for pid in range(1, people + 1) for camid in (1, 2) for k in range(EACH)]
    add_images(folder, names)
    return load_dataset(f"folder:{folder}", ("train",)).train


def relabelling(data: Crops, config: TrainConfig = TRAIN, **kwargs: object) -> Relabelling:
    criterion = ContrastCriterion(ContrastConfig(**kwargs.pop("contrast", {})))
    settings = {"jaccard": JACCARD, "clusters": CLUSTERS, **kwargs}
    return Relabelling(data, criterion, config=config, **settings)


# What is drawn, and what a step computes.


def test_crops_come_with_their_rows(tmp_path: Path) -> None:
    data = crops(tmp_path / "data")
    drawn = UnlabelledCrops(data, SIZE, AugmentConfig(), seed=3)
    pixels, row = drawn[Draw(epoch=1, position=9, row=4)]
    assert len(drawn) == len(data) == 2 * PEOPLE * EACH and row == 4 and pixels.shape == (3, *SIZE)
    again, _ = drawn[Draw(epoch=1, position=9, row=4)]
    later, _ = drawn[Draw(epoch=2, position=9, row=4)]
    assert torch.equal(pixels, again) and not torch.equal(pixels, later)


class Head(nn.Sequential):
    """Any module will do for an encoder: here vectors of 6 numbers become 4."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(6, 4), nn.BatchNorm1d(4))


def made(method: str = "caccl", **kwargs: object) -> tuple[ContrastStep, Tensor, Tensor]:
    """A step on a head with a memory of 8 rows, and a batch of 5."""
    rng = torch.Generator().manual_seed(1)
    criterion = ContrastCriterion(ContrastConfig(method=method))
    labels, camids = torch.tensor([0, 0, 1, 1, 2, 2, -1, 0]), torch.tensor([1, 2] * 4)
    criterion.rebuild(torch.randn(8, 4, generator=rng), labels, camids)
    step = ContrastStep(Head(), criterion, **kwargs)
    return step, torch.randn(5, 6, generator=rng), torch.tensor([0, 2, 4, 5, 7])


@pytest.mark.parametrize("method", ["caccl", "cluster", "self-paced"])
def test_a_step_is_the_criterion_on_unit_features(method: str) -> None:
    step, inputs, rows = made(method)
    total, terms, features = step(inputs, rows)
    expected = functional.normalize(Head()(inputs), dim=1)
    assert torch.equal(features, expected) and not features.requires_grad
    for name, value in step.criterion(expected, rows).items():
        assert torch.equal(terms[name], value)
    assert torch.equal(total, step.criterion.total(terms))
    total.backward()
    assert all(parameter.grad is not None for parameter in step.encoder.parameters())


def test_batch_statistics_of_a_chunk_are_those_of_a_pass_of_its_own() -> None:
    step, inputs, rows = made(bn_chunk=2)
    features = step(inputs, rows)[2]
    alone = Head()
    separate = torch.cat([alone(inputs[:2]), alone(inputs[2:])])  # a fifth row has no statistics of its own
    assert torch.equal(features, functional.normalize(separate, dim=1))
    assert torch.equal(step.encoder[1].running_mean, alone[1].running_mean)
    assert not torch.allclose(features, functional.normalize(Head()(inputs), dim=1), atol=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_ends_at_the_encoder(precision: str) -> None:
    step, inputs, rows = made(precision=precision)
    total, _, features = step(inputs, rows)
    assert total.dtype == features.dtype == torch.float32
    assert torch.allclose(features, made()[0](inputs, rows)[2], atol=0.05)
    assert torch.allclose(features.norm(dim=1), torch.ones(5))


def test_a_state_is_the_same_compiled_or_not() -> None:
    step, *_ = made()
    assert step.state_dict().keys() == made(compile=True)[0].state_dict().keys()
    assert all(name.startswith("encoder.") for name in step.state_dict())


def test_no_memory_changes_before_it_is_told_to() -> None:
    step, inputs, rows = made()
    before = step.criterion.memory_state()
    step(inputs, rows)[0].backward()
    after = step.criterion.memory_state()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"extra": "folder"}, "train.extra: expected None without labels, got folder"),
        ({"adversarial": 2.0}, "train.adversarial: expected 0.0 without labels"),
        ({"sampler": "shuffle"}, "train.sampler: expected identities without labels"),
    ],
)
def test_settings_that_need_labels(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_contrast_step(tiny_encoder(), ContrastConfig(), TrainConfig(**settings))


# Labels of an epoch.


@pytest.mark.parametrize("centred", [False, True])
def test_labels_and_memories_come_from_the_features_of_now(tmp_path: Path, centred: bool) -> None:
    data, encoder = crops(tmp_path / "data"), tiny_encoder()
    clusters = replace(CLUSTERS, centre_cameras=centred)
    source = relabelling(data, clusters=clusters)
    encoder.train()
    report = source.renew(encoder)
    assert encoder.training
    pixels = [reid.caccl.EncoderDescriber(encoder.eval()).prepare(data.read(row), 1.0) for row in range(len(data))]
    with torch.no_grad():
        features = functional.normalize(encoder(torch.stack(pixels)), dim=1)
    compared = centre_cameras(features, torch.from_numpy(data.camids)) if centred else features
    labels = cluster_graph(jaccard_graph(compared, JACCARD, max_distance=CLUSTERS.eps), clusters)
    assert source.labels is not None and np.array_equal(source.labels, labels)
    assert report.clusters == labels.max() + 1 >= 2 and report.outliers == (labels < 0).sum()
    assert report.purity is not None and report.purity > 0.6
    centroids = source.state()["centroids"]
    for label in range(report.clusters):
        mean = functional.normalize(features[torch.from_numpy(labels) == label].mean(0), dim=0)
        assert torch.allclose(centroids[label], mean, atol=1e-5)


def with_labels(source: Relabelling, labels: list[int]) -> Relabelling:
    source.labels = np.array(labels)
    return source


def test_outliers_are_never_drawn(tmp_path: Path) -> None:
    source = with_labels(relabelling(crops(tmp_path / "data")), [0, 1, 2, 3, 4, -1] * PEOPLE)
    steps, batches = source.batches(epoch=2)
    drawn = [[draw.row for draw in batch] for batch in islice(batches, steps)]
    assert steps >= 25 // 8 and all(len(batch) == 8 for batch in drawn)
    assert all(row % 6 != 5 for batch in drawn for row in batch)
    for batch in drawn:
        labels = [row % 6 for row in batch]
        assert sorted(labels.count(label) for label in set(labels)) == [2, 2, 2, 2]


def test_batches_go_on_within_an_epoch_and_are_shared_by_processes(tmp_path: Path) -> None:
    data, labels = crops(tmp_path / "data"), [0, 1, 2, 3, 4, -1] * PEOPLE
    config = TrainConfig(batch_size=8, images_per_identity=2, steps_per_epoch=7)
    steps, batches = with_labels(relabelling(data, config), labels).batches(3)
    whole = list(islice(batches, steps))
    assert steps == 7 and len({(draw.epoch, draw.position) for batch in whole for draw in batch}) == 7 * 8
    _, rest = with_labels(relabelling(data, config), labels).batches(3, 4)
    assert list(islice(rest, 3)) == whole[4:]
    shares = [with_labels(relabelling(data, config, rank=rank, world=2), labels).batches(3)[1] for rank in (0, 1)]
    assert [one + other for one, other, _ in zip(*shares, whole, strict=False)] == whole
    _, other_epoch = with_labels(relabelling(data, config), labels).batches(4)
    assert next(other_epoch) != whole[0]


def test_a_batch_shrinks_to_what_there_is_and_processes_can_share(tmp_path: Path) -> None:
    said: list[str] = []
    data, labels = crops(tmp_path / "data"), [0, 1, 2, -1, -1, -1] * PEOPLE
    source = with_labels(relabelling(data, say=said.append), labels)
    assert [len(next(source.batches(epoch)[1])) for epoch in range(2)] == [6, 6]
    assert said == ["note: fewer clusters than people in a batch: batches are as small as that"]
    config = TrainConfig(batch_size=12, images_per_identity=3)
    shared = with_labels(relabelling(data, config, world=2), labels)
    assert len(next(shared.batches(0)[1])) == 3  # of a batch of 2 times 3: 3 times 3 cannot be halved
    with pytest.raises(ValueError, match="clusters: 3 are too few for a batch that 4 processes can share"):
        with_labels(relabelling(data, config, world=4), labels).batches(0)


def test_a_batch_that_processes_cannot_share_is_refused_where_there_are_clusters_enough(tmp_path: Path) -> None:
    said: list[str] = []
    source = relabelling(crops(tmp_path / "data"), world=3, say=said.append)
    with pytest.raises(ValueError, match="batch size: expected a multiple of 3 processes, got 8"):
        with_labels(source, [0, 1, 2, 3, 4, -1] * PEOPLE).batches(0)
    assert not said  # that there were too few clusters, for one


def scripted(monkeypatch: pytest.MonkeyPatch, *labels: Callable[[int], list[int]]) -> None:
    """Labels of one clustering after another, instead of those found."""
    results = iter(labels)
    monkeypatch.setattr(reid.caccl, "cluster_graph", lambda graph, _: np.array(next(results)(graph.shape[0])))


def good(count: int) -> list[int]:
    return [row % 4 for row in range(count)]


def none(count: int) -> list[int]:
    return [-1] * count


def single(count: int) -> list[int]:
    return [0] * count


def test_without_clusters_it_stops_unless_it_may_keep_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, encoder = crops(tmp_path / "data"), tiny_encoder()
    scripted(monkeypatch, good, single, none)
    source = relabelling(data)
    source.renew(encoder)
    before = source.state()
    with pytest.raises(NoClustersError, match=r"a single cluster \(30 of 30 images\), nobody to tell apart"):
        source.renew(encoder)
    with pytest.raises(NoClustersError, match="no cluster, all 30 images are outliers: raise eps"):
        source.renew(encoder)
    assert all(torch.equal(value, source.state()[name]) for name, value in before.items())

    said: list[str] = []
    keeping = TrainConfig(batch_size=8, images_per_identity=2, no_clusters="keep")
    scripted(monkeypatch, single, good, none)
    source = relabelling(data, keeping, say=said.append)
    with pytest.raises(NoClustersError, match="a single cluster"):
        source.renew(encoder)
    source.renew(encoder)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.05
    before = source.state()
    assert source.renew(encoder).clusters == 0
    assert source.labels is not None and source.labels.tolist() == good(30)
    assert not torch.equal(before["centroids"], source.state()["centroids"])  # of the features of now
    assert len(said) == 1 and "all 30 images are outliers" in said[0] and "epoch before are kept" in said[0]


def test_clusters_of_one_camera_each_are_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, said = crops(tmp_path / "data"), []
    scripted(monkeypatch, lambda _: [int(camid == 2) for camid in data.camids], good)
    source = relabelling(data, say=said.append)
    source.renew(tiny_encoder())
    assert len(said) == 1 and "no cluster is seen by several cameras: the camera term is zero" in said[0]
    said.clear()
    relabelling(data, say=said.append).renew(tiny_encoder())
    assert not said


def test_remarks_on_the_data(tmp_path: Path) -> None:
    data, said = crops(tmp_path / "data"), []
    one_camera = data.select(data.camids == 1)
    relabelling(one_camera, jaccard=JaccardConfig(k1=20), say=said.append)
    assert said == [
        "note: 15 images are no more than jaccard.k1=20: all are neighbours of all",
        "note: one camera only: the camera term is off",
    ]
    said.clear()
    relabelling(one_camera, contrast={"method": "cluster"}, say=said.append)
    assert not said
    with pytest.raises(ValueError, match="train: expected at least two images to tell apart, got 1"):
        relabelling(data.select(np.array([3])))
    with pytest.raises(ValueError, match="labels: expected those of an epoch, got none"):
        relabelling(data).batches(0)


# Going on, alone and with others.


def learn(source: Relabelling, encoder: Encoder, steps: int) -> None:
    """Some steps on the first images of each batch's rows."""
    step = ContrastStep(encoder, source.criterion)
    optimizer = make_optimizer(step, TrainConfig(optimizer="adam"), pretrained=False)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    drawn = UnlabelledCrops(source.crops, SIZE, AugmentConfig(), 0)
    for batch in islice(source.batches(0)[1], steps):
        samples = [drawn[draw] for draw in batch]
        rows = torch.tensor([row for _, row in samples])
        features = optimise(step, optimizer, scaler, torch.stack([image for image, _ in samples]), rows, 0)[2]
        source.criterion.update(features, rows)


@pytest.mark.parametrize("method", ["caccl", "cluster", "self-paced"])
def test_labels_and_memories_can_be_put_back(tmp_path: Path, method: str) -> None:
    data, encoder = crops(tmp_path / "data"), tiny_encoder()
    source = relabelling(data, contrast={"method": method})
    assert source.state() == {}
    source.renew(encoder)
    learn(source, encoder, 2)
    other = relabelling(data, contrast={"method": method})
    other.load({})
    assert other.labels is None
    other.load(source.state())
    assert np.array_equal(other.labels, source.labels)
    one, two = source.state(), other.state()
    assert one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())
    assert next(source.batches(1)[1]) == next(other.batches(1)[1])


def one_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    data = load_dataset(f"folder:{folder}/data", ("train",)).train
    encoder = tiny_encoder()
    source = relabelling(data, rank=rank, world=2, say=lambda _: None)
    source.renew(encoder)
    made = source.state()
    learn(source, encoder, 2)  # gradients are each process' own here
    torch.save((made, source.state()), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_available(), reason="needs torch.distributed")
def test_two_processes_have_the_same_labels_and_memories(tmp_path: Path) -> None:
    data = crops(tmp_path / "data").select(np.arange(2 * PEOPLE * EACH))
    multiprocessing.spawn(one_process, (str(tmp_path),), nprocs=2)
    (made, learned), other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for own, theirs in zip((made, learned), other, strict=True):
        assert own.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in own.items())
    alone = relabelling(data)
    alone.renew(tiny_encoder())
    for name, value in alone.state().items():
        assert torch.allclose(value, made[name], atol=1e-5), name


@pytest.mark.parametrize(("count", "size", "expected"), [(6, 0, [6]), (6, 6, [6]), (7, 3, [3, 4]), (8, 3, [3, 3, 2])])
def test_chunks(count: int, size: int, expected: list[int]) -> None:
    rows = torch.arange(count)
    pieces = chunks(rows, size)
    assert list(map(len, pieces)) == expected and torch.equal(torch.cat(pieces), rows)
