import contextlib
import errno
import signal

import pytest

from tracker import console


def test_progress_passes_everything_on_and_is_silent_where_it_is_short(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(console.progress(iter("abc"), 3)) == ["a", "b", "c"]
    with console.meter("smoothing", "identities") as show:
        show(1, 2)
        show(2, 2)
    assert capfd.readouterr() == ("", "")


def test_progress_in_lines(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_LOG_SECONDS", 0.0)
    assert list(console.progress(iter("ab"), 12, done=10)) == ["a", "b"]
    assert list(console.progress(iter("c"), None, doing="drawing")) == ["c"]
    lines = capfd.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["frame 11/12", "frame 12/12", "drawing 1/?"]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\nlines"), "two lines"),
        (OSError(errno.ENOSPC, "No space left on device", "a.txt"), "a.txt: no space left on device"),
        (OSError("no number"), "no number"),
        (RuntimeError("CUDA"), "RuntimeError: CUDA (--debug shows where)"),
        (ValueError(), "ValueError:  (--debug shows where)"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_errors_in_one_line(error: BaseException, line: str) -> None:
    assert console.one_line(error) == line


def test_exit_status(capfd: pytest.CaptureFixture[str]) -> None:
    assert console.fail(ValueError("bad"), debug=False) == 1
    assert console.fail(KeyboardInterrupt(signal.SIGTERM), debug=False, reach=" after frame 3") == 143
    assert console.fail(KeyboardInterrupt(), debug=False) == 130
    assert capfd.readouterr().err == "error: bad\ninterrupted after frame 3\ninterrupted\n"


def test_only_the_first_signal_interrupts() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with console.stop_signals():
        with pytest.raises(KeyboardInterrupt) as caught:
            signal.raise_signal(signal.SIGTERM)
        assert caught.value.args == (signal.SIGTERM,)
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_library_may_take_an_interruption_for_another_error(capfd: pytest.CaptureFixture[str]) -> None:
    with console.stop_signals():
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            error = ValueError("what did the user do?")
        assert console.fail(error, debug=False, reach=" after frame 3") == 143
    assert console.fail(error, debug=False) == 1
    assert capfd.readouterr().err == "interrupted after frame 3\nerror: what did the user do?\n"


def test_a_signal_in_a_nested_block(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with console.stop_signals():
        with console.stop_signals():
            pass
        with pytest.raises(KeyboardInterrupt), console.stop_signals():
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # a later one waits here, too
        with console.stop_signals():
            pass
        assert console.fail(ValueError("what did the user do?"), debug=False) == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert console.fail(ValueError("bad"), debug=False) == 1
    assert capfd.readouterr().err == "interrupted\nerror: bad\n"


def test_counted() -> None:
    assert [console.counted(number, "frames") for number in (0, 1, 2)] == ["0 frames", "1 frame", "2 frames"]


def test_a_signal_waits_for_the_end_of_a_block() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt) as caught, console.stop_signals():
        with console.hold_signals():
            signal.raise_signal(signal.SIGTERM)
            done.append("frame")
        done.append("never")
    assert done == ["frame"]
    assert caught.value.args == (signal.SIGTERM,)
    with console.hold_signals():  # nothing is left over
        pass


def test_an_error_in_the_block_is_not_hidden_by_a_signal() -> None:
    with pytest.raises(OSError, match="full"), console.stop_signals(), console.hold_signals():
        signal.raise_signal(signal.SIGINT)
        raise OSError(errno.ENOSPC, "full")
    with console.hold_signals():
        pass


def test_a_signal_that_a_library_swallows_is_raised_again() -> None:
    with console.stop_signals():
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt) as caught, console.hold_signals():
            pytest.fail("nothing is begun any more")
        assert caught.value.args == (signal.SIGTERM,)
    with console.hold_signals():
        pass


def test_handlers_of_a_library_that_starts_while_signals_wait(capfd: pytest.CaptureFixture[str]) -> None:
    inherited = []
    with console.stop_signals():
        with pytest.raises(KeyboardInterrupt) as caught, contextlib.ExitStack() as stack, console.hold_signals():
            signal.raise_signal(signal.SIGINT)
            inherited.append(signal.getsignal(signal.SIGINT))
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            stack.enter_context(console.stop_signals())
        assert caught.value.args == (signal.SIGINT,)
        signal.raise_signal(signal.SIGTERM)  # is ignored
        assert console.fail(ValueError("what did the user do?"), debug=False) == 130
    assert inherited != [signal.SIG_IGN]  # which processes started then would keep
    assert capfd.readouterr().err == "interrupted\n"
