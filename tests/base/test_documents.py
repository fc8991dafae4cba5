"""Files that somebody else wrote: within limits, in one line, and nothing in them is executed."""

import errno
import json
import pickle
import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from labelloop.base.classes import ClassScheme, load_classes
from labelloop.base.documents import MOST_VALUES, load_tensors, read_json, read_yaml, validated
from labelloop.base.errors import UserError, may_pass
from labelloop.cli.main import main
from labelloop.images.datasets import read_dataset
from labelloop.networks.network import build_network, load_network
from labelloop.networks.plans import Plan
from labelloop.recipe import load_recipe

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)
ODD_YAML = {
    "alias bomb": BOMB,
    "holds itself": "a: &a [*a]\n",
    "deep": "[" * 3000 + "]" * 3000,
    "very deep": "[" * 300_000,
    "deep blocks": "".join(" " * n + "a:\n" for n in range(300)),
    "not UTF-8": b"\xff\xfe\x00",
    "a tag": "!!python/object/apply:os.system [echo hi]\n",
    "a key that is a list": "? [a, b]\n: 1\n",
    "a date that is none": "a: 2020-13-45\n",
    "a huge number": "a: " + "9" * 5000 + "\n",
    "cut": 'a: "b\n',
}


@pytest.mark.parametrize("name", ODD_YAML)
@pytest.mark.parametrize("load", [load_recipe, load_classes, read_dataset], ids=lambda load: load.__name__)
def test_odd_yaml_is_refused_in_short_lines(tmp_path, load, name):
    path, content = tmp_path / "odd.yaml", ODD_YAML[name]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as refused:
        load(path)
    lines = str(refused.value).splitlines()
    assert all(line.startswith(str(path)) for line in lines) and len(lines) <= 50
    assert len(str(refused.value)) < 10_000


ODD = ["extends: 5", "extends: [a]", "classes: {a: b}", "5", "[1]", "models: 7", "null", "models: {a: b}"]
ODD += ["models: {a: {like: [b]}}"]


@pytest.mark.parametrize("content", ODD)
def test_odd_recipes_end_the_command_with_2_and_no_traceback(tmp_path, content, capsys):
    path = tmp_path / "odd.yaml"
    path.write_text(content)
    assert main(["recipe", "show", str(path)]) == 2
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["models", "labels", "plans"])
def test_names_that_are_too_long_for_a_folder_are_refused(tmp_path, kind):
    recipe = load_recipe("default").model_dump(mode="json", exclude_none=True, by_alias=True)
    recipe[kind]["n" * 300] = next(iter(recipe[kind].values()))
    (tmp_path / "long.yaml").write_text(json.dumps(recipe))
    with pytest.raises(UserError, match="at most 64 letters") as refused:
        load_recipe(tmp_path / "long.yaml")
    assert len(str(refused.value)) < 1000


def test_as_many_aliases_as_people_write_are_fine(tmp_path):
    path = tmp_path / "fine.yaml"
    path.write_text("plan: &plan {spacing_mm: [1, 1, 1]}\n" + "".join(f"p{n}: *plan\n" for n in range(1000)))
    assert read_yaml(path)["p999"] == {"spacing_mm": [1, 1, 1]}
    assert MOST_VALUES > 10_000


@pytest.mark.parametrize(
    "content",
    [b"[1]", b"null", b"\xff\xfe", b"[" * 100_000, b"{", b"", b"\x80\x02}q\x00."],
    ids=["list", "null", "not UTF-8", "deep", "cut", "empty", "pickle"],
)
def test_odd_json_is_refused(tmp_path, content):
    path = tmp_path / "model.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"model.json") as refused:
        read_json(path)
    assert "\n" not in str(refused.value)


def test_a_folder_or_a_huge_file_is_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    with (tmp_path / "huge.yaml").open("wb") as handle:
        handle.truncate(2**33)
    for name in ("folder", "huge.yaml", "none"):
        with pytest.raises(UserError, match=name):
            read_yaml(tmp_path / name)


def test_all_that_is_wrong_is_told_and_what_was_found_is_cut_short():
    with pytest.raises(UserError) as refused:
        validated(ClassScheme, {"name": 5, "classes": "x" * 10_000, "rules": []}, "scheme.yaml")
    lines = str(refused.value).splitlines()
    assert len(lines) == 2 and all(line.startswith("scheme.yaml: ") and len(line) < 200 for line in lines)


class Payload:
    """Runs when it is unpickled without care."""

    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def saved(path, content):
    torch.save(content, path)


