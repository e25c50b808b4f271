"""Two engines of Ray Serve on one machine: visitors spread, one engine dies and its visitor goes on with the other."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
import urllib.request
from types import SimpleNamespace

import pytest
from serving import until

from streamchar.cli.main import main
from streamchar.client import Idle, Queued, Ready, Spoken, Stopped, connect
from streamchar.errors import InputError
from streamchar.serve.cluster import Plan, replicas_wanted, wanted
from streamchar.serve.floor import Limits
from streamchar.serve.guard import Guard
from streamchar.serve.studios import Choice

WORDS = 40
TEXT = " ".join(f"word{i}" for i in range(WORDS))


def test_replicas_follow_admission():
    assert wanted(0, 8) == 1
    assert wanted(1, 1) == 2, "a place stays free while a new engine would warm up"
    assert (wanted(6, 8), wanted(7, 8), wanted(13, 8)) == (1, 2, 3)
    reported = {"sessions": {"a": 6.0, "b": 5.0}, "queue_depth": {"a": 0.0, "b": 2.0}, "capacity": {"a": 8.0, "b": 8.0}}
    assert replicas_wanted(SimpleNamespace(aggregated_metrics=reported, target_num_replicas=2))[0] == 3
    assert replicas_wanted(SimpleNamespace(aggregated_metrics={}, target_num_replicas=2))[0] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--replicas", "0"], "--replicas must be from 1 on"),
        (["--replicas", "3", "--max-replicas", "2"], "got 3 and 2"),
        (["--cpus", "0"], "more than 0 CPUs"),
        (["--steps", "0"], "--steps must be from 1"),
        (["--guidance", "-1"], "--guidance must be from 0"),
    ],
)
def test_bad_options_are_one_line(options, message, capsys):
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    assert main(["serve", "--ray", "--mock", *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_cluster_needs_ray(capsys, monkeypatch, tmp_path):
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    assert main(["serve", "--ray", "--mock", "--port", "0", "--snapshots", str(tmp_path)]) == 2
    assert "install streamchar[cluster]" in capsys.readouterr().err


def test_a_plan_is_checked():
    with pytest.raises(InputError, match="got 2 and 1"):
        Plan(guard=Guard(host="127.0.0.1"), snapshots=None, smallest=2, largest=1)  # type: ignore[arg-type]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.skipif(not os.environ.get("STREAMCHAR_LONG"), reason="STREAMCHAR_LONG is not set")
@pytest.mark.timeout(1500)
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_two_engines_share_visitors_and_a_visitor_survives_one(tmp_path):
    pytest.importorskip("ray")
    pytest.importorskip("fastapi")
    from streamchar.serve.cluster import Cluster

    plan = Plan(
        guard=Guard(host="127.0.0.1"), snapshots=tmp_path, choice=Choice(mock=True, speed=20, size=32),
        limits=Limits(sessions=1, reports=True), smallest=2, largest=2, cpus=0.5,
    )  # fmt: skip
    port = free_port()
    cluster = Cluster(plan, port)
    link = f"http://127.0.0.1:{port}/"
    try:
        first = {int(each["pid"]) for each in cluster.everyone("figures")}
        assert len(first) == 2, "two processes"
        with urllib.request.urlopen(f"{link}readyz", timeout=60) as answer:
            assert answer.status == 200
        with contextlib.ExitStack() as visitors:
            one = visitors.enter_context(connect(link))
            one.start(text=TEXT)
            seen = hear(one, until_word=0)
            two = visitors.enter_context(connect(link))
            two.start(text="hello there")
            until(lambda: sorted(each["sessions"] for each in cluster.everyone("figures")) == [1, 1])  # spread
            assert hear(two, until_word=1), "each engine has room for one: they play side by side"
            seen |= hear(one, until_word=3 - len(seen))
            with connect(link) as third:
                third.start(text="hello")
                assert isinstance(next(iter(third)), Queued)
            two.stop()
            mine = owner(cluster, two)
            os.kill(mine, signal.SIGKILL)
            for item in one:  # until the connection breaks
                if isinstance(item, Spoken):
                    seen[item.index] = item
            name, frames = one.session, one.frames
        again = restored(link, name, frames)
        assert sorted({**seen, **again}) == list(range(WORDS)), "no word is lost"
        assert all(again[index] == seen[index] for index in again.keys() & seen.keys()), "and none is another"
        with connect(link, timeout=60) as last:
            last.start(text=TEXT)
            hear(last, until_word=1)
            cluster.everyone("drain")
            assert [item.reason for item in last if isinstance(item, Stopped)] == ["restart"]
    finally:
        cluster.close()


def hear(session, until_word: int) -> dict[int, Spoken]:
    seen: dict[int, Spoken] = {}
    for item in session:
        if isinstance(item, Spoken):
            seen[item.index] = item
        if len(seen) > until_word:
            return seen
    raise AssertionError("the session ended early")


def owner(cluster, stopped) -> int:
    """The engine that still plays, once the other one's session has ended."""
    assert any(isinstance(item, Stopped) for item in stopped)
    playing: list[int] = []

    def one_left() -> bool:
        playing[:] = [int(each["pid"]) for each in cluster.everyone("figures") if each["sessions"]]
        return len(playing) == 1

    until(one_left)
    return playing[0]


def restored(link: str, name: str, frames: int) -> dict[int, Spoken]:
    """What is spoken after the connection was lost, to the end."""
    limit = time.monotonic() + 120
    while time.monotonic() < limit:
        again: dict[int, Spoken] = {}
        try:
            with connect(link, timeout=60) as session:
                session.restore(name, frames)
                for item in session:
                    if isinstance(item, Ready):
                        assert item.resumed and item.session == name
                    elif isinstance(item, Spoken):
                        again[item.index] = item
                    elif isinstance(item, Idle):
                        return again
        except InputError:  # the proxy has not noticed yet that the engine is gone
            time.sleep(0.5)
    raise AssertionError("it could not be restored")
