"""A web server on loopback that answers with photographs, as a process of its own that costs as little as possible.

    python tests/benchmarks/photo_server.py FOLDER

It loads all JPEG files of FOLDER, prints its port and answers ``/SCENARIO/NUMBER.jpg`` until it is ended:

- ``plain``: photo NUMBER modulo the number of photos, with a JPEG comment that holds NUMBER: no two are the same bytes;
- ``latency``: the same 50 ms later;
- ``faults``: the same, but 5 % of the numbers are answered with status 503 once, and 1 % have a body without an end.

``/reset`` forgets what was asked before; ``/first`` is the time (`time.monotonic`, s) of the first request since then,
and 0 before it.
"""

from __future__ import annotations

import asyncio
import json
import struct
import sys
import time
from pathlib import Path

LATENCY_S = 0.05
DRIP_BYTES = 1 << 14
DRIP_EVERY_S = 0.1

SOI_BYTES = 2
"""The marker that every JPEG file starts with; comments may follow it."""


def fails_once(number: int) -> bool:
    """Whether URL `number` of the scenario ``faults`` is answered with 503 at first: 5 %."""
    return number % 20 == 3


def never_ends(number: int) -> bool:
    """Whether URL `number` of the scenario ``faults`` has a body without an end: 1 %."""
    return number % 100 == 50


def numbered(photo: bytes, number: int) -> list[bytes | memoryview]:
    """The JPEG file `photo` with a comment that says `number`, in parts."""
    comment = f"{number:012d}".encode()
    segment = b"\xff\xfe" + struct.pack(">H", 2 + len(comment)) + comment
    return [photo[:SOI_BYTES] + segment, memoryview(photo)[SOI_BYTES:]]


class Site:
    """The photographs, and what has been asked."""

    def __init__(self, photos: list[bytes]) -> None:
        self.photos = photos
        self.reset()

    def reset(self) -> None:
        """As if nothing had been asked."""
        self.failed: set[int] = set()
        self.first = 0.0


class Connection(asyncio.Protocol):
    """One kept connection; clients send a request when the answer to the one before is there."""

    transport: asyncio.Transport

    def __init__(self, site: Site) -> None:
        self._site = site
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        if b"\r\n\r\n" in self._received:
            path = self._received.split(b" ", 2)[1].decode()
            self._received = b""
            self._answer(path)

    def _answer(self, path: str) -> None:
        if path == "/reset":
            self._site.reset()
            self._reply([b"true"])
        elif path == "/first":
            self._reply([json.dumps(self._site.first).encode()])
        else:
            self._site.first = self._site.first or time.monotonic()
            scenario, name = path.strip("/").split("/")
            number = int(name.removesuffix(".jpg"))
            if scenario == "latency":
                asyncio.get_running_loop().call_later(LATENCY_S, self._photo, number)
            elif scenario == "faults" and never_ends(number):
                self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nConnection: close\r\n\r\n")
                self.transport.writelines(numbered(self._site.photos[number % len(self._site.photos)], number))
                self._drip()
            elif scenario == "faults" and fails_once(number) and number not in self._site.failed:
                self._site.failed.add(number)
                self._reply([b"busy"], "503 Service Unavailable")
            else:
                self._photo(number)

    def _photo(self, number: int) -> None:
        self._reply(numbered(self._site.photos[number % len(self._site.photos)], number))

    def _reply(self, parts: list[bytes | memoryview], status: str = "200 OK") -> None:
        length = sum(map(len, parts))
        head = f"HTTP/1.1 {status}\r\nContent-Type: image/jpeg\r\nContent-Length: {length}\r\n\r\n".encode()
        self.transport.writelines([head, *parts])

    def _drip(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(bytes(DRIP_BYTES))
            asyncio.get_running_loop().call_later(DRIP_EVERY_S, self._drip)


async def serve(folder: Path) -> None:
    """Answer on a free port of 127.0.0.1, which is printed."""
    site = Site([file.read_bytes() for file in sorted(folder.glob("*.jpg"))])
    server = await asyncio.get_running_loop().create_server(lambda: Connection(site), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
