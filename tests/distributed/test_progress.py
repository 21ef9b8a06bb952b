import io

import jax
import pytest

from ssppo_jax.distributed import progress


class Screen(io.StringIO):
    def __init__(self, tty):
        super().__init__()
        self.isatty = lambda: tty


@pytest.fixture
def stderr(monkeypatch):
    def use(tty):
        screen = Screen(tty)
        monkeypatch.setattr(progress.sys, "stderr", screen)
        return screen

    monkeypatch.delenv("SSPPO_PROGRESS", raising=False)
    return use


def test_off_a_terminal_it_prints_whole_lines_with_count_and_rate(stderr, monkeypatch):
    log = stderr(tty=False)
    monkeypatch.setattr(progress, "SECONDS_PER_LINE", 0.0)
    assert list(progress.bar(range(3), what="judge", unit="pairs")) == [0, 1, 2]
    lines = log.getvalue().split("\n")
    assert lines[-1] == ""
    assert lines[-2].startswith("judge: 3/3 pairs in 00:00") and "pairs/s" in lines[-2]
    assert [line.split(" ")[1] for line in lines[:4]] == ["0/3", "1/3", "2/3", "3/3"]
    assert "\r" not in log.getvalue() and all(line == line.strip() for line in lines)


def test_off_a_terminal_it_does_not_print_a_line_per_unit(stderr):
    log = stderr(tty=False)
    with progress.bar(1000, what="generate", unit="samples") as bar:
        for _ in range(1000):
            bar.update(1)
    assert [line.split(" ")[1] for line in log.getvalue().splitlines()] == ["0/1000", "1000/1000"]


def test_an_unknown_total_is_counted_without_one(stderr):
    log = stderr(tty=False)
    assert len(list(progress.bar((x for x in range(3)), what="read", unit="rows"))) == 3
    assert log.getvalue().splitlines()[-1].startswith("read: 3 rows in 00:00")


def test_on_a_terminal_it_is_a_bar_that_redraws_itself(stderr):
    screen = stderr(tty=True)
    list(progress.bar(range(3), what="train", unit="steps"))
    assert "\rtrain: 100%" in screen.getvalue() and "steps/s" in screen.getvalue()


def test_in_a_notebook_it_redraws_itself_and_leaves_nothing(stderr, monkeypatch):
    screen = stderr(tty=False)
    monkeypatch.setattr(Screen, "__module__", "ipykernel.iostream")
    list(progress.bar(range(3), what="train", unit="steps"))
    shown = screen.getvalue()
    assert "\rtrain: " in shown and "\n" not in shown
    assert shown.endswith("\r") and not shown.rstrip("\r").rsplit("\r", 1)[-1].strip()


@pytest.mark.parametrize("tty", [True, False])
def test_it_is_silent_when_switched_off_and_on_other_processes(stderr, monkeypatch, tty):
    screen = stderr(tty)
    monkeypatch.setenv("SSPPO_PROGRESS", "off")
    assert list(progress.bar(range(3), what="train", unit="steps")) == [0, 1, 2]
    monkeypatch.delenv("SSPPO_PROGRESS")
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert list(progress.bar(range(3), what="train", unit="steps")) == [0, 1, 2]
    assert screen.getvalue() == ""


def test_it_does_not_start_the_backend_before_the_processes_know_each_other(stderr, monkeypatch):
    stderr(tty=True)
    monkeypatch.setattr(jax, "process_index", lambda: pytest.fail("this starts the backend"))
    list(progress.bar(range(3), what="download", unit="files"))


def test_no_thread_is_left_behind(stderr):
    stderr(tty=True)
    list(progress.bar(range(3), what="train", unit="steps"))
    assert progress._Bar.monitor is None
