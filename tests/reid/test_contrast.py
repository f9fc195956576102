import io
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributed, multiprocessing

from reid.contrast import ContrastConfig, ContrastCriterion, camera_contrast, cluster_contrast, instance_contrast
from reid.memory import CameraCentres, InstanceMemory, camera_centres, cluster_centroids, unit_rows

METHODS = ("caccl", "cluster", "self-paced")
LABELS = torch.tensor([0, 0, 1, 1, -1, 2, 2, 0, 1, 2, -1, 3])
CAMIDS = torch.tensor([0, 1, 0, 2, 1, 1, 2, 1, 1, 1, 0, 5])
ROWS = torch.tensor([0, 7, 3, 5, 0, 11, 8, 2])


def vectors(count: int, dim: int = 4, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def batch(seed: int = 1, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return unit_rows(vectors(len(ROWS), seed=seed)).to(dtype).requires_grad_()


def criterion(method: str = "caccl", dtype: torch.dtype = torch.float64, **settings: object) -> ContrastCriterion:
    made = ContrastCriterion(ContrastConfig(method=method, **settings))
    made.rebuild(vectors(len(LABELS), dtype=dtype), LABELS, CAMIDS)
    return made


def dot(x: list[float], y: list[float]) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True))


def log_sum_exp(values: list[float]) -> float:
    most = max(values)
    return most + math.log(sum(math.exp(v - most) for v in values))


# What the papers say, one number at a time.


def by_cluster_contrast(features, labels, centroids, temperature) -> float:
    """(2)"""
    losses = []
    for f, label in zip(features, labels, strict=True):
        logits = [dot(f, c) / temperature for c in centroids]
        losses.append(log_sum_exp(logits) - logits[label])
    return sum(losses) / len(losses)


def by_camera_contrast(features, labels, camids, centres, temperature, negatives, across) -> float:
    """(6); centres: (centre, label, camera) of each."""
    losses = []
    for f, a, b in zip(features, labels, camids, strict=True):
        positives = [dot(f, c) / temperature for c, label, camera in centres if label == a and camera != b]
        others = [
            dot(f, c) / temperature for c, label, camera in centres if label != a and (across == "all" or camera != b)
        ]
        nearest = sorted(others, reverse=True)[:negatives]
        terms = [log_sum_exp([positive, *nearest]) - positive for positive in positives]
        losses.append(sum(terms) / len(terms) if terms else 0.0)
    return sum(losses) / len(losses)


def by_instance_contrast(features, classes, instances, of, temperature) -> float:
    losses = []
    for f, target in zip(features, classes, strict=True):
        logits = []
        for k in range(max(of) + 1):
            own = [dot(f, v) for v, label in zip(instances, of, strict=True) if label == k]
            logits.append(sum(own) / len(own) / temperature)
        losses.append(log_sum_exp(logits) - logits[target])
    return sum(losses) / len(losses)


def test_cluster_contrast_by_hand() -> None:
    """At τ = 0.5, logits (2, 0) and (1.2, 1.6): ln(1 + e⁻²) and ln(1 + e⁻⁰·⁴)."""
    features = torch.tensor([[1.0, 0], [0.6, 0.8]], dtype=torch.float64)
    loss = cluster_contrast(features, torch.tensor([0, 1]), torch.eye(2, dtype=torch.float64), 0.5)
    assert loss.item() == pytest.approx((math.log1p(math.exp(-2)) + math.log1p(math.exp(-0.4))) / 2)


def test_one_cluster_is_nothing_to_tell_apart() -> None:
    features = batch()
    loss = cluster_contrast(features, torch.zeros(8, dtype=torch.int64), unit_rows(vectors(1)), 0.05)
    loss.backward()
    assert loss.item() == 0
    assert not features.grad.any()


CENTRES = CameraCentres(
    torch.tensor([[1.0, 0], [0.8, 0.6], [0.6, 0.8], [0, 1], [-1, 0]], dtype=torch.float64),
    torch.tensor([0, 0, 0, 1, 1]),
    torch.tensor([0, 1, 2, 0, 1]),
)


@pytest.mark.parametrize(
    ("across", "negatives", "others"), [("other", 50, [-1]), ("all", 50, [0, -1]), ("all", 1, [0]), ("other", 1, [-1])]
)
def test_camera_contrast_by_hand(across: str, negatives: int, others: list[float]) -> None:
    """Query (1, 0) of cluster 0, camera 0: similarity 0.8 and 0.6 to it elsewhere; of cluster 1, 0 in camera 0 and −1
    in camera 1. τ = 1."""
    query = torch.tensor([[1.0, 0]], dtype=torch.float64)
    where = torch.tensor([0]), torch.tensor([0])
    loss = camera_contrast(query, *where, CENTRES, 1.0, negatives, across)
    against = sum(math.exp(s) for s in others)
    terms = [math.log(math.exp(s) / (math.exp(s) + against)) for s in (0.8, 0.6)]
    assert loss.item() == pytest.approx(-sum(terms) / 2)


