"""One pass of Darknet-53 JDE over a picture: ours beside the published network as it is run, same weights.

    python benchmarks/forward.py
    python benchmarks/forward.py --sizes 576x320 --repeats 3 --threads 1 --json quick.json
    python benchmarks/forward.py --device cuda --batch 1 16 --json gpu.json

Yardstick, written here from the description of the published network: layers one by one in eager torch, batch norms by
themselves, float32, planes in the usual order; every level decodes all boxes, and computes, normalises and repeats for
every anchor the whole map of embeddings; people are then picked from that.

Ours is what `Detector` runs, up to boxes and embeddings of the people kept, in float32 and, where the processor has
instructions for it, in bfloat16, on a GPU in float16. The ceiling is a product of matrices in the same numbers. Weights
are random, the picture is blurred noise; contestants take turns, medians count. Compared are people (float32), and the
hundred boxes that score most with their embeddings, each at its own anchor and cell: with weights as they are drawn and
"stirred", when predictions are spread as a trained network's.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a checkout measures itself, installed or not

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402
from torchvision.ops import box_iou, nms  # noqa: E402

from benchmarks.throughput import machine  # noqa: E402
from detector import Detector, DetectorConfig  # noqa: E402
from detector.darknet import OUTPUTS, DarknetConfig, DarknetJDE  # noqa: E402
from detector.engine import Precision, multiplies_bfloat16  # noqa: E402
from detector.inference import choose_device  # noqa: E402
from detector.priors import STRIDES, Picks, decode_boxes  # noqa: E402

SIZES = ("1088x608", "576x320")
YARDSTICK = "eager"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PEOPLE = 30
"""People that the threshold lets through."""
COMPARED = 100


class Published(nn.Module):
    """The network as published: a row (box, score, embedding) for each anchor of each cell."""

    def __init__(self, model: DarknetJDE) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float32 BGR 0 to 255 -> (B, A, 5 + D): box xyxy in input pixels, score, unit embedding."""
        raw, maps = self.model(images)
        return torch.cat([self.decode(*level) for level in zip(raw, maps, range(len(STRIDES)), strict=True)], 1)

    def decode(self, raw: Tensor, reduced: Tensor, index: int) -> Tensor:
        """All of a level."""
        anchors, stride = self.model.anchors[index], STRIDES[index]
        embedding = functional.normalize(self.model.levels[index].embedding(reduced).permute(0, 2, 3, 1), dim=-1)
        embedding = embedding.unsqueeze(1).repeat(1, len(anchors), 1, 1, 1)
        height, width = raw.shape[-2:]
        grid = raw.view(len(raw), len(anchors), OUTPUTS, height, width).permute(0, 1, 3, 4, 2).contiguous()
        score = grid[..., 4:].softmax(-1)[..., 1:]
        y, x = torch.meshgrid(*(torch.arange(n, device=raw.device) for n in (height, width)), indexing="ij")
        size = torch.tensor(anchors, device=raw.device).view(1, -1, 1, 1, 2)
        centre = torch.stack((x, y), -1) * float(stride) + size * grid[..., :2]
        half = size * grid[..., 2:4].exp() / 2
        return torch.cat((centre - half, centre + half, score, embedding), -1).flatten(1, 3)

    def people(self, rows: Tensor, score_thresh: float, nms_thresh: float) -> Tensor:
        """The rows that are kept, by falling score."""
        rows = rows[rows[:, 4] >= score_thresh]
        return rows[nms(rows[:, :4], rows[:, 4], nms_thresh)]


def picture(height: int, width: int) -> NDArray[np.uint8]:
    """Blurred noise, (H, W, 3)."""
    coarse = np.random.default_rng(0).integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


@torch.inference_mode()
def stirred(model: DarknetJDE, planes: Tensor) -> DarknetJDE:
    """Spread the predictions as a trained network's are, to a deviation of 1, box codes 1/3 (in place)."""
    for level, raw in zip(model.levels, model(planes)[0], strict=True):
        outputs = raw.unflatten(1, (-1, OUTPUTS))  # (1, anchors, 6, H, W)
        deviation = outputs.std(dim=(0, 3, 4)).clamp(min=1e-6)
        deviation[:, :4] *= 3  # boxes stay near their anchors
        level.detect.weight /= deviation.flatten()[:, None, None, None]
        bias = level.detect.bias
        assert bias is not None
        bias.copy_((bias - outputs.mean(dim=(0, 3, 4)).flatten()) / deviation.flatten())
    return model


