"""What a worker job asks a scheduler for."""

from dataclasses import replace

import pytest
from esmflow.allocation import memory_mb, minutes
from esmflow.heartbeat import Heartbeat

ENDED = Heartbeat("job", state="dead", started=0, updated=300)


def test_a_first_attempt_asks_for_five_minutes_more_than_twice_the_time_and_for_the_expected_memory() -> None:
    assert minutes(10.2, None, None) == 26
    assert memory_mb(4000, None, None) == 4000


@pytest.mark.parametrize("last", [None, ENDED, replace(ENDED, state="busy"), replace(ENDED, process_restarts=1)])
def test_an_attempt_after_one_that_had_time_left_asks_for_no_more_of_it(last: Heartbeat | None) -> None:
    assert minutes(10, last, None) == 25


@pytest.mark.parametrize("state", ["dead", "busy"])
def test_an_attempt_after_one_that_took_all_its_time_asks_for_double(state: str) -> None:
    last = replace(ENDED, state=state, updated=25 * 60 - 20)
    assert minutes(10, last, None) == 50
    assert minutes(10, replace(last, updated=50 * 60), None) == 50


def test_an_attempt_after_one_that_ended_by_itself_asks_for_no_more_memory() -> None:
    assert memory_mb(4000, ENDED, None) == 4000


@pytest.mark.parametrize("last", [replace(ENDED, state="busy"), replace(ENDED, process_restarts=1)])
def test_an_attempt_after_one_that_was_killed_asks_for_double_the_memory(last: Heartbeat) -> None:
    assert memory_mb(4000, last, None) == 8000


@pytest.mark.parametrize("last", [None, replace(ENDED, state="busy", updated=1e9)])
def test_no_attempt_asks_for_more_than_the_config_allows(last: Heartbeat | None) -> None:
    assert minutes(100, last, 60) == 60
    assert memory_mb(4000, last, 3000) == 3000
    assert minutes(20, last, 60) == (60 if last else 45)
