"""Configuration: what is accepted, what is refused, and whether the refusal tells the user where and why."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import configs
from configs import dump_config, load_config


@dataclass(frozen=True)
class TrackerPart:
    score_thresh: float = 0.4
    buffer_frames: int = 30
    distance: Literal["cosine", "euclidean"] = "cosine"
    use_embeddings: bool = True
    max_people: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.score_thresh <= 1:
            raise ValueError(f"score_thresh: expected 0..1, got {self.score_thresh}")


@dataclass(frozen=True)
class DetectorPart:
    input_size: tuple[int, int] = (384, 640)
    strides: tuple[int, ...] = (8, 16, 32)
    names: list[str] | None = None
    weights: Path | None = None
    lr: float = 0.01


SCHEMA: dict[str, type] = {"tracker": TrackerPart, "detector": DetectorPart}


def load_text(tmp_path: Path, text: str, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    return load_config(file, overrides, SCHEMA)


def test_no_source_gives_the_defaults_of_every_section():
    assert load_config(None, [], SCHEMA) == {"tracker": TrackerPart(), "detector": DetectorPart()}


@pytest.mark.parametrize(
    "text", ["", "# nothing set\n", "tracker:\n", "tracker:\n  # score_thresh: 0.5\n", "tracker: {}"]
)
def test_a_file_without_values_gives_the_defaults(tmp_path, text):
    assert load_text(tmp_path, text) == load_config(None, [], SCHEMA)


def test_file_changes_only_what_it_names_and_overrides_come_later(tmp_path):
    sections = load_text(
        tmp_path,
        "tracker:\n  score_thresh: 0.5\n  distance: euclidean\n",
        ("tracker.score_thresh=0.6", "tracker.score_thresh=0.7", "detector.input_size=[320, 576]"),
    )
    assert sections["tracker"] == TrackerPart(score_thresh=0.7, distance="euclidean")
    assert sections["detector"] == DetectorPart(input_size=(320, 576))


@pytest.mark.parametrize(
    ("override", "field", "expected"),
    [
        ("tracker.score_thresh=1", "score_thresh", 1.0),  # int for float
        ("tracker.score_thresh=1e-3", "score_thresh", 0.001),  # no dot: text to plain YAML 1.1
        ("tracker.buffer_frames=7", "buffer_frames", 7),
        ("tracker.use_embeddings=false", "use_embeddings", False),
        ("tracker.max_people=null", "max_people", None),
        ("tracker.max_people=5", "max_people", 5),
        ("tracker.distance=euclidean", "distance", "euclidean"),
        ("detector.strides=[8]", "strides", (8,)),
        ("detector.names=[a, b]", "names", ["a", "b"]),
        ("detector.weights=a/b=c.pt", "weights", Path("a/b=c.pt")),  # only the first = divides
        ("detector.lr=-.5", "lr", -0.5),
    ],
)
def test_accepted_values(override, field, expected):
    section = override.partition(".")[0]
    value = getattr(load_config(None, [override], SCHEMA)[section], field)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tracker.score_thresh=high", r"tracker\.score_thresh: expected float, got 'high' \(str\)"),
        ("tracker.score_thresh=true", r"expected float, got True \(bool\)"),
        ("tracker.score_thresh='0.5'", r"expected float, got '0\.5' \(str\)"),
        ("tracker.score_thresh=", r"expected float, got None \(null\)"),
        ("tracker.buffer_frames=3.0", r"expected int, got 3\.0 \(float\)"),
        ("tracker.buffer_frames=true", r"expected int, got True \(bool\)"),
        ("tracker.use_embeddings=1", r"expected bool, got 1 \(int\)"),
        ("tracker.max_people=some", r"expected int or null, got 'some'"),
        ("tracker.distance=manhattan", r"expected one of 'cosine', 'euclidean', got 'manhattan'"),
        ("detector.input_size=[384]", r"expected tuple\[int, int\], got \[384\] \(1 items\)"),
        ("detector.input_size=384", r"expected tuple\[int, int\], got 384"),
        ("detector.input_size=[384, wide]", r"expected tuple\[int, int\].*expected int, got 'wide'"),
        ("detector.strides=[8, 1.5]", r"tuple\[int, \.\.\.\].*got 1\.5"),
        ("detector.names=people", r"expected list\[str\] or null, got 'people'"),
    ],
)
def test_a_wrong_type_is_refused_by_name(override, message):
    with pytest.raises(ValueError, match=message):
        load_config(None, [override], SCHEMA)


def test_an_unknown_key_names_the_file_the_line_and_the_near_ones(tmp_path):
    with pytest.raises(
        ValueError, match=r"config\.yaml:3: unknown key in section 'tracker': 'score_tresh'.*score_thresh"
    ):
        load_text(tmp_path, "tracker:\n  buffer_frames: 3\n  score_tresh: 0.5\n")


def test_an_unknown_section_names_the_near_ones(tmp_path):
    with pytest.raises(ValueError, match=r"config\.yaml:1: unknown section: 'traker'; did you mean tracker\?"):
        load_text(tmp_path, "traker:\n  score_thresh: 0.5\n")
    with pytest.raises(ValueError, match=r"unknown section: 'zzz'; expected one of: tracker, detector"):
        load_config(None, ["zzz.a=1"], SCHEMA)


def test_sections_of_others_are_passed_over(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("detector:\n  anything: 1\ntracker:\n  score_thresh: 0.5\n")
    overrides = ("detector.more=2", "tracker.buffer_frames=3")
    sections = load_config(file, overrides, {"tracker": TrackerPart}, others=["detector"])
    assert sections == {"tracker": TrackerPart(score_thresh=0.5, buffer_frames=3)}
    with pytest.raises(ValueError, match=r"unknown section: 'zzz'; expected one of: tracker, detector"):
        load_config(file, ["zzz.a=1"], {"tracker": TrackerPart}, others=["detector"])
    with pytest.raises(ValueError, match=r"config\.yaml:1: unknown section: 'detector'"):
        load_config(file, [], {"tracker": TrackerPart})


def test_a_wrong_type_in_a_file_names_its_line(tmp_path):
    with pytest.raises(ValueError, match=r"config\.yaml:4: detector\.lr: expected float"):
        load_text(tmp_path, "tracker:\n  buffer_frames: 3\ndetector:\n  lr: fast\n")


@pytest.mark.parametrize(
    "text",
    [
        "tracker:\n  score_thresh: 0.5\n  score_thresh: 0.6\n",
        "tracker:\n  score_thresh: 0.5\n\ntracker:\n  distance: cosine\n",
    ],
)
def test_duplicate_keys_are_refused(tmp_path, text):
    with pytest.raises(ValueError, match=r"config\.yaml:[34]: duplicate key '(score_thresh|tracker)'"):
        load_text(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tracker: [1, 2", r"config\.yaml:1"),
        ("- tracker", r"config\.yaml:1: expected sections \(tracker, detector\)"),
        ("tracker: 0.5", r"config\.yaml:1: section 'tracker': expected `key: value` lines, got '0\.5'"),
        ("1: {a: 2}", r"config\.yaml:1: keys are names, got 1"),
        ("tracker: !!python/object/apply:os.getcwd []", r"config\.yaml:1"),
        ("tracker:\n  distance: !!python/name:os.system\n", r"config\.yaml:2"),
    ],
)
def test_a_file_of_another_shape_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load_text(tmp_path, text)


def test_a_file_that_is_not_text_is_refused(tmp_path):
    file = tmp_path / "weights.yaml"
    file.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ValueError, match=r"weights\.yaml: cannot be read"):
        load_config(file, [], SCHEMA)


@pytest.mark.parametrize("text", ["score_thresh=0.5", "tracker.score_thresh", "tracker.=1", ".score_thresh=1", ""])
def test_a_malformed_override_says_what_one_looks_like(text):
    with pytest.raises(ValueError, match=r"expected section\.key=value"):
        load_config(None, [text], SCHEMA)


def test_a_value_the_dataclass_refuses_names_its_source(tmp_path):
    with pytest.raises(ValueError, match=r"config\.yaml:2: section 'tracker': score_thresh: expected 0\.\.1, got 7\.0"):
        load_text(tmp_path, "tracker:\n  score_thresh: 7\n")


def test_only_the_sources_of_the_keys_that_a_refusal_names_are_told(tmp_path):
    with pytest.raises(ValueError, match=r"^override 'tracker\.score_thresh=7': section 'tracker': score_thresh"):
        load_text(
            tmp_path,
            "tracker:\n  buffer_frames: 9\n  score_thresh: 0.5\n",
            ["tracker.score_thresh=6", "tracker.score_thresh=7"],
        )


def test_a_bare_name_is_found_in_the_package_and_the_working_folder_comes_first(tmp_path, monkeypatch):
    shipped, working = tmp_path / "shipped", tmp_path / "working"
    shipped.mkdir()
    working.mkdir()
    (shipped / "calm.yaml").write_text("tracker: {buffer_frames: 90}")
    monkeypatch.setattr(configs, "PACKAGED", shipped)
    monkeypatch.chdir(working)
    for name in ("calm", "calm.yaml", Path("calm")):
        assert load_config(name, [], SCHEMA)["tracker"].buffer_frames == 90
    (working / "calm.yaml").write_text("tracker: {buffer_frames: 10}")
    assert load_config("calm.yaml", [], SCHEMA)["tracker"].buffer_frames == 10
    with pytest.raises(ValueError, match=r"clam: no such config file; shipped with the package: calm"):
        load_config("clam", [], SCHEMA)
    with pytest.raises(ValueError, match=r"no such config file"):
        load_config("elsewhere/calm", [], SCHEMA)  # a path is never looked up by its last part


def test_a_type_yaml_cannot_hold_is_the_programmers_error():
    @dataclass(frozen=True)
    class Odd:
        when: complex = 0j

    with pytest.raises(TypeError, match="cannot be of type complex"):
        load_config(None, ["odd.when=1"], {"odd": Odd})
    with pytest.raises(TypeError, match="expected dataclasses"):
        load_config(None, [], {"odd": int})


@settings(deadline=None)  # writes a file, which a busy machine may make wait
@given(
    tracker=st.builds(
        TrackerPart,
        score_thresh=st.floats(0, 1),
        buffer_frames=st.integers(),
        distance=st.sampled_from(["cosine", "euclidean"]),
        use_embeddings=st.booleans(),
        max_people=st.none() | st.integers(),
    ),
    detector=st.builds(
        DetectorPart,
        input_size=st.tuples(st.integers(), st.integers()),
        strides=st.lists(st.integers()).map(tuple),
        names=st.none() | st.lists(st.text()),
        weights=st.none() | st.just(Path("a/b.safetensors")),
        lr=st.floats(allow_nan=False),
    ),
)
def test_what_is_dumped_loads_back_equal(tmp_path_factory, tracker, detector):
    file = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    sections = {"tracker": tracker, "detector": detector}
    file.write_text(yaml.safe_dump(dump_config(sections)), encoding="utf-8")
    assert load_config(file, [], SCHEMA) == sections


def test_dump_holds_plain_values_of_every_field():
    dumped = dump_config({"detector": DetectorPart(weights=Path("a.pt"))})
    assert dumped == {
        "detector": {**asdict(DetectorPart()), "input_size": [384, 640], "strides": [8, 16, 32], "weights": "a.pt"}
    }
    assert type(dumped["detector"]["input_size"]) is list


@pytest.mark.parametrize("file", sorted(configs.PACKAGED.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_shipped_file_fits_its_dataclasses_and_holds_differences_only(file, monkeypatch, tmp_path):
    from detector import DetectorConfig
    from tools.pseudo_label import PseudoLabelConfig
    from tools.train_detector import SECTIONS
    from tracker import TrackerConfig

    schema = {"detector": DetectorConfig, "pseudo_label": PseudoLabelConfig, "tracker": TrackerConfig, **SECTIONS}
    if file.stem.startswith("reid_"):
        from tools import train_reid

        schema = train_reid.SECTIONS
    monkeypatch.chdir(tmp_path)
    loaded, defaults = dump_config(load_config(file.stem, [], schema)), dump_config(load_config(None, [], schema))
    if file.stem.startswith(("tracker_", "reid_")):
        return  # a published recipe names its settings, whatever our defaults are
    written = yaml.safe_load(file.read_text(encoding="utf-8"))
    repeated = [(s, key) for s, keys in written.items() for key in keys if loaded[s][key] == defaults[s][key]]
    assert repeated == []
