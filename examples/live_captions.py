"""Captions as they are spoken, from a running `streamchar serve`; the take is written to a file.

    streamchar serve --mock &
    python examples/live_captions.py http://127.0.0.1:8080/ "Hello there, how are you today?" take.mp4
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from streamchar.errors import StreamCharError
from streamchar.serve.client import connect
from streamchar.serve.protocol import Idle, Queued, Spoken


def main(address: str, text: str, output: str) -> int:
    began = None
    with connect(address) as session, Path(output).open("wb") as file:
        session.start(text=text)
        for item in session:
            if isinstance(item, bytes):
                began = began or time.monotonic()  # a player would start here
                file.write(item)
            elif isinstance(item, Queued):
                print(f"waiting, place {item.place}")
            elif isinstance(item, Spoken) and began is not None:
                time.sleep(max(0.0, began + item.start - time.monotonic()))
                print(item.text, end=" ", flush=True)
            elif isinstance(item, Idle):
                print()
                session.stop()
    print(f"{output}: {session.frames / 24:.1f} s")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: live_captions.py LINK TEXT OUTPUT.mp4")
    try:
        sys.exit(main(*sys.argv[1:]))
    except StreamCharError as error:
        sys.exit(f"error: {error}")