ODD_TENSORS = {
    "code": lambda path: saved(path, {"weights": Payload()}),
    "bare pickle": lambda path: path.write_bytes(pickle.dumps(Payload(), protocol=2)),
    "numpy": lambda path: saved(path, {"weights": np.zeros(3)}),
    "a list": lambda path: saved(path, [torch.zeros(3)]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("weights"),
    "folder": lambda path: path.mkdir(),
    "missing": lambda path: None,
}


@pytest.mark.parametrize("name", ODD_TENSORS)
def test_odd_tensors_are_refused_and_not_executed(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pt"
    ODD_TENSORS[name](path)
    with pytest.raises(UserError, match=r"weights.pt.* Delete it\.") as refused:
        load_tensors(path, "Delete it.")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500
    assert not (tmp_path / "executed").exists()


MACHINE = (
    OSError(errno.ESTALE, "Stale file handle"),
    OSError(errno.EIO, "Input/output error"),
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError("CUDA error: uncorrectable ECC error encountered"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes"),
)


@pytest.mark.parametrize("error", MACHINE, ids=str)
def test_what_the_machine_does_is_not_said_of_a_file(tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(type(error)) as raised:
        load_tensors(tmp_path / "checkpoint.pth", "Delete it.")
    assert raised.value is error and may_pass(error)


@pytest.mark.parametrize("error", [MACHINE[2], *MACHINE[4:]], ids=str)
def test_a_lack_of_memory_is_not_said_of_a_model(tmp_path, error):
    def build():
        raise error

    torch.save({"weights": {}}, tmp_path / "weights.pt")
    with pytest.raises(type(error)) as raised:
        load_network(build, tmp_path / "weights.pt")
    assert raised.value is error


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), NotADirectoryError(20, "Not a directory")])
def test_a_file_that_may_not_be_read_is_told(tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(UserError, match=r"weights.pt cannot be read .* Copy it"):
        load_tensors(tmp_path / "weights.pt", "Copy it again.")


@pytest.mark.parametrize("kept", [0.01, 0.5, 0.99])
def test_weights_that_were_cut_are_refused(tmp_path, kept):
    path = tmp_path / "weights.pt"
    torch.save({"weights": {"a": torch.zeros(1000)}}, path)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(UserError, match="cannot be read"):
        load_tensors(path, "Copy it again.")


def test_a_description_of_a_huge_network_takes_no_memory(tmp_path):
    small, huge = (Plan(spacing_mm=(1, 1, 1), patch=(32, 32, 32), features=(size, size)) for size in (4, 4096))
    torch.save({"weights": build_network(small, 2).state_dict()}, tmp_path / "weights.pt")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"weights.pt does not fit the plan"):
        load_network(lambda: build_network(huge, 2), tmp_path / "weights.pt")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB; the network has 10 GB


@pytest.mark.parametrize(
    "text",
    ["labels:\n  1: liver\n  1: spleen\n", "a: 1\nb: 2\na: 3\n", "{a: {b: 1, 'b': 2}}", "- x: &y {c: 1, c: 2}\n- *y\n"],
)
def test_a_key_that_stands_twice_is_no_choice_of_the_last(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match=r"a\.yaml: line \d: . stands twice; keep one"):
        read_yaml(tmp_path / "a.yaml")


def test_keys_that_only_look_alike_are_two(tmp_path):
    (tmp_path / "a.yaml").write_text("base: &b {1: x}\nlabels: {<<: *b, 2: y, '2': z, ~: n}\nagain: [*b, *b]\n")
    assert read_yaml(tmp_path / "a.yaml")["labels"] == {1: "x", 2: "y", "2": "z", None: "n"}


def test_a_name_that_stands_twice_in_json_is_told(tmp_path):
    (tmp_path / "model.json").write_text('{"class_ids": {"liver": 1, "spleen": 2, "liver": 3}}')
    with pytest.raises(UserError, match="liver stands twice"):
        read_json(tmp_path / "model.json")


@pytest.mark.parametrize(
    ("text", "read"),
    [("010: liver", 8), ("ids: {1: liver, 1:30: spleen}", 90), ("a: 1:30.5", 90.5), ("a: [no]", False)],
)
def test_what_yaml_reads_as_something_else_is_asked_about(tmp_path, text, read):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(
        UserError, match=rf"a\.yaml: line 1: .* would be read as {read}; write that, or put it in quotes"
    ):
        read_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "text", ["'010': a", "a: '1:30'", "0: a", "a: -12", "a: 1.50", "a: True", "a: 2026-01-02", "a: ~"]
)
def test_what_everybody_reads_alike_is_read(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    assert len(read_yaml(tmp_path / "a.yaml")) == 1


def test_halves_of_characters_and_the_mark_of_windows(tmp_path):
    path = tmp_path / "list.json"
    path.write_bytes(b'\xef\xbb\xbf{"image": "\\ud83d\\ude00"}')
    assert read_json(path) == {"image": "\N{GRINNING FACE}"}
    path.write_text('{"image": ["a", "\\ud83d"]}')
    with pytest.raises(UserError, match="not JSON"):
        read_json(path)
