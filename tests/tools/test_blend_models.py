import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors import safe_open

from detector import load_model, save_model
from tests.detector.scenes import lively_darknet, lively_model
from tests.tools.conftest import call_tool, load_tool

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("blend_models")


@pytest.fixture
def run(tool: ModuleType, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """The tool in this process: two models in files and options -> (status, stdout, stderr)."""

    def call(base: object, other: object, *argv: object) -> tuple[int, str, str]:
        (tmp_path / "out.safetensors").unlink(missing_ok=True)
        files = ("--base", base, "--other", other, "--out", tmp_path / "out.safetensors")
        return call_tool(tool, capfd, *files, *argv)

    return call


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Two random models of one configuration."""
    paths = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    for seed, path in enumerate(paths):
        save_model(path, lively_model(seed, embedding_dim=8))
    return paths


def test_every_number_lies_between(run: Run, files: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = (load_model(path).state_dict() for path in files)
    for share in (0.0, 0.25, 1.0):
        status, out, _ = run(*files, "--share", share)
        assert status == 0
        assert out.strip().endswith(f"{1 - share:g} of {files[0]}, {share:g} of {files[1]}")
        blended = load_model(tmp_path / "out.safetensors").state_dict()
        for name, value in blended.items():
            if value.is_floating_point():
                wanted = (1 - share) * a[name] + share * b[name]
                assert torch.allclose(value, wanted, rtol=1e-3, atol=1e-4), name
                assert share == 0.25 or torch.equal(value, wanted), name


def test_the_published_family(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_model(path, lively_darknet())
    assert run(path, path)[0] == 0
    status, _, err = run(path, path, "--class-shift", 0, 0, 1)
    assert (status, err) == (1, "error: objectness_shift, class_shift: expected a model of the compact family\n")


def test_scores_are_shifted_by_level(run: Run, files: tuple[Path, Path], tmp_path: Path) -> None:
    """The logits move by what was asked for, boxes and embeddings not at all."""
    shifts = ("--objectness-shift", -0.5, 0, 0.25, "--class-shift", 1, -2, 0)
    assert run(*files, "--share", 0, *shifts)[0] == 0
    pixels = torch.rand(1, 3, 64, 64) * 255
    before, after = load_model(files[0]), load_model(tmp_path / "out.safetensors")
    with torch.no_grad():
        levels = zip(before(pixels)[0], after(pixels)[0], ((-0.5, 1), (0, -2), (0.25, 0)), strict=True)
        for old, new, (objectness, classes) in levels:
            wanted = torch.tensor([0.0, 0, 0, 0, objectness, classes])[:, None, None].expand_as(old[0])
            assert torch.allclose(new[0] - old[0], wanted, atol=0.02)
    names = {n for n, v in after.state_dict().items() if not torch.equal(v, before.state_dict()[n])}
    assert names == {
        f"heads.{i}.{part}.bias"
        for i, part in ((0, "objectness"), (2, "objectness"), (0, "class_logits"), (1, "class_logits"))
    }


def test_the_file_says_what_it_is_made_of(run: Run, files: tuple[Path, Path], tmp_path: Path) -> None:
    run(*files, "--share", 0.3, "--class-shift", 0.1, 0.2, -0.3)
    with safe_open(tmp_path / "out.safetensors", framework="pt") as file:
        notes = json.loads(file.metadata()["notes"])
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
    assert notes["blend"] == {
        "base": str(files[0]),
        "other": str(files[1]),
        "share": 0.3,
        "objectness_shift": [0.0] * 3,
        "class_shift": [0.1, 0.2, -0.3],
    }


def test_models_that_do_not_match(run: Run, files: tuple[Path, Path], tmp_path: Path) -> None:
    save_model(tmp_path / "long.safetensors", lively_model(embedding_dim=16))
    save_model(tmp_path / "published.safetensors", lively_darknet())
    for name in ("long", "published"):
        status, _, err = run(files[0], tmp_path / f"{name}.safetensors")
        assert (status, err.count("\n")) == (1, 1)
        assert f"{name}.safetensors: expected a model like {files[0]}, ModelConfig(" in err
    for share in (-0.1, 1.5, "nan"):
        assert f"share: expected a number in [0, 1], got {share}" in run(*files, "--share", share)[2]
    assert "absent.safetensors: no such weights file" in run(files[0], tmp_path / "absent.safetensors")[2]
    assert not (tmp_path / "out.safetensors").exists()


def test_nothing_is_overwritten_and_no_nan_written(run: Run, tmp_path: Path) -> None:
    base = tmp_path / "base.safetensors"
    save_model(base, lively_model(embedding_dim=8))
    before = base.read_bytes()
    for options, message in (
        (("--out", base), "base.safetensors: expected the name of a .safetensors file that is not there yet"),
        (("--out", tmp_path / "x.pt"), "x.pt: expected the name of a .safetensors file"),
        (("--objectness-shift", "nan", "0", "0"), "expected finite numbers"),
    ):
        status, _, err = run(base, base, *options)
        assert status == 1
        assert message in err
    assert base.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base.safetensors"]
