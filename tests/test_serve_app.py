"""The application over a real socket: pages, operations, limits, origin and token, sessions and their end."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import threading
from urllib.parse import quote

import pytest
from serving import until, worker

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("websockets")

from streamchar.cli.main import main
from streamchar.client import connect
from streamchar.errors import ConfigError, InputError
from streamchar.serve import server
from streamchar.serve.guard import Bucket, Guard, is_loopback
from streamchar.serve.protocol import Idle, ProtocolError, Spoken, Stopped

TOKEN = "correct horse"


class House:
    """A server in a thread."""

    def __init__(self, folder, token: str = "", **limits) -> None:
        self.worker = worker(folder, **limits)
        self.bound = server.listen("127.0.0.1", 0)
        self.port = self.bound.getsockname()[1]
        self.server = server.make(self.worker, Guard(host="127.0.0.1", token=token), self.port)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.bound]}, daemon=True)
        self.thread.start()
        until(lambda: self.server.started)

    @property
    def link(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def get(self, path: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(line):
            line.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
            answer = line.getresponse()
            return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join(timeout=60)
        assert not self.thread.is_alive()
        self.worker.close()
        self.bound.close()


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    made = House(tmp_path_factory.mktemp("vault"))
    yield made
    made.close()


def test_pages_and_operations(house):
    for path, kind in (("/", "text/html"), ("/style.css", "text/css"), ("/app.js", "text/javascript")):
        status, body, headers = house.get(path)
        assert status == 200 and headers["content-type"].startswith(kind) and len(body) > 1000
        assert "default-src 'self'" in headers["content-security-policy"]
        assert b"http://" not in body and b"https://" not in body.replace(b'"https:"', b""), "no external resource"
    assert house.get("/healthz")[:2] == (200, b"ok")
    assert house.get("/readyz")[0] == 200
    about = json.loads(house.get("/v1/about")[1])
    assert about["model"] == "mock" and len(about["characters"]) == 12 and about["protocol"] == 1
    status, picture, _ = house.get("/v1/characters/3.png")
    assert status == 200 and picture.startswith(b"\x89PNG")
    assert house.get("/v1/characters/99999999.png")[0] == 400
    metrics = house.get("/metrics")[1].decode()
    histograms = ("chunk_seconds_bucket{", "first_frame_seconds_sum")
    for name in ("sessions ", "queue_depth ", "realtime_factor ", "tasks ", *histograms):
        assert f"streamchar_{name}" in metrics
    assert house.get("/../../etc/passwd")[0] == 404 and house.get("/v1/characters/..%2f..%2fx.png")[0] in (404, 422)


def test_log_lines_are_objects_with_fields():
    record = logging.LogRecord("streamchar.serve", logging.INFO, "", 0, "piece %(piece)d", ({"piece": 3},), None)
    record.fields = {"event": "chunk", "piece": 3}
    line = json.loads(server.JsonLines().format(record))
    assert line["message"] == "piece 3" and line["piece"] == 3 and line["event"] == "chunk" and line["level"] == "info"


def test_speech_is_a_download(house):
    status, body, headers = house.get("/v1/speech.mp4?text=" + quote("hello out there"))
    assert status == 200 and headers["content-type"] == "video/mp4" and body[4:8] == b"ftyp"
    status, body, _ = house.get("/v1/speech.mp4?text=...")
    assert status == 400 and json.loads(body)["code"] == "bad-input"
    status, body, _ = house.get("/v1/speech.mp4?text=" + "a" * 6000)
    assert status == 413 and json.loads(body)["code"] == "too-long"
    until(lambda: house.worker.sessions == 0)


def test_a_client_hears_every_word_and_the_file_ends(house):
    words, size, reason = [], 0, ""
    with connect(house.link) as session:
        session.start(text="hello there")
        for item in session:
            if isinstance(item, bytes):
                size += len(item)
            elif isinstance(item, Spoken):
                words.append(item.text)
                if len(words) == 2:
                    session.say("and more")
            elif isinstance(item, Idle) and len(words) == 4:
                session.stop()
            elif isinstance(item, Stopped):
                reason = item.reason
    assert words == ["hello", "there", "and", "more"] and size > 1000 and reason == "asked"


def test_bad_messages_are_answered_and_do_not_end_the_session(house):
    with connect(house.link) as session:
        session._socket.send("nonsense")
        session._socket.send(b"\x00\x01")
        session.say("too early")
        session.start(text="")
        codes = []
        for item in session:
            if not isinstance(item, bytes) and item.type == "error":
                codes.append(item.code)
            if not isinstance(item, bytes) and item.type == "ready":
                break
        assert codes == ["bad-message", "bad-message", "illegal"]
    until(lambda: house.worker.sessions == 0)


def test_a_vanished_client_frees_its_session_within_two_seconds(house):
    session = connect(house.link)
    session.start(text="hello " * 50)
    assert any(isinstance(item, bytes) for item in session)
    assert house.worker.sessions == 1
    session._socket.socket.close()
    assert until(lambda: house.worker.sessions == 0) < 2


def test_other_pages_may_not_use_it(house):
    assert house.get("/v1/about", Origin=f"http://127.0.0.1:{house.port}")[0] == 200
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}, {"Sec_Fetch_Site": "cross-site"}):
        status, body, _ = house.get("/v1/about", **headers)
        assert status == 403 and json.loads(body)["code"] == "forbidden"
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect as raw

    address = f"ws://127.0.0.1:{house.port}/v1/session"
    with pytest.raises(InvalidStatus, match="403"), raw(address, origin="http://evil.example", proxy=None):
        pass


def test_a_token_is_asked_for_everywhere(tmp_path):
    house = House(tmp_path, token=TOKEN, per_address=1)
    assert house.get("/")[0] == 200 and house.get("/healthz")[0] == 200
    for path in ("/v1/about", "/metrics", "/v1/speech.mp4?text=a", "/v1/characters/3.png"):
        assert house.get(path)[0] == 403
        assert house.get(path + ("&" if "?" in path else "?") + "token=wrong")[0] == 403
    assert house.get("/v1/about?token=" + quote(TOKEN))[0] == 200
    assert house.get("/v1/about", Authorization=f"Bearer {TOKEN}")[0] == 200
    with pytest.raises(InputError, match="403"):
        connect(house.link)
    with connect(house.link, token=TOKEN) as session:
        session.start()
        assert next(iter(session)).type == "ready"
        with connect(house.link + "?token=" + quote(TOKEN)) as second:
            second.start()
            refused = next(iter(second))
            assert refused.code == "busy" and "of your address" in refused.message
    house.close()


def test_a_server_for_others_needs_a_token():
    assert is_loopback("127.0.0.1") and is_loopback("[::1]") and not is_loopback("0.0.0.0") and not is_loopback("a.b")
    with pytest.raises(ConfigError, match="give a --token"):
        Guard(host="0.0.0.0")
    with pytest.raises(ConfigError, match="at least 8"):
        Guard(host="0.0.0.0", token="short")


def test_messages_are_counted():
    now = [0.0]
    bucket = Bucket(5, lambda: now[0])
    for _ in range(10):
        bucket.take()
    with pytest.raises(ProtocolError) as caught:
        bucket.take()
    assert caught.value.code == "rate"
    now[0] = 0.2
    bucket.take()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0", "--mock"], "give a --token"),
        (["--port", "99999"], "--port must be from 0 to 65535"),
        (["--max-sessions", "0"], "must be at least 1"),
        (["--mock", "--mock-speed", "0"], "--mock-speed must be"),
    ],
)
def test_bad_options_are_one_line(options, message, capsys):
    assert main(["serve", *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_taken_port_is_one_line(house, capsys):
    assert main(["serve", "--mock", "--port", str(house.port)]) == 2
    assert "cannot listen on 127.0.0.1" in capsys.readouterr().err
