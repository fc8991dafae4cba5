"""Nothing is written over what is read, nor over what others wrote: every command refuses before it begins."""

import numpy as np
import pytest

from labelloop.base import outputs
from labelloop.base.errors import UserError
from labelloop.base.files import sha256
from labelloop.base.outputs import claim, claims, is_table, refuse_folder_of_inputs, refuse_overwriting, release
from labelloop.base.tables import write_table
from labelloop.cli import main as cli
from labelloop.images.volume import Geometry, write

GRID = Geometry((8, 8, 6), (4.0, 4.0, 5.0))


@pytest.fixture
def folders(tmp_path):
    """Images, label maps, and a table of each kind that somebody else made."""
    labels = np.zeros(GRID.shape, np.uint8)
    labels[1:5, 2:6, 1:4] = 1
    for case in "ab":
        write(tmp_path / "images" / f"{case}.nii.gz", labels.astype(np.int16) * 40, GRID)
        write(tmp_path / "labels" / f"{case}.nii.gz", labels, GRID)
    (tmp_path / "theirs.csv").write_text("my,own,table\n1,2,3\n")
    return tmp_path


def test_outputs_are_no_inputs_under_whatever_name(tmp_path):
    file = tmp_path / "a" / "x.csv"
    file.parent.mkdir()
    file.write_text("x")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "link.csv").symlink_to(file)
    for output, source in ((file, file), (tmp_path / "b" / "x.csv", file), (file, tmp_path / "link.csv"),
                           (tmp_path / "a" / ".." / "a" / "x.csv", file)):  # fmt: skip
        with pytest.raises(UserError, match="it is read"):
            refuse_overwriting([output], [source], lambda _: True)
    refuse_overwriting([tmp_path / "a" / "y.csv"], [file])


def touched(path):
    path.touch()
    return path


def test_names_that_differ_in_capitals_alone_are_one_on_some_disks(tmp_path, monkeypatch):
    files = [tmp_path / "new" / name for name in ("P1.nii.gz", "p2.nii.gz", "p1.nii.gz")]
    refuse_overwriting(files, [])
    with monkeypatch.context() as patch:
        patch.setattr(outputs, "_ignores_capitals", lambda folder: True)
        with pytest.raises(UserError, match=r"p1.nii.gz: differs from \S*P1.nii.gz in capitals alone"):
            refuse_overwriting(files, [])
    assert not outputs._ignores_capitals(tmp_path / "new") and not list(tmp_path.iterdir())


def test_what_stands_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "dead").symlink_to("/gone")
    ways = {"is a folder": ".", "file: is no folder": "file/x/y.csv", "did not write it": "file"}
    ways |= {"dead: is a dead link, to /gone; remove": "dead", "/dead: is a dead link, to": "dead/x/y.csv"}
    for words, name in ways.items():
        output = tmp_path / name
        with pytest.raises(UserError, match=words):
            refuse_overwriting([output], [])
    with pytest.raises(UserError, match="named twice"):
        refuse_overwriting([tmp_path / "y", tmp_path / "y"], [])
    with pytest.raises(UserError, match="and 5 more"):
        refuse_overwriting([touched(tmp_path / str(i)) for i in range(10)], [])
    with pytest.raises(UserError) as said:
        refuse_overwriting([tmp_path / "dead" / str(i) for i in range(10)], [])
    assert len(str(said.value).splitlines()) == 1


def test_own_tables_may_be_written_anew(tmp_path):
    write_table(tmp_path / "scores.csv", [], "scores")
    refuse_overwriting([tmp_path / "scores.csv"], [], is_table("scores"))
    with pytest.raises(UserError):
        refuse_overwriting([tmp_path / "scores.csv"], [], is_table("verdicts"))


def test_files_of_an_output_folder_are_told_from_those_of_others(tmp_path):
    assert claims(tmp_path) == set()
    claim(tmp_path, ["a.nii.gz"])
    claim(tmp_path, ["b.nii.gz"])
    assert claims(tmp_path) == {tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"}
    (tmp_path / "b.nii.gz").touch()
    release(tmp_path)  # `a` was not written: what stands there later is somebody else's
    assert claims(tmp_path) == {tmp_path / "b.nii.gz"}


def test_the_folder_of_the_inputs_is_known_under_every_name(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for out in ("in", "link", "in/../in"):
        with pytest.raises(UserError, match="holds the inputs"):
            refuse_folder_of_inputs(tmp_path / out, [tmp_path / "in"])
    refuse_folder_of_inputs(tmp_path / "in" / "labels", [tmp_path / "in"])


COMMANDS = {
    "cases": ("cases --images {0}/images --labels {0}/labels --dataset flare22 --overwrite --out {1}"),
    "evaluate": "evaluate --truth {0}/labels --prediction {0}/labels --out {1}",
    "lesions": "evaluate --truth {0}/labels --prediction {0}/labels --out {0}/fine.csv --lesions {1}",
    "check": "check --labels {0}/labels --images {0}/images --out {1}",
    "fit": "check --labels {0}/labels --fit {1}",
    "calibrate": "calibrate --scores {0}/s.csv --disagreement {0}/d.csv --target-dsc 0.8 --out {1}",
    "phantom": "phantom {2}",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_keeps_what_it_reads_and_what_others_wrote(folders, command, capsys):
    write_table(folders / "s.csv", [], "scores")
    write_table(folders / "d.csv", [], "disagreement")
    (folders / "phantom").mkdir()
    (folders / "phantom" / "cases.csv").write_text("case,image\n")
    read = folders / ("s.csv" if command == "calibrate" else "labels/a.nii.gz")
    files = [path for path in sorted(folders.rglob("*")) if path.is_file()]
    before = [sha256(path) for path in files]
    for out in (read, folders / "theirs.csv", folders / "labels"):
        arguments = COMMANDS[command].format(folders, out, folders / "phantom").split()
        assert cli.main(arguments) == 2
        assert capsys.readouterr().err.startswith("labelloop: ")
    assert [sha256(path) for path in files] == before
    assert not (folders / "fine.csv").exists()
