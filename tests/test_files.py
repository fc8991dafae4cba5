"""A file is written whole or not at all, whatever an earlier attempt left behind."""

import pytest

from labelloop.files import atomic, digest, link, sha256, write_text


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path):
    path = tmp_path / "table.csv"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]


def test_what_a_killed_write_left_is_not_gone_on_with(tmp_path):
    path = tmp_path / "array.b2nd"
    left = tmp_path / ".tmp-array.b2nd" / "array.b2nd"
    left.parent.mkdir()
    left.write_text("half a file of a killed job")
    with atomic(path) as temporary:
        assert not temporary.exists()
        temporary.write_text("whole")
    assert path.read_text() == "whole" and not left.parent.exists()


def test_a_link_has_the_content_and_replaces_what_was_there(tmp_path):
    write_text(tmp_path / "source", "new")
    write_text(tmp_path / "target", "old")
    link(tmp_path / "source", tmp_path / "target")
    assert sha256(tmp_path / "target") == sha256(tmp_path / "source")


def test_a_digest_does_not_depend_on_the_order_of_keys():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})
