"""No test reaches a network: hubs are offline, and only this machine may be connected to."""

from __future__ import annotations

import os
import socket
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

_connect = socket.socket.connect


def _local_only(self: socket.socket, address: Any) -> None:
    host = address[0] if isinstance(address, tuple) else "localhost"
    if host not in ("localhost", "127.0.0.1", "::1"):
        raise OSError(f"tests must not use the network, tried {address}")
    _connect(self, address)


socket.socket.connect = _local_only  # type: ignore[method-assign]
