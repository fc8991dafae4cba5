"""``benchmarks/gpu``: it comes through at a toy's size, goes on where it was ended; what fails is a line, no end."""

import importlib
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

GPU = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu"
NEIGHBORS = (GPU.with_name("inference"), GPU.with_name("training"))
PARTS = ["equality", "speed", "training", "loop"]


@pytest.fixture
def load(monkeypatch):
    """Return a function that imports a module of the benchmark, which is forgotten afterwards."""
    for place in (*NEIGHBORS, GPU):
        monkeypatch.syspath_prepend(str(place))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(GPU.parent)):
            del sys.modules[name]


@pytest.fixture
def record(load):
    return load("record")


def healthy():
    return True


def fails():
    raise ValueError("no such luck")


def test_a_failure_is_a_line_and_a_finished_step_is_not_repeated(record, tmp_path):
    taken = []
    steps = [record.Step("good", lambda: taken.append("good") or {"x": 1}), record.Step("bad", fails)]
    for session in ("first", "first", "second"):
        assert record.Record(tmp_path / "r.jsonl", "part", session).run(steps, time.time() + 60, healthy)
    assert taken == ["good"]
    lines = record.read(tmp_path / "r.jsonl")
    assert [line["session"] for line in lines if line.get("status") == "failed"] == ["first", "second"]
    found = record.results(lines)
    assert found["part", "good"]["result"] == {"x": 1} and "no such luck" in found["part", "bad"]["error"]


def test_what_comes_too_late_is_left_out_and_taken_next_time(record, tmp_path):
    steps = [record.Step("late", dict)]
    assert not record.Record(tmp_path / "r.jsonl", "part", "1").run(steps, time.time() - 1, healthy)
    assert record.read(tmp_path / "r.jsonl")[-1]["left_out"] == ["late"]
    assert record.Record(tmp_path / "r.jsonl", "part", "1").run(steps, time.time() + 60, healthy)


def test_a_lost_device_ends_the_process_and_a_torn_line_is_passed_over(record, tmp_path):
    with pytest.raises(SystemExit):
        record.Record(tmp_path / "r.jsonl", "part", "1").run(
            [record.Step("bad", fails)], time.time() + 60, lambda: False
        )
    with (tmp_path / "r.jsonl").open("a") as file:
        file.write('{"part": "par')
    assert record.Record(tmp_path / "r.jsonl", "part", "1").settled() == {"bad"}


@pytest.fixture
def parent(load, monkeypatch, tmp_path):
    """Return a function that runs all parts with made children: each is told its part and returns an exit code."""
    run = load("run")

    def go(children, minutes=5.0):
        def start(command, timeout):
            return subprocess.CompletedProcess(command, children(command[command.index("--child") + 1], timeout))

        monkeypatch.setattr(run.subprocess, "run", start)
        options = run.parse(["--minutes", str(minutes), "--out", str(tmp_path), "--inputs", str(tmp_path)])
        return run.all_parts(options, time.time() + 60 * minutes, "now")

    return go


def test_parts_have_their_share_and_what_is_left_over_goes_to_those_not_done(parent, load):
    asked = []

    def child(part, timeout):
        asked.append((part, timeout))
        return 0 if part != "equality" or len(asked) > len(PARTS) else load("run").LEFT_OUT

    assert parent(child)
    assert [part for part, _ in asked] == [*PARTS, "equality"]
    seconds = [timeout - load("run").GRACE_S for _, timeout in asked]
    assert seconds[0] == pytest.approx(0.2 * 300, abs=5) and seconds[-1] > 250


def test_a_part_that_lost_its_device_goes_on_and_one_that_hangs_is_ended(parent, record, tmp_path):
    file, crashes = tmp_path / "results.jsonl", []

    def child(part, timeout):
        if part == "equality" and len(crashes) < 2:
            crashes.append(part)
            record.Record(file, part, "now").append(step=f"step {len(crashes)}", status="begun")
            return -11
        if part == "speed":
            raise subprocess.TimeoutExpired("run.py", timeout)
        return 0

    assert not parent(child)
    told = [line["ended"] for line in record.read(file) if "ended" in line]
    assert told[:2] == ["exit code -11", "exit code -11"] and told[2].startswith("killed")
    text = load_report(record.read(file))
    assert "step 1: begun, never ended" in text and "killed" in text


