"""Captions as they are spoken, from a running `streamchar serve`; the take is written to a file.

    streamchar serve --mock &
    python examples/live_captions.py http://127.0.0.1:8080/ "Hello there, how are you today?" take.mp4
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from pathlib import Path

from streamchar.client import Idle, Notice, Queued, Spoken, connect
from streamchar.errors import StreamCharError


def show(words: queue.Queue[tuple[float, str] | None]) -> None:
    """Print each word when it is heard. In a thread of its own: whoever reads the session must not sleep."""
    while (word := words.get()) is not None:
        time.sleep(max(0.0, word[0] - time.monotonic()))
        print(word[1], end=" ", flush=True)
    print()


def main(address: str, text: str, output: str) -> int:
    began: float | None = None
    words: queue.Queue[tuple[float, str] | None] = queue.Queue()
    screen = threading.Thread(target=show, args=(words,))
    screen.start()
    try:
        with connect(address) as session, Path(output).open("wb") as file:
            session.start(text=text)
            for item in session:
                if isinstance(item, bytes):
                    began = began or time.monotonic()  # a player would start here
                    file.write(item)
                elif isinstance(item, Queued):
                    print(f"waiting, place {item.place}")
                elif isinstance(item, Notice):
                    print(item.message)
                elif isinstance(item, Spoken):
                    words.put(((began or time.monotonic()) + item.start, item.text))
                elif isinstance(item, Idle):
                    session.stop()
    finally:
        words.put(None)
        screen.join()
    print(f"{output}: {session.frames / 24:.1f} s")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: live_captions.py LINK TEXT OUTPUT.mp4")
    try:
        sys.exit(main(*sys.argv[1:]))
    except StreamCharError as error:
        sys.exit(f"error: {error}")
