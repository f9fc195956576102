"""Everything that is trained, put together: network, criterion, weighting, and the weights to start from."""

from __future__ import annotations

from torch import nn

from detector.checkpoint import load_model, load_yolox_onnx
from detector.darknet import DarknetConfig, DarknetJDE
from detector.losses import AnchorCriterion, JDECriterion, UncertaintyWeighting
from detector.model import JDE, ModelConfig
from detector.published import load_darknet53, load_published, load_state
from detector.training import TrainConfig, TrainingStep, freeze


def build_step(
    config: TrainConfig,
    compact: ModelConfig,
    darknet53: DarknetConfig,
    num_ids: int,
    teacher_dim: int,
    device: str = "cpu",
    *,
    take_over: bool = True,
) -> tuple[TrainingStep, str]:
    """Network, criterion and weighting, from random weights or those of `config.init`.

    Args:
        config: how to train.
        compact: the network of the compact family, if it is the one.
        darknet53: the other.
        num_ids: identities in the data.
        teacher_dim: length of the teacher's embeddings; 0 without one.
        device: "cpu" or "cuda".
        take_over: read `config.init`; a run that goes on has its weights elsewhere.

    Returns:
        Everything that is trained, and a sentence on what was taken over from `config.init`, or "".

    Raises:
        ValueError: the weights do not fit, or there is nothing to learn.
    """
    model: JDE | DarknetJDE = JDE(compact) if config.family == "compact" else DarknetJDE(darknet53)
    dim = model.config.embedding_dim
    ids, teacher = (num_ids, teacher_dim) if dim else (0, 0)
    criterion: JDECriterion | AnchorCriterion
    if isinstance(model, JDE):
        criterion = JDECriterion(ids, dim, teacher, joint_confidence=config.joint_confidence)
    else:
        criterion = AnchorCriterion(ids, dim, teacher, parity=config.parity)
    tasks = criterion.start
    if config.frozen == "detector":
        tasks = {t: s for t, s in tasks.items() if t.partition("_")[0] not in ("box", "conf")}
        if not tasks:
            raise ValueError("nothing to learn: the detector is frozen, and no embeddings can be trained on this data")
    fixed = config.weighting == "fixed"
    weighting = UncertaintyWeighting(dict.fromkeys(tasks, 0.0) if fixed else tasks, fixed=fixed)
    step = TrainingStep(model, criterion, weighting, config.precision)
    taken = _initialise(step, config.init) if config.init and take_over else ""
    freeze(model, config.frozen)
    if config.sync_norm:
        if device != "cuda":
            raise ValueError("sync_norm: works on GPUs alone")
        for name, child in model.named_children():
            if name != "embedding_head":
                setattr(model, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))  # type: ignore[no-untyped-call]
    return step.to(device), taken


def _initialise(step: TrainingStep, path: str) -> str:
    """Take over the weights of `path`; says what was taken."""
    model = step.model
    if path.endswith(".onnx"):
        if not isinstance(model, JDE):
            raise ValueError(f"{path}: YOLOX weights fit the compact family alone")
        return f"{path}: {load_yolox_onnx(path, model)} tensors taken over"
    if path.endswith(".safetensors"):
        source = load_model(path)
        if type(source) is not type(model):
            raise ValueError(f"{path}: a model of another family: set train.family")
        load_state(model, {k: v for k, v in source.state_dict().items() if "num_batches" not in k}, path)
        return f"{path}: taken over"
    if not isinstance(model, DarknetJDE):
        raise ValueError(
            f"{path}: expected .onnx or .safetensors for the compact family; or set train.family=darknet53"
        )
    if not path.endswith((".pt", ".pth")):
        return f"{path}: {load_darknet53(path, model.backbone)} convolutions of the backbone taken over"
    published, training = load_published(path)
    if published.anchors != model.anchors:
        size = list(published.config.input_size)
        raise ValueError(f"{path}: made for other anchors: set darknet53.input_size={size}")
    load_state(model, {k: v for k, v in published.state_dict().items() if "num_batches" not in k}, path)
    classifier, weight = step.criterion.appearance.identity, training["classifier.weight"]
    same = classifier is not None and classifier.weight.shape == weight.shape
    if classifier is not None and same:
        classifier.load_state_dict({"weight": weight, "bias": training["classifier.bias"]})
    for task, s in step.weighting.s.items():
        if f"s.{task}" in training and s.requires_grad:
            s.data.copy_(training[f"s.{task}"])
    return f"{path}: taken over, {'with' if same else 'without'} its classifier of {len(weight)} identities"