def load_report(lines):
    return importlib.import_module("table").report(lines)


def test_a_part_that_cannot_be_imported_is_a_line(load, record, monkeypatch, tmp_path):
    run = load("run")
    monkeypatch.setitem(sys.modules, "training", None)
    assert run.main(["--child", "training", "--session", "1", "--until", "0", "--out", str(tmp_path)]) == run.LEFT_OUT
    assert record.read(tmp_path / "results.jsonl")[-1]["ended"].startswith("not run")


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS[:-1])  # the last one is Snakemake's, in minutes
def test_every_step_comes_through_at_a_toys_size(load, record, tmp_path, part):
    context, torch = load("context"), load("torch")
    given = context.Context(torch.device("cpu"), True, tmp_path / "work", tmp_path / "inputs")
    steps = list(load(part).steps(given))
    assert record.Record(tmp_path / "r.jsonl", part, "1").run(steps, time.time() + 300, healthy)
    torch.use_deterministic_algorithms(False)
    found = record.results(record.read(tmp_path / "r.jsonl"))
    assert {step.name for step in steps} == {name for _, name in found}
    assert not [line["trace"] for line in found.values() if line["status"] != "done"]
    results = {name: line["result"] for (_, name), line in found.items()}
    text = load("table").report(record.read(tmp_path / "r.jsonl"))
    assert all(name in text for name in results if name not in ("about", "ceilings", "resume"))
    if part == "equality":
        scans = [row for name, row in results.items() if "scan" in name]
        assert all(row["fp32"]["different"] == 0 and row["default"]["equal"] > 0.9 for row in scans)
    if part == "training":
        assert results["resume"] == {"same_twice": True, "same_resumed": True}
        assert all(row["finite"] for row in results.values() if "finite" in row)
    if part == "speed":
        assert all(row["equal"] > 0.99 for name, row in results.items() if name.endswith("nnU-Net"))


@pytest.mark.slow
def test_the_loop_ends_with_all_that_it_started(load, tmp_path):
    loop = load("loop")
    late = tmp_path / "late"
    waits = ["bash", "-c", f"(sleep 2; touch {late}) & echo started; wait"]
    with pytest.raises(subprocess.TimeoutExpired):
        loop.run(waits, 0.5)
    with pytest.raises(RuntimeError, match="no such fold"):
        loop.run(["bash", "-c", "echo no such fold; exit 1"], 10)
    time.sleep(2)
    assert not late.exists()


def test_scans_that_are_carried_lie_where_they_lay(load, tmp_path):
    loop, sitk = load("loop"), load("SimpleITK")
    ramp = np.add.outer(np.zeros((6, 20)), 8 * np.arange(30)).astype(np.int16)  # HU, rising along x
    for array, name in ((ramp, "a_0000.nii.gz"), ((ramp > 100).astype(np.uint8), "a.nii.gz")):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing((4, 4, 5))
        image.SetOrigin((-30, 10, 7))
        sitk.WriteImage(image, str(tmp_path / name))
    image, label = map(sitk.ReadImage, map(str, loop.carry(tmp_path, tmp_path / "carried")))
    assert image.GetSize() == label.GetSize() == (48, 32, 6)
    found, labels = sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(label)
    expected = 2.0 * (loop.SPACING_MM * np.arange(46))  # 8 HU in 4 mm
    assert abs(found[:, :31, :46] - expected).max() <= loop.STEP_HU / 2
    assert not labels[3, 3, :20].any() and labels[3, 3, 21:].all()  # from 50 mm on, where the 21st voxel lies


# --- bundles

VERSIONS = dict.fromkeys(("pydantic", "pydantic-core", "pyyaml", "dynamic-network-architectures", "timm"), "1.0")
REQUIRES = {
    "pydantic": ["pydantic_core==1.0", "email-validator; extra == 'email'", "tomli; python_version < '3.11'"],
    "dynamic-network-architectures": ["torch", "timm"],
}


