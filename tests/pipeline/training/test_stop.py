"""Durations, queues' limits, and what a request to stop does."""

import os
import signal
import threading
import time

import pytest

from pipeline.training.stop import EvaluationCut, StopRequest, parse_duration, queue_deadline
from store_schema.errors import UsageError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3600", 3600),
        ("0.5", 0.5),
        ("90m", 5400),
        ("24h", 86400),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("2d", 172800),
        ("45s", 45),
        ("90:00", 5400),
        ("23:30:00", 84600),
        ("1-00:00:10", 86410),
    ],
)
def test_durations_as_people_and_queues_write_them(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-5", "0", "5x", "1h30", "h"])
def test_what_is_no_duration_is_refused_with_examples(text: str) -> None:
    with pytest.raises(UsageError, match="time limit"):
        parse_duration(text)


def test_the_queues_own_limits_are_honoured(caplog: pytest.LogCaptureFixture) -> None:
    assert queue_deadline({}, 100.0) is None
    assert queue_deadline({"SLURM_JOB_END_TIME": "1700000000"}, 100.0) == 1700000000
    assert queue_deadline({"PBS_WALLTIME": "3600"}, 100.0) == 3700
    assert queue_deadline({"PBS_WALLTIME": "tomorrow"}, 100.0) is None
    assert "not a number of seconds" in caplog.text


def test_a_time_limit_keeps_time_free_for_saving(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = StopRequest(time_limit_seconds=100.0)
    assert stop.requested() is None
    assert stop.requested(next_seconds=99.0) == "stopped"
    stop = StopRequest(time_limit_seconds=100.0)
    stop.save_seconds = 51.0
    assert stop.requested() == "stopped"
    assert stop.reason == "the time limit"
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(time.time() + 1))
    assert StopRequest(time_limit_seconds=100.0).requested() == "stopped"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_asks_for_a_stop_and_the_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.requested() is None
        os.kill(os.getpid(), number)
        assert stop.requested() == "stopped"
        assert stop.reason == number.name
    assert signal.getsignal(number) is before


def test_the_second_interrupt_ends_at_once() -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested() == "interrupted"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_cuts_an_evaluation_short() -> None:
    with StopRequest() as stop:
        started = time.monotonic()
        timer = threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGTERM])
        timer.start()
        with pytest.raises(EvaluationCut), stop.cutting_evaluation():
            time.sleep(20)
        timer.join()
        assert time.monotonic() - started < 10
        assert stop.requested() == "stopped"


def test_the_time_limit_cuts_an_evaluation_short() -> None:
    started = time.monotonic()
    with StopRequest(time_limit_seconds=2.2) as stop:
        with pytest.raises(EvaluationCut), stop.cutting_evaluation():
            time.sleep(20)
        assert (stop.requested(), stop.reason) == ("stopped", "the time limit")
    assert time.monotonic() - started < 10


def test_in_another_thread_only_the_time_limit_is_heard() -> None:
    heard: list[object] = []

    def listen() -> None:
        with StopRequest(time_limit_seconds=0.1) as stop:
            heard.append(stop.requested())

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert heard == ["stopped"]
