"""The yardstick computes what the network computes, and the figures are those of both."""

import argparse
import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import forward
from benchmarks.forward import Published, compare, main, picture, size_text, stirred
from detector.darknet import DarknetConfig, DarknetJDE
from detector.priors import Picks


@pytest.fixture(scope="module")
def model() -> DarknetJDE:
    torch.manual_seed(0)
    return DarknetJDE(DarknetConfig(width=1 / 8, embedding_dim=16, input_size=(192, 128))).eval()


@torch.inference_mode()
def test_the_yardstick_has_every_box_score_and_embedding(model: DarknetJDE) -> None:
    images = torch.from_numpy(picture(128, 192)).permute(2, 0, 1)[None].float()
    rows, again = Published(model)(images.repeat(2, 1, 1, 1))
    torch.testing.assert_close(again, rows)
    raw, features = model(images)
    flat, priors = model.flatten(raw)[0], model.priors(raw)
    assert rows.shape == (len(flat), 5 + 16)
    torch.testing.assert_close(rows[:, 4], model.scores(flat)[0])
    some = torch.arange(0, len(flat), 37)
    picks = Picks.of(priors, some, torch.zeros_like(some), rows[some, :4])
    torch.testing.assert_close(rows[some, 5:], model.embed(features, picks), atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_ours_agrees_with_the_yardstick_and_a_wrong_one_does_not(model: DarknetJDE) -> None:
    frame = picture(128, 192)
    planes = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
    stirred(model, planes)
    published = Published(model)
    found = compare(published, frame, planes)["fp32"]
    assert found["people"] > 5
    assert found["people_box_px"] < 1e-2 and found["people_embedding"] < 1e-4 and found["cosine_min"] > 0.9999
    wrong = compare(published, frame, planes + 40)["fp32"]
    assert wrong["score"] > 1e-3


def test_the_command_writes_what_it_prints(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        forward, "DarknetConfig", lambda input_size: DarknetConfig(1 / 16, embedding_dim=8, input_size=input_size)
    )
    monkeypatch.setattr(forward, "ceiling", functools.partial(forward.ceiling, side=256))
    out = tmp_path / "forward.json"
    threads = torch.get_num_threads()
    try:
        assert (
            main(["--sizes", "192x128", "--repeats", "2", "--threads", "1", "--batch", "1", "2", "--json", str(out)])
            == 0
        )
    finally:
        torch.set_num_threads(threads)
    result = json.loads(out.read_text())
    assert [row["contestant"] for row in result["rows"]][:2] == ["eager", "ours, fp32"]
    first, second = result["rows"][:2]
    assert second["speedup"] == pytest.approx(first["milliseconds"] / second["milliseconds"])
    assert len(first["milliseconds_of_runs"]) == 2
    assert [row["input"] for row in result["rows"]][-1] == "192x128, batch 2"
    assert result["ceiling_gflops"]["fp32"] > 1
    assert {each["weights"] for each in result["agreement"]} == {"random", "stirred"}
    assert "192x128" in capsys.readouterr().out


def test_impossible_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("576", "576x", "x320", "100x64"):
        with pytest.raises(argparse.ArgumentTypeError, match=r"expected .*, got"):
            size_text(text)
    assert main(["--repeats", "0"]) == 2
    assert "--repeats: expected at least 1, got 0" in capsys.readouterr().err
    assert main(["--batch", "0"]) == 2
    assert "--batch: expected at least 1, got 0" in capsys.readouterr().err
    assert main(["--device", "tpu"]) == 2
    assert "device: expected auto, cpu, cuda or cuda:N, got 'tpu'" in capsys.readouterr().err
    assert np.ptp(picture(64, 96)) > 100
