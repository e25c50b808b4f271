"""Load of the live server: visitors that connect, speak, stall and vanish at random, and two that just stay.

    python scripts/load_serve.py --visitors 200 --seconds 60

starts a server on the mock in a process of its own (or uses `--link`), and prints one JSON object: what the server's
process held before, at most, and after; what was refused; and how those two fared, one that only listens and one that
is spoken to all the time. Exit code 1 if anything leaked, failed, or if either ran dry. `cpu_wait_seconds` tells how
long the server's threads had to wait for a CPU: with much of it the figures are those of the machine's other work.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

HELD = ("tasks", "threads", "open_files", "resident_bytes", "sessions", "queue_depth", "parked", "outbox_pieces")
TALK = "so many words that they last for a good while " * 12
GROWTH = {"tasks": 2, "threads": 8, "open_files": 4, "resident_bytes": 150 << 20}
"""What may be more at the end: the loop's pool of threads stays, and so do warm caches of decoders and allocators."""


def gauges(link: str) -> dict[str, float]:
    """The figures of `/metrics`."""
    with urllib.request.urlopen(f"{link}metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    pairs = [line.removeprefix("streamchar_").split() for line in lines if not line.startswith("#")]
    return {name: float(value) for name, value in pairs}


class Visitor:
    """One who comes, speaks, stalls and leaves without a word, or politely."""

    def __init__(self, link: str, seed: int, seconds: float, seen: Counter[str]) -> None:
        self._address = link.replace("http", "ws", 1) + "v1/session"
        self._draw, self._seconds, self._seen = random.Random(seed), seconds, seen

    async def visit(self) -> None:
        from websockets.asyncio.client import connect
        from websockets.exceptions import WebSocketException

        draw = self._draw
        await asyncio.sleep(draw.uniform(0, 0.6 * self._seconds))
        until = time.monotonic() + draw.uniform(0.05, 0.4) * self._seconds
        try:
            async with connect(self._address, max_size=None, open_timeout=60, proxy=None, ping_interval=None) as socket:
                await socket.send(json.dumps({"type": "start", "text": "hello there " * draw.randint(0, 8)}))
                while time.monotonic() < until:
                    await self._step(socket)
                if draw.random() < 0.5:
                    self._seen["vanished"] += 1
                    socket.transport.abort()
        except (OSError, WebSocketException) as error:
            self._seen[type(error).__name__] += 1

    async def _step(self, socket: Any) -> None:
        draw = self._draw
        with contextlib.suppress(asyncio.TimeoutError):
            item = await asyncio.wait_for(socket.recv(), 0.5)
            if isinstance(item, bytes):
                self._seen["pieces"] += 1
            else:
                event = json.loads(item)
                self._seen[event["type"]] += 1
                if event["type"] == "error":
                    self._seen[f"error {event['code']}"] += 1
        chance = draw.random()
        if chance < 0.05:
            await socket.send(json.dumps({"type": "say", "text": "some more words"}))
        elif chance < 0.08:
            await socket.send(json.dumps({"type": draw.choice(["interrupt", "pause", "resume", "snapshot"])}))
        elif chance < 0.11:
            self._seen["stalls"] += 1
            await asyncio.sleep(draw.uniform(0, 4.0))


class Witness:
    """A visitor that was there first and behaves: what a player of its stream would have had to wait. One listens, the
    other is spoken to all the time."""

    def __init__(self, link: str, *, talks: bool) -> None:
        self._address, self._talks = link.replace("http", "ws", 1) + "v1/session", talks
        self.dry, self.longest, self.watched, self.frames, self._player = 0, 0.0, 0.0, 0, 0.0
        self.playing = asyncio.Event()

    async def listen(self) -> None:
        from websockets.asyncio.client import connect

        async with connect(self._address, max_size=None, open_timeout=60, proxy=None, ping_interval=None) as socket:
            await socket.send(json.dumps({"type": "start", "text": TALK if self._talks else ""}))
            playing = asyncio.create_task(self._play(socket))
            try:
                coming = unsaid = 0
                async for item in socket:
                    if isinstance(item, bytes):
                        self.frames += coming
                        self.playing.set()
                        continue
                    event = json.loads(item)
                    coming = event["count"] if event["type"] == "chunk" else coming
                    unsaid += len(event["words"]) if event["type"] == "said" else -(event["type"] == "spoken")
                    if self._talks and event["type"] == "spoken" and unsaid == 40:
                        await socket.send(json.dumps({"type": "say", "text": TALK}))
            finally:
                playing.cancel()

    async def _play(self, socket: Any) -> None:
        """Begin half a second after the first piece; stand still while there is nothing; report on a timer."""
        await self.playing.wait()
        await asyncio.sleep(0.5)
        before = told = time.monotonic()
        waited = 0.0
        while True:
            await asyncio.sleep(0.05)
            now = time.monotonic()
            self._player += now - before
            self.watched += now - before
            lack = self._player - self.frames / 24
            if lack > 0:
                self.dry += waited == 0
                waited, self._player = waited + lack, self.frames / 24
                self.longest = max(self.longest, waited)
            else:
                waited = 0.0
            before = now
            if now - told > 0.5:
                told = now
                await socket.send(json.dumps({"type": "playhead", "at": self._player}))

    @property
    def figures(self) -> dict[str, Any]:
        seconds, played = round(self.watched, 1), round(self._player, 1)
        return {"seconds": seconds, "played": played, "dry": self.dry, "longest": round(self.longest, 3)}


async def witness(link: str) -> None:
    """Both witnesses, until the input ends: a line when they play, and one with their figures. In a process of their
    own, or they would measure how busy the visitors' is."""
    both = {"quiet": Witness(link, talks=False), "talking": Witness(link, talks=True)}
    tasks = [asyncio.create_task(one.listen()) for one in both.values()]
    await asyncio.wait_for(asyncio.gather(*(one.playing.wait() for one in both.values())), 120)
    print("playing", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    lost = [task for task in tasks if task.done()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    if lost:
        raise ConnectionError("the server has ended a witness's session")
    print(json.dumps({name: one.figures for name, one in both.items()}), flush=True)


async def load(link: str, visitors: int, seconds: float) -> dict[str, Any]:
    """Run it; the figures."""
    seen: Counter[str] = Counter()
    while (await asyncio.to_thread(gauges, link))["realtime_factor"] == 0:  # not warmed yet
        await asyncio.sleep(0.2)
    before = await asyncio.to_thread(gauges, link)
    command = [sys.executable, __file__, "--witness", link]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            await asyncio.wait_for(asyncio.to_thread(process.stdout.readline), 120)
            coming = [asyncio.create_task(Visitor(link, seed, seconds, seen).visit()) for seed in range(visitors)]
            most: dict[str, float] = {}
            while not all(task.done() for task in coming):
                now = await asyncio.to_thread(gauges, link)
                most = {name: max(most.get(name, 0.0), now[name]) for name in (*HELD, "busy")}
                await asyncio.sleep(0.5)
            for task in coming:
                task.result()
            process.stdin.close()
            watched = json.loads(await asyncio.to_thread(process.stdout.readline))
        finally:
            process.terminate()
    after = await settled(link)
    return {
        "visitors": visitors, "seconds": seconds, "before": {k: before[k] for k in HELD}, "most": most,
        "after": {k: after[k] for k in HELD}, "factor": after["realtime_factor"], "capacity": after["capacity"],
        "cpu_seconds": round(after["cpu_seconds"] - before["cpu_seconds"], 1),
        "cpu_wait_seconds": round(after["cpu_wait_seconds"] - before["cpu_wait_seconds"], 1),
        "failed": after["sessions_failed_total"], "opened": after["sessions_opened_total"], "seen": dict(seen),
        "witnesses": watched,
    }  # fmt: skip


async def settled(link: str) -> dict[str, float]:
    """The figures once everybody is gone; those of the last moment if that does not come."""
    for _ in range(200):
        now = await asyncio.to_thread(gauges, link)
        if now["sessions"] + now["queue_depth"] + now["parked"] == 0:
            break
        await asyncio.sleep(0.1)
    await asyncio.sleep(1.0)
    return await asyncio.to_thread(gauges, link)


def faults(figures: dict[str, Any], pieces: int = 6) -> list[str]:
    """What is wrong; `pieces` may wait for each session."""
    before, most, after = figures["before"], figures["most"], figures["after"]
    grown = [name for name, by in GROWTH.items() if after[name] > before[name] + by]
    wrong = [f"{name}: {before[name]:g} -> {after[name]:g}" for name in grown]
    wrong += [f"{name} is {after[name]:g} at the end" for name in HELD[4:] if after[name]]
    if most["outbox_pieces"] > pieces * (most["sessions"] + most["parked"] + 1):
        wrong.append(f"{most['outbox_pieces']:g} pieces waited at once")
    if figures["failed"]:
        wrong.append(f"{figures['failed']:g} sessions failed")
    for name, one in figures["witnesses"].items():
        if one["dry"]:
            wrong.append(f"the {name} witness ran dry {one['dry']} times, at most {one['longest']:g} s")
    return wrong


def serve(folder: str) -> None:
    """A server on the mock for as many as come; its link is the first line."""
    from streamchar.serve import server
    from streamchar.serve.floor import Limits
    from streamchar.serve.guard import Guard
    from streamchar.serve.studios import Choice
    from streamchar.serve.vault import Vault
    from streamchar.serve.worker import Worker

    guard, bound = Guard(host="127.0.0.1"), server.listen("127.0.0.1", 0)
    limits = Limits(sessions=1000, queue=1000, per_address=1000)
    worker = Worker(Choice(mock=True, speed=200, size=32).open(), Vault(Path(folder)), limits=limits)
    worker.start()
    live = server.make(worker, guard, 0)
    print(server.link(guard, bound.getsockname()[1]), flush=True)
    live.run(sockets=[bound])
    worker.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--visitors", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--link", help="a running server's link; else one is started")
    parser.add_argument("--serve", metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("--witness", metavar="LINK", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.witness:
        asyncio.run(witness(given.witness))
        return 0
    if given.serve:
        serve(given.serve)
        return 0
    with contextlib.ExitStack() as held:
        link = given.link
        if not link:
            folder = held.enter_context(tempfile.TemporaryDirectory())
            command = [sys.executable, __file__, "--serve", folder]
            process = held.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            held.callback(process.terminate)
            assert process.stdout is not None
            link = process.stdout.readline().strip()
        figures = asyncio.run(load(link, given.visitors, given.seconds))
    wrong = faults(figures)
    print(json.dumps({**figures, "wrong": wrong}, indent=1))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
