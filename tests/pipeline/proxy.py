"""A TCP proxy between a client and a real server, that can be slow, cut connections and alter what passes."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress

PIECE = 1 << 16


class Proxy:
    """Listens on a loopback port of its own while it is entered.

    Attributes:
        alter: what the server's bytes become; called with each piece.
        cut: how many bytes of the server a connection carries before it is broken off; None for all.
        cuts_left: how many connections are broken off.
        bytes_per_second: of all connections together; None for as fast as it goes.
        served: bytes of the server that were passed on, or are being passed on.
        requests: first line of each request that began a piece.
        on_request: called with that line before it is passed on.
    """

    def __init__(self, endpoint: str) -> None:
        host, port = endpoint.removeprefix("http://").split(":")
        self._server = (host, int(port))
        self.alter: Callable[[bytes], bytes] = lambda data: data
        self.on_request: Callable[[str], None] = lambda line: None
        self.cut: int | None = None
        self.cuts_left = 0
        self.bytes_per_second: float | None = None
        self.served = 0
        self.requests: list[str] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
                threading.Thread(target=self._up, args=(client, server), daemon=True).start()
                threading.Thread(target=self._down, args=(client, server), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(PIECE):
                line = data.split(b"\r\n", 1)[0].decode(errors="replace")
                if line.endswith("HTTP/1.1"):
                    self.requests.append(line)
                    self.on_request(line)
                server.sendall(data)
        with suppress(OSError):
            server.shutdown(socket.SHUT_WR)

    def _down(self, client: socket.socket, server: socket.socket) -> None:
        carried = 0
        with suppress(OSError):
            while data := server.recv(PIECE):
                data = self.alter(data)
                if (speed := self.bytes_per_second) is not None:
                    with self._lock:
                        time.sleep(len(data) / speed)
                if self.cut is not None and carried + len(data) > self.cut and self._may_cut():
                    client.sendall(data[: self.cut - carried])
                    # Closing without lingering resets the connection.
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    break
                with self._lock:  # before they are sent: the reader may be done before this thread goes on
                    self.served += len(data)
                client.sendall(data)
                carried += len(data)
        for end in (client, server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _may_cut(self) -> bool:
        with self._lock:
            self.cuts_left -= 1
            return self.cuts_left >= 0