def measure(
    sizes: Sequence[str] = SIZES, repeats: int = 5, threads: int = 2, device: str = "cpu", batches: Sequence[int] = (1,)
) -> dict[str, Any]:
    """Everything that is written to the JSON file, from the options of `main`."""
    facts = machine()
    torch.set_num_threads(threads)
    place = choose_device(device)
    results = [measure_size(*map(int, size.split("x")), repeats, place, batches) for size in sizes]
    return {
        "threads": threads,
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu",
        "repeats": repeats,
        "rows": [row for result in results for row in result["rows"]],
        "ceiling_gflops": {each: ceiling(DTYPES[each], place) for each in ("fp32", *precisions(place))},
        "agreement": [each for result in results for each in result["agreement"]],
        "machine": facts,
    }


@torch.inference_mode()
def measure_size(width: int, height: int, repeats: int, device: torch.device, batches: Sequence[int]) -> dict[str, Any]:
    """Times and agreement at one input size."""
    torch.manual_seed(0)
    frame = picture(height, width)
    planes = torch.from_numpy(frame).permute(2, 0, 1)[None].float().contiguous().to(device)
    model = DarknetJDE(DarknetConfig(input_size=(width, height))).eval().to(device)
    published = Published(model)
    size = f"{width}x{height}"
    agreement = [{"input": size, "weights": "random", **compare(published, frame, planes)}]
    with FlopCounterMode(display=False) as counter:
        model(planes)
    gflop = counter.get_total_flops() / 1e9

    thresh = threshold(published, published(planes)[0])
    detectors = {each: detector_for(model, each, thresh, device) for each in precisions(device)}
    rows = []
    for batch in batches:
        images, frames = planes.repeat(batch, 1, 1, 1), [frame] * batch
        contestants: dict[str, Callable[[], Any]] = {
            YARDSTICK: lambda images=images: [
                published.people(rows, thresh, model.nms_thresh).cpu() for rows in published(images)
            ],
            **{
                f"ours, {detector.config.precision}": lambda detector=detector, frames=frames: detector(frames)
                for detector in detectors.values()
            },
        }
        times = take_turns(contestants, repeats)
        medians = {name: median(each) for name, each in times.items()}
        rows += [
            {
                "input": size if batch == 1 else f"{size}, batch {batch}",
                "contestant": name,
                "milliseconds": medians[name],
                "milliseconds_of_runs": each,
                "speedup": medians[YARDSTICK] / medians[name],
                "frames_per_second": 1e3 * batch / medians[name],
                "gflops": batch * gflop / medians[name] * 1e3,
            }
            for name, each in times.items()
        ]
    stirred(model, planes)
    agreement.append({"input": size, "weights": "stirred", **compare(published, frame, planes)})
    return {"rows": rows, "agreement": agreement}


