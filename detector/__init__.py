"""Image in; boxes, scores and embeddings of people out."""

from detector.checkpoint import load_model, load_yolox_onnx, save_model
from detector.darknet import DarknetConfig, DarknetJDE
from detector.inference import Detector, DetectorConfig, load_detector
from detector.model import JDE, ModelConfig

__all__ = [
    "JDE",
    "DarknetConfig",
    "DarknetJDE",
    "Detector",
    "DetectorConfig",
    "ModelConfig",
    "load_detector",
    "load_model",
    "load_yolox_onnx",
    "save_model",
]