def test_a_query_without_another_camera_adds_zero_to_the_mean() -> None:
    centres = CameraCentres(CENTRES.centres[1:4], CENTRES.labels[1:4], CENTRES.camids[1:4])
    features = torch.tensor([[0.0, 1], [1, 0]], dtype=torch.float64, requires_grad=True)
    labels, camids = torch.tensor([1, 0]), torch.tensor([0, 3])
    both = camera_contrast(features, labels, camids, centres, 0.5)
    one = camera_contrast(features[1:], labels[1:], camids[1:], centres, 0.5)
    assert both.item() == pytest.approx(one.item() / 2)
    both.backward()
    assert not features.grad[0].any()
    assert features.grad[1].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.07, 1e-3])
def test_without_negatives_a_zero_with_a_gradient_of_zero(dtype: torch.dtype, temperature: float) -> None:
    centres = CameraCentres(CENTRES.centres[:3], CENTRES.labels[:3], CENTRES.camids[:3])  # one cluster
    features = torch.tensor([[1.0, 0], [-1, 0]], dtype=dtype, requires_grad=True)
    loss = camera_contrast(features, torch.tensor([0, 0]), torch.tensor([0, 1]), centres, temperature)
    loss.backward()
    assert loss.item() == 0
    assert features.grad.tolist() == [[0, 0], [0, 0]]


def test_small_temperatures_stay_finite() -> None:
    features = torch.tensor([[-1.0, 0], [1, 0]], requires_grad=True)
    loss = camera_contrast(features, torch.tensor([0, 0]), torch.tensor([0, 1]), CENTRES, 1e-4)
    loss.backward()
    assert 1e3 < loss.item() < 1e5
    assert features.grad.isfinite().all()


images = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=14)


@given(images, st.integers(1, 8), st.sampled_from(["other", "all"]), st.sampled_from([0.05, 0.3]), st.integers(0, 999))
def test_losses_are_those_of_loops(pairs, negatives, across, temperature, seed) -> None:
    names = sorted({label for label, _ in pairs})
    labels = torch.tensor([names.index(label) for label, _ in pairs])
    camids = torch.tensor([camera for _, camera in pairs])
    known, features = unit_rows(vectors(len(pairs), seed=seed)), unit_rows(vectors(len(pairs), seed=seed + 1))
    numbers = features.tolist(), labels.tolist()

    centroids = cluster_centroids(known, labels)
    wanted = by_cluster_contrast(*numbers, centroids.tolist(), temperature)
    assert cluster_contrast(features, labels, centroids, temperature).item() == pytest.approx(wanted, abs=1e-9)

    centres = camera_centres(known, labels, camids)
    loss = camera_contrast(features, labels, camids, centres, temperature, negatives, across)
    rows = list(zip(centres.centres.tolist(), centres.labels.tolist(), centres.camids.tolist(), strict=True))
    wanted = by_camera_contrast(*numbers, camids.tolist(), rows, temperature, negatives, across)
    assert loss.item() == pytest.approx(wanted, abs=1e-9)

    memory = InstanceMemory.build(known, labels)
    loss = instance_contrast(features, labels, memory, temperature)
    wanted = by_instance_contrast(*numbers, memory.features.tolist(), memory.classes.tolist(), temperature)
    assert loss.item() == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("across", ["other", "all"])
@pytest.mark.parametrize("method", METHODS)
def test_criterion_looks_up_by_row(method: str, across: str) -> None:
    """Unit memories, outliers as negatives of instances alone."""
    made, features = criterion(method, negative_cameras=across, camera_negatives=3), batch()
    terms = made(features, ROWS)
    unit, labels, camids = unit_rows(vectors(len(LABELS))), LABELS[ROWS].tolist(), CAMIDS[ROWS].tolist()
    if method == "self-paced":
        classes = [0, 0, 1, 1, 4, 2, 2, 0, 1, 2, 5, 3]
        wanted = {"instance": by_instance_contrast(features.tolist(), labels, unit.tolist(), classes, 0.05)}
    else:
        centroids = unit_rows(cluster_centroids(unit, LABELS)).tolist()
        wanted = {"cluster": by_cluster_contrast(features.tolist(), labels, centroids, 0.05)}
    if method == "caccl":
        means = camera_centres(unit, LABELS, CAMIDS)
        rows = zip(unit_rows(means.centres).tolist(), means.labels.tolist(), means.camids.tolist(), strict=True)
        wanted["camera"] = by_camera_contrast(features.tolist(), labels, camids, list(rows), 0.07, 3, across)
        assert made.total(terms).item() == pytest.approx(wanted["cluster"] + 0.8 * wanted["camera"])
    else:
        assert made.total(terms) is next(iter(terms.values()))
    assert {name: loss.item() for name, loss in terms.items()} == pytest.approx(wanted)