def take_turns(contestants: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each; the first turn is for warming up. All of them end with results on the CPU."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(repeats + 1):
        for name, run in contestants.items():
            began = time.perf_counter()
            run()
            if turn:
                times[name].append((time.perf_counter() - began) * 1e3)
    return times


@torch.inference_mode()
def ceiling(dtype: torch.dtype, device: torch.device, side: int = 4096) -> float:
    """GFLOP/s of a product of two square matrices, the best of five."""
    first, second = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        began = time.perf_counter()
        float((first @ second)[0, 0])  # which waits for the device
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best / 1e9


def precisions(device: torch.device) -> tuple[Precision, ...]:
    """What this device has instructions for."""
    if device.type == "cuda":
        return ("fp32", "fp16")
    return ("fp32", "bf16") if multiplies_bfloat16() else ("fp32",)


def detector_for(model: DarknetJDE, precision: Precision, thresh: float, device: torch.device) -> Detector:
    """Ours."""
    return Detector(model, device, DetectorConfig(score_thresh=thresh, engine="torch", precision=precision))


def threshold(published: Published, rows: Tensor) -> float:
    """What lets about `PEOPLE` people through, of the thousand best boxes, in the widest gap of scores there."""
    lowest = float(rows[:, 4].topk(1000).values[-1])
    scores = published.people(rows, lowest, published.model.nms_thresh)[PEOPLE - 10 : PEOPLE + 10, 4]
    place = int((scores[:-1] - scores[1:]).argmax())
    return float(scores[place : place + 2].mean())


def compare(published: Published, frame: NDArray[np.uint8], planes: Tensor) -> dict[str, Any]:
    """How far ours is from the yardstick, by precision."""
    rows = published(planes)[0]
    thresh = threshold(published, rows)
    result: dict[str, Any] = {}
    for precision in precisions(planes.device):
        detector = detector_for(published.model, precision, thresh, planes.device)
        result[precision] = {"used": detector.config.precision} | compare_cells(rows, detector, frame)
        if precision == "fp32":
            people = published.people(rows, thresh, published.model.nms_thresh)
            result[precision] |= compare_people(people, detector([frame])[0])
    return result


def compare_people(people: Tensor, found: dict[str, Any]) -> dict[str, Any]:
    """Largest differences of people, each held against whom it overlaps most: equal scores come in any order."""
    if len(people) != len(found["scores"]):
        return {"people": len(found["scores"])}
    people = people.cpu()
    boxes, scores, embeddings = (torch.from_numpy(np.asarray(found[n])) for n in ("boxes", "scores", "embeddings"))
    match = box_iou(people[:, :4], boxes).argmax(1)
    theirs = {"box_px": people[:, :4], "score": people[:, 4], "embedding": people[:, 5:]}
    ours = boxes[match], scores[match], embeddings[match]
    pairs = zip(theirs.items(), ours, strict=True)
    return {"people": len(people)} | {f"people_{n}": float((a - b).abs().max()) for (n, a), b in pairs}


def compare_cells(rows: Tensor, detector: Detector, frame: NDArray[np.uint8]) -> dict[str, Any]:
    """Largest differences over the boxes that score most, each at its own anchor and cell."""
    model = detector.model
    raw, features = detector._forward(torch.from_numpy(frame[None]))
    flat, priors = model.flatten(raw)[0], model.priors(raw)
    best = rows[:, 4].topk(COMPARED).indices
    boxes = decode_boxes(flat[best, :4], priors[best])
    embeddings = model.embed(features, Picks.of(priors, best, torch.zeros_like(best), boxes))
    return {
        "box_px": float((boxes - rows[best, :4]).abs().max()),
        "iou_min": float(box_iou(boxes, rows[best, :4]).diagonal().min()),
        "score": float((model.scores(flat)[0][best] - rows[best, 4]).abs().max()),
        "cosine_min": float((embeddings * rows[best, 5:]).sum(1).min()),
    }


def format_table(result: dict[str, Any]) -> str:
    """Times, then agreement."""
    lines = [f"{result['threads']} threads, medians of {result['repeats']}"]
    lines += [
        f"{row['input']:<20} {row['contestant']:<12} {row['milliseconds']:8.1f} ms  {row['speedup']:5.2f}x  "
        f"{row['frames_per_second']:7.1f} frames/s  {row['gflops']:8.0f} GFLOP/s"
        for row in result["rows"]
    ]
    lines.append("ceiling " + ", ".join(f"{k} {v:.0f} GFLOP/s" for k, v in result["ceiling_gflops"].items()))
    for each in result["agreement"]:
        for precision in DTYPES:
            if precision in each:
                figures = ", ".join(f"{k} {v:.4g}" for k, v in each[precision].items() if not isinstance(v, str))
                lines.append(f"{each['input']:<10} {each['weights']:<8} {precision}: {figures}")
    facts = result["machine"]
    lines.append(f"{facts['cpu']}, {facts['cores']} cores, load average {facts['load_average']:.1f} before the start")
    return "\n".join(lines)


def size_text(text: str) -> str:
    """Width x height, as given."""
    width, cross, height = text.partition("x")
    if not (cross and width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT, got {text!r}")
    if int(width) % STRIDES[-1] or int(height) % STRIDES[-1]:
        raise argparse.ArgumentTypeError(f"expected multiples of {STRIDES[-1]}, got {text!r}")
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=size_text, default=list(SIZES), metavar="WxH", help="input sizes")
    parser.add_argument("--repeats", type=int, default=5, help="turns (default: 5)")
    parser.add_argument("--threads", type=int, default=2, help="(default: 2)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--batch", nargs="+", type=int, default=[1], help="frames at a time (default: 1)")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "forward.json")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    try:
        for name in ("repeats", "threads"):
            if getattr(args, name) < 1:
                raise ValueError(f"--{name}: expected at least 1, got {getattr(args, name)}")
        if min(args.batch) < 1:
            raise ValueError(f"--batch: expected at least 1, got {min(args.batch)}")
        result = measure(args.sizes, args.repeats, args.threads, args.device, args.batch)
        print(format_table(result))
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    except (ValueError, OSError) as error:
        if args.debug:
            raise
        print(f"forward: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
