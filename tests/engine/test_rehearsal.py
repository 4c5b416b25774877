"""Rehearsing: sizes take turns; several ranks measure the same, and stop together when one of them fails."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from vllm.config import CompilationConfig, CUDAGraphMode

from vllm_specvlm.engine import rehearsal
from vllm_specvlm.engine.peers import PeerFailedError
from vllm_specvlm.engine.rehearsal import graph_sizes, rehearse


class Meeting:
    """Two ranks in two threads: a vote or a broadcast goes through when both are at one of the same kind."""

    def __init__(self) -> None:
        self._barrier = threading.Barrier(2, timeout=5)
        self._brought: list[Any] = [None, None]

    def meet(self, rank: int, kind: str, value: Any) -> list[Any]:
        """What both brought."""
        self._brought[rank] = (kind, value)
        self._barrier.wait()
        brought = list(self._brought)
        self._barrier.wait()
        kinds = {kind for kind, _ in brought}
        assert len(kinds) == 1, f"the ranks parted: {kinds}"
        return [value for _, value in brought]


class Rank:
    """As `Peers`, of a rank in a meeting."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self._meeting, self._rank = meeting, rank

    def agree(self) -> None:
        if not all(self._meeting.meet(self._rank, "vote", True)):
            raise PeerFailedError("the other rank")

    def tell_failure(self) -> None:
        self._meeting.meet(self._rank, "vote", False)

    def share(self, values: list[Any]) -> list[Any]:
        first: list[Any] = self._meeting.meet(self._rank, "share", values)[0]
        return first


def both(runs: tuple[Callable[[int], object], Callable[[int], object]]) -> list[Any]:
    """What `rehearse` gives on each rank, or the error that it ended with there."""
    meeting = Meeting()
    found: list[Any] = [None, None]

    def work(number: int) -> None:
        peers: Any = Rank(meeting, number)
        try:
            found[number] = rehearse(runs[number], 64, peers, torch.device("cpu"))
        except PeerFailedError as error:
            found[number] = error
        except Exception as error:
            found[number] = error
            peers.tell_failure()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


def test_both_keep_the_first_ones_times() -> None:
    first, second = both((lambda rows: None, lambda rows: sum(range(1000 * rows))))
    assert first == second and set(first) >= {1, 16, 64} and max(first) <= 64


@pytest.mark.parametrize("last", range(22))
def test_one_that_fails_stops_both(last: int) -> None:
    """Whichever pass it is, the very last of a size included."""
    calls: list[int] = []

    def failing(rows: int) -> None:
        calls.append(rows)
        if len(calls) > last:
            raise MemoryError("injected")

    first, second = both((lambda rows: None, failing))
    assert isinstance(first, PeerFailedError) and isinstance(second, MemoryError)
    first, second = both((_reset(calls, failing), lambda rows: None))
    assert isinstance(first, MemoryError) and isinstance(second, PeerFailedError)


def _reset(calls: list[int], run: Callable[[int], object]) -> Callable[[int], object]:
    calls.clear()
    return run


class Alone:
    """As `Peers`, of a rank without others."""

    def agree(self) -> None: ...

    def share(self, values: list[Any]) -> list[Any]:
        return values


def rehearsed(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[int, float], float]) -> tuple[Any, list[int]]:
    """What comes of passes that take so long, by their rows and when they begin; and the rows of all passes."""
    now, passes = [0.0], []

    def run(rows: int) -> None:
        passes.append(rows)
        now[0] += seconds(rows, now[0])

    monkeypatch.setattr(rehearsal.time, "perf_counter", lambda: now[0])
    peers: Any = Alone()
    return rehearse(run, 4096, peers, torch.device("cpu")), passes


def test_a_busy_second_spoils_no_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def quiet(rows: int) -> float:
        return 0.010 + rows / 1000

    def busy(rows: int, now: float) -> float:
        return quiet(rows) * (3.0 if 0.2 < now < 1.2 else 1.0)

    found, passes = rehearsed(monkeypatch, busy)
    assert found == pytest.approx({rows: quiet(rows) for rows in found}) and len(found) >= 5
    assert passes[1:] == passes[1 : 1 + len(found)] * 3 and sorted(found) == sorted({*passes})


def test_no_row_is_dearer_among_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice as many rows are never dearer than two passes: that was a machine which was busy in all rounds."""
    times = {1: 0.010, 16: 0.012, 64: 0.020, 128: 0.030, 256: 0.120}
    found, _ = rehearsed(monkeypatch, lambda rows, now: times.get(rows, 0.011))
    assert found[256] == pytest.approx(0.060) and found[128] == pytest.approx(0.030)


def test_a_slow_machine_tries_three_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    found, passes = rehearsed(monkeypatch, lambda rows, now: 1.0)
    assert set(found) == {1, 16, 64} and len(passes) == 10


def test_passes_are_padded_where_graphs_are_captured() -> None:
    """vLLM's sizes, on a device that has graphs, unless they are off."""
    captured = CompilationConfig(cudagraph_mode=CUDAGraphMode.PIECEWISE, cudagraph_capture_sizes=[1, 2, 4, 8])
    off = CompilationConfig(cudagraph_mode=CUDAGraphMode.NONE, cudagraph_capture_sizes=[1, 2, 4, 8])
    assert graph_sizes(captured, torch.device("cuda")) == (1, 2, 4, 8)
    assert graph_sizes(captured, torch.device("cpu")) == ()
    assert graph_sizes(off, torch.device("cuda")) == ()