@pytest.mark.parametrize("across", ["other", "all"])
@pytest.mark.parametrize("method", METHODS)
def test_gradients(method: str, across: str) -> None:
    """Of each term and the total, in float64; at a temperature at which all centres pull."""
    made = criterion(method, negative_cameras=across, camera_negatives=3, temperature=0.5, camera_temperature=0.5)
    features = batch()
    for name in made(features, ROWS):
        assert torch.autograd.gradcheck(lambda f, name=name: made(f, ROWS)[name], features)
    assert torch.autograd.gradcheck(lambda f: made.total(made(f, ROWS)), features)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_weight_of_the_cameras_it_is_cluster_contrast_to_the_bit(dtype: torch.dtype) -> None:
    """(7) with λ = 0, in value and gradient; with λ it is not."""
    found = []
    for made in (
        criterion("caccl", dtype, camera_weight=0.0),
        criterion("cluster", dtype),
        criterion("caccl", dtype, camera_weight=0.2),
    ):
        features = batch(dtype=dtype)
        total = made.total(made(features, ROWS))
        total.backward()
        found.append((total.detach(), features.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert not torch.equal(found[0][0], found[2][0])


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_batch_is_zero_and_connected(method: str) -> None:
    made, features = criterion(method), torch.zeros(0, 4, requires_grad=True)
    total = made.total(made(features, torch.zeros(0, dtype=torch.int64)))
    total.backward()
    assert total.item() == 0
    assert features.grad.shape == (0, 4)
    before = made.memory_state()
    made.update(features, torch.zeros(0, dtype=torch.int64))
    assert_same_state(made.memory_state(), before)


def test_one_camera_has_no_camera_contrast() -> None:
    made = ContrastCriterion(ContrastConfig())
    made.rebuild(vectors(12), LABELS, torch.full((12,), 3))
    features = batch()
    terms = made(features, ROWS)
    assert made.shared_clusters == 0
    assert terms["camera"].item() == 0
    terms["camera"].backward()
    assert not features.grad.any()


def test_clusters_seen_by_several_cameras_are_counted() -> None:
    assert criterion("caccl").shared_clusters == 3  # the fourth has one image, outliers are no cluster
    assert criterion("cluster").shared_clusters == 0


# Precision.


@pytest.mark.parametrize("method", METHODS)
def test_autocast_computes_in_float32(method: str) -> None:
    made, features = criterion(method, torch.float32), batch(dtype=torch.bfloat16)
    exact = made(features.float(), ROWS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = made(features, ROWS)
        total = made.total(terms)
    total.backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made.update(features, ROWS)
    assert total.dtype == torch.float32
    assert features.grad.dtype == torch.bfloat16
    assert features.grad.isfinite().all()
    for name, loss in terms.items():
        assert torch.equal(loss, exact[name])
    assert all(values.dtype in (torch.float32, torch.int64) for values in made.memory_state().values())


def test_half_precision_is_close() -> None:
    made = criterion("caccl", torch.float32)
    wanted = made(batch(dtype=torch.float32), ROWS)
    for dtype, rel in ((torch.bfloat16, 0.02), (torch.float16, 0.003)):
        terms = made(batch(dtype=dtype), ROWS)
        assert {n: v.item() for n, v in terms.items()} == pytest.approx({n: v.item() for n, v in wanted.items()}, rel)


# Memories.


def assert_same_state(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert torch.equal(found[name], wanted[name]), name
        assert found[name].dtype == wanted[name].dtype


@pytest.mark.parametrize("method", METHODS)
def test_memories_move_by_update_alone(method: str) -> None:
    """Twice forward and twice backward change nothing."""
    made, features = criterion(method), batch()
    before = made.memory_state()
    made(features, ROWS)
    total = made.total(made(features, ROWS))
    total.backward(retain_graph=True)
    total.backward()
    assert_same_state(made.memory_state(), before)
    made.update(features, ROWS)
    after = made.memory_state()
    key = "instances" if method == "self-paced" else "centroids"
    assert [name for name in after if not torch.equal(after[name], before[name])] == [key]
    assert not after[key].requires_grad


def test_an_update_ahead_of_backward_is_an_error_not_a_wrong_gradient() -> None:
    made, features = criterion("cluster"), batch()
    total = made.total(made(features, ROWS))
    made.update(features, ROWS)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


@pytest.mark.parametrize("update", ["momentum", "hard"])
def test_one_step_is_equation_4(update: str) -> None:
    made, features = criterion(update=update, momentum=0.2), batch()
    wanted = made.memory_state()["centroids"]
    start, labels = wanted.clone(), LABELS[ROWS].tolist()
    for i, label in enumerate(labels):
        if update == "hard":
            similarity = [features[j] @ start[label] for j in range(8) if labels[j] == label]
            if features[i] @ start[label] > min(similarity):
                continue
        blend = 0.2 * wanted[label] + 0.8 * features[i].detach()
        wanted[label] = blend / blend.norm()
    made.update(features, ROWS)
    torch.testing.assert_close(made.memory_state()["centroids"], wanted)


def test_instances_follow_their_own_image() -> None:
    """A row that is in the batch twice is moved twice, in order."""
    made, features = criterion("self-paced", momentum=0.2), batch()
    wanted = unit_rows(vectors(len(LABELS)))
    for row, feature in zip(ROWS.tolist(), features.detach(), strict=True):
        blend = 0.2 * wanted[row] + 0.8 * feature
        wanted[row] = blend / blend.norm()
    made.update(features, ROWS)
    torch.testing.assert_close(made.memory_state()["instances"], wanted)


@pytest.mark.parametrize("method", METHODS)
def test_rows_of_nan_are_left_out(method: str) -> None:
    made, without = criterion(method), criterion(method)
    spoilt = batch().detach().clone()
    spoilt[2] = math.nan
    made.update(spoilt, ROWS)
    good = [0, 1, 3, 4, 5, 6, 7]
    without.update(spoilt[good], ROWS[good])
    assert_same_state(made.memory_state(), without.memory_state())


@pytest.mark.parametrize("method", METHODS)
def test_rebuild_forgets_and_leaves_its_input_alone(method: str) -> None:
    made, known, labels = criterion(method), vectors(12), LABELS.clone()
    made.update(batch(), ROWS)
    made.rebuild(known, labels, CAMIDS)
    assert_same_state(made.memory_state(), criterion(method).memory_state())
    labels[:] = 7
    made.update(batch(), ROWS)
    assert torch.equal(known, vectors(12))
    assert torch.equal(made.memory_state()["labels"], LABELS)


@pytest.mark.parametrize("method", METHODS)
def test_features_of_inference_mode_make_a_memory_that_can_be_learned_from(method: str) -> None:
    with torch.inference_mode():
        known = vectors(12) * 2
    made, features = ContrastCriterion(ContrastConfig(method=method)), batch()
    made.rebuild(known, LABELS, CAMIDS)
    made.total(made(features, ROWS)).backward()
    made.update(features, ROWS)
    assert features.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS)
def test_state_is_restored_to_the_bit(method: str, dtype: torch.dtype) -> None:
    made = criterion(method, dtype)
    made.update(batch(dtype=dtype), ROWS)
    state = made.memory_state()
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    again = ContrastCriterion(ContrastConfig(method=method))
    again.load_memory(torch.load(file, weights_only=True), device="cpu")
    assert_same_state(again.memory_state(), state)
    assert again.shared_clusters == made.shared_clusters
    features = batch(seed=5, dtype=dtype)
    for one, other in zip(again(features, ROWS).values(), made(features, ROWS).values(), strict=True):
        assert torch.equal(one, other)
    again.update(features, ROWS)
    made.update(features, ROWS)
    assert_same_state(again.memory_state(), made.memory_state())
    key = "instances" if method == "self-paced" else "centroids"
    assert not torch.equal(state[key], made.memory_state()[key])  # what was handed out is a copy


def test_an_empty_state_is_that_of_no_memory() -> None:
    made = criterion()
    empty = ContrastCriterion(ContrastConfig()).memory_state()
    assert empty == {}
    made.load_memory(empty)
    with pytest.raises(ValueError, match=r"memory: expected rebuild\(\) or load_memory\(\) first"):
        made(batch(), ROWS)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_computes_the_same(method: str) -> None:
    here, there = criterion(method), ContrastCriterion(ContrastConfig(method=method))
    there.rebuild(vectors(12).cuda(), LABELS, CAMIDS)
    for _ in range(2):
        on_cpu, on_gpu = here(batch(), ROWS), there(batch().cuda(), ROWS)
        for name, loss in on_gpu.items():
            assert loss.is_cuda
            torch.testing.assert_close(loss.cpu(), on_cpu[name])
        here.update(batch(), ROWS)
        there.update(batch().cuda(), ROWS)
        state = {name: values.cpu() for name, values in there.memory_state().items()}
        there.load_memory(state, device="cuda")


# Several processes.


def updated(method: str, update: str, features: torch.Tensor, rows: torch.Tensor) -> dict[str, torch.Tensor]:
    made = criterion(method, torch.float32, update=update)
    for _ in range(3):
        made.update(features, rows)
    return made.memory_state()


CASES = (("caccl", "momentum"), ("cluster", "hard"), ("self-paced", "momentum"))


def spoilt_batch() -> torch.Tensor:
    features = batch(dtype=torch.float32).detach()
    features[5] = math.nan
    return features


def one_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    own = slice(4 * rank, 4 * rank + 4)
    states = [updated(*case, spoilt_batch()[own], ROWS[own]) for case in CASES]
    torch.save(states, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_available(), reason="needs torch.distributed")
def test_two_processes_hold_the_memory_of_the_joint_batch(tmp_path: Path) -> None:
    multiprocessing.spawn(one_process, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for case, one, other in zip(CASES, first, second, strict=True):
        alone = updated(*case, spoilt_batch(), ROWS)
        assert_same_state(one, other)
        assert_same_state(one, alone)


# What cannot be.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "spcl"}, "method: expected one of caccl, cluster, self-paced, got 'spcl'"),
        ({"update": "soft"}, "update: expected one of momentum, hard, got 'soft'"),
        ({"negative_cameras": "own"}, "negative_cameras: expected one of other, all, got 'own'"),
        ({"temperature": 0.0}, "temperature: expected a number above 0, got 0.0"),
        ({"camera_temperature": math.nan}, "camera_temperature: expected a number above 0, got nan"),
        ({"momentum": 1.5}, r"momentum: expected a number in \[0, 1\], got 1.5"),
        ({"camera_weight": -0.1}, "camera_weight: expected a number of at least 0, got -0.1"),
        ({"camera_negatives": 0}, "camera_negatives: expected at least 1, got 0"),
        (
            {"method": "self-paced", "update": "hard"},
            "update: expected 'momentum' with method 'self-paced', got 'hard'",
        ),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ContrastConfig(**settings)


@pytest.mark.parametrize("method", METHODS)
def test_memories_that_cannot_be_built(method: str) -> None:
    made, known = ContrastCriterion(ContrastConfig(method=method)), vectors(12)
    with pytest.raises(ValueError, match="labels: expected at least one cluster, got only outliers"):
        made.rebuild(known, torch.full((12,), -1), CAMIDS)
    with pytest.raises(ValueError, match="labels: expected at least one cluster, got only outliers"):
        made.rebuild(known[:0], LABELS[:0], CAMIDS[:0])
    with pytest.raises(ValueError, match=r"expected shapes \(N, D\), \(N,\), \(N,\), got \(12, 4\), \(11,\), \(12,\)"):
        made.rebuild(known, LABELS[1:], CAMIDS)
    known[7, 2] = math.inf
    with pytest.raises(ValueError, match="features: expected finite numbers, got others in row 7"):
        made.rebuild(known, LABELS, CAMIDS)
    assert made.memory_state() == {}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("count", "rows", "message"),
    [
        (2, [0, 4], "rows: expected images in a cluster, got 4, an outlier"),
        (2, [0, 12], "rows: expected 0 to 11, got 0 to 12"),
        (2, [-1, 3], "rows: expected 0 to 11, got -1 to 3"),
        (3, [0, 1], r"features: expected shape \(2, 4\), got \(3, 4\)"),
    ],
)
def test_batches_that_cannot_be(method: str, count: int, rows: list[int], message: str) -> None:
    made = criterion(method)
    before = made.memory_state()
    for call in (made, made.update):
        with pytest.raises(ValueError, match=message):
            call(batch()[:count], torch.tensor(rows))
    assert_same_state(made.memory_state(), before)


def test_the_state_of_another_method() -> None:
    message = "memory: expected camids, centroids, labels for method 'cluster', got camids, classes, instances, labels"
    with pytest.raises(ValueError, match=message):
        criterion("cluster").load_memory(criterion("self-paced").memory_state())
