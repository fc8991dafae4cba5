"""Signs of life: what is said of work in progress."""

import logging
import time

import pytest

from labelloop.base import heartbeat
from labelloop.base.heartbeat import counted, duration, finished, hushed, speaking, status


def test_the_whole_comes_before_its_parts():
    with counted("epoch", 5, done=1) as epochs:
        with counted("update", 80) as updates:
            for _ in range(30):
                updates.advance()
            assert status().startswith("epoch 2 of 5, update 31 of 80, ")
        epochs.advance()
        assert status().startswith("epoch 3 of 5, ")
    assert status() == ""


def test_time_to_go_follows_from_the_parts_done(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with counted("epoch", 4, done=2) as epochs:  # two were done before, which took none of this time
        assert "to go" not in status()
        with counted("update", 10) as updates:
            now[0] += 30
            for _ in range(5):
                updates.advance()
            assert status() == "epoch 3 of 4, update 6 of 10, 2 min to go"
            assert heartbeat._seconds_to_go(heartbeat._running) == pytest.approx(90)
        epochs.advance()


def test_pieces_are_counted_by_name_and_never_beyond_their_number():
    with counted("case", 2) as cases:
        finished("window")
        assert cases.done == 0
        for _ in range(3):
            finished("case")
        assert cases.done == 2 and status().startswith("case 2 of 2")


def test_an_error_leaves_nothing_counted():
    with pytest.raises(ValueError), counted("case", 2), counted("plane", 9):
        raise ValueError
    assert status() == ""


def test_a_line_is_said_while_nothing_else_happens(caplog):
    caplog.set_level(logging.INFO)
    with speaking("train teacher", every_s=0.02), counted("epoch", 3):
        time.sleep(0.3)
    said = [r.getMessage() for r in caplog.records]
    assert said and set(said) == {"train teacher: epoch 1 of 3"}
    caplog.clear()
    time.sleep(0.1)
    assert not caplog.records


@pytest.mark.parametrize(
    ("seconds", "words"), [(5.4, "5 s"), (61, "2 min"), (3600, "1 h 00 min"), (7501, "2 h 06 min")]
)
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words


def test_nothing_is_said_while_a_person_is_waited_for(caplog):
    caplog.set_level(logging.INFO)
    with speaking("review", every_s=0.02):
        with hushed():
            time.sleep(0.1)
        assert not caplog.records
        time.sleep(0.2)
    assert caplog.records