def test_bundles_hold_what_is_needed_and_is_not_there(load, monkeypatch):
    bundle = load("bundle")
    monkeypatch.setattr(bundle, "STAGES", {"engine": bundle.STAGES["engine"]})
    packages = bundle.needed(["torch", "PyYAML"], VERSIONS, lambda name: REQUIRES.get(name, []))
    assert [p.name for p in packages] == ["pydantic", "dynamic-network-architectures", "pydantic-core"]
    with pytest.raises(SystemExit, match="no tested version"):
        bundle.needed([], {}, lambda name: [])


def test_every_package_has_a_tested_version(load):
    bundle = load("bundle")
    packages = bundle.needed(bundle.TORCH_BRINGS, bundle.known_versions())
    names = [p.name for p in packages]
    assert {"pydantic-core", "simpleitk", "blosc2", "nnunetv2"} <= set(names) and "torch" not in names
    assert [p.stage for p in packages] == sorted((p.stage for p in packages), key=list(bundle.STAGES).index)


def test_bundles_are_small_enough_and_unpack(load, tmp_path):
    bundle = load("bundle")
    assert bundle.split({"a": 30, "b": 20, "c": 15, "d": 40}, largest=60) == [["d", "b"], ["a", "c"]]
    with pytest.raises(SystemExit, match="more than a bundle"):
        bundle.split({"a": 61}, largest=60)
    wheel = write_wheel(tmp_path / "wheels" / "tiny_thing-1.0-py3-none-any.whl", "tiny_thing.py")
    (file,) = bundle.pack([["tiny-thing"]], {"tiny-thing": wheel}, tmp_path)
    line = bundle.unpacking(file, str(tmp_path / "site"))
    subprocess.run(["bash", "-c", f"{line} && python3 -c 'import tiny_thing'"], cwd=tmp_path, check=True)


def write_wheel(path, module):
    import zipfile

    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(module, "")
    return path


def test_wheels_are_downloaded_or_built_and_foreign_ones_refused(load, tmp_path):
    bundle = load("bundle")
    asked = []

    def pip(command, **_):
        asked.append(command[5])
        wanted = command[-1].replace("==", "-").replace("-pure", "_pure")
        if command[5] == "download" and "compiled" in wanted:
            write_wheel(tmp_path / f"{wanted}-cp312-cp312-manylinux_2_28_x86_64.whl", "x.py")
        if command[5] == "wheel":
            tag = "py3-none-any" if "pure" in wanted else "cp311-cp311-linux_x86_64"
            write_wheel(tmp_path / f"{wanted}-{tag}.whl", "x.py")

    packages = [bundle.Package(name, "1.0", "engine") for name in ("compiled", "is-pure")]
    assert set(bundle.fetch(packages, tmp_path, pip)) == {"compiled", "is-pure"}
    assert asked == ["download", "download", "wheel"]
    bundle.fetch(packages, tmp_path, pip)
    assert len(asked) == 3
    with pytest.raises(SystemExit, match="not pure Python"):
        bundle.fetch([bundle.Package("foreign", "1.0", "engine")], tmp_path, pip)


@pytest.mark.slow
def test_the_parts_can_be_imported_with_the_bundles_alone(load, tmp_path):
    """With torch, what torch brings, and what the bundles hold: nothing else of what is installed here is seen."""
    from importlib.metadata import distributions

    from packaging.utils import canonicalize_name

    bundle = load("bundle")
    carried = {p.name for p in bundle.needed(bundle.TORCH_BRINGS, bundle.known_versions())}
    for one in distributions():
        name = canonicalize_name(one.metadata["Name"])
        if name in carried | set(bundle.TORCH_BRINGS) or name.startswith(("nvidia", "cuda")):
            for top in {file.parts[0] for file in one.files or [] if file.parts[0] != ".."}:
                place = Path(one.locate_file(top))
                if place.exists() and not (tmp_path / top).exists():
                    (tmp_path / top).symlink_to(place)
    code = "import equality, speed, training, loop, snakemake.cli, nnunetv2.inference.predict_from_raw_data"
    places = map(str, (tmp_path, GPU.parents[1] / "src", *NEIGHBORS, GPU))
    environment = {"PYTHONPATH": ":".join(places), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-S", "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
