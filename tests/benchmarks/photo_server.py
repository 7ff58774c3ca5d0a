"""Web server for photographs on the loopback interface, a separate process that needs little processor time.

    python tests/benchmarks/photo_server.py FOLDER

The server loads all JPEG files of FOLDER, prints its port, and answers ``/SCENARIO/NUMBER.jpg`` until it is terminated:

- ``plain``: photo NUMBER modulo the number of photos, with NUMBER in a JPEG comment, so that no two answers are equal;
- ``latency``: the same, 50 ms later;
- ``faults``: the same, but 5 % of the numbers are answered with status 503 once, and 1 % have a body that never ends.

``/reset`` clears the record of requests. ``/first`` returns the time (`time.monotonic`, in seconds) of the first
request for a photo since then, or 0 before it.
"""

from __future__ import annotations

import asyncio
import json
import struct
import sys
import time
from pathlib import Path

LATENCY_S = 0.05
"""Delay of answers in the scenario ``latency``."""
DRIP_BYTES = 1 << 14
"""Number of bytes that a body without an end sends at a time."""
DRIP_EVERY_S = 0.1
"""Time between two parts of a body without an end."""

SOI_BYTES = 2
"""Length of the marker at the start of every JPEG file, which comments may follow."""


def fails_once(number: int) -> bool:
    """Whether the first answer to URL `number` of the scenario ``faults`` has status 503: 5 % of all URLs."""
    return number % 20 == 3


def never_ends(number: int) -> bool:
    """Whether URL `number` of the scenario ``faults`` has a body without an end: 1 % of all URLs."""
    return number % 100 == 50


def numbered(photo: bytes, number: int) -> list[bytes | memoryview]:
    """Return the parts of the JPEG file `photo` with `number` in a comment."""
    comment = f"{number:012d}".encode()
    segment = b"\xff\xfe" + struct.pack(">H", 2 + len(comment)) + comment
    return [photo[:SOI_BYTES] + segment, memoryview(photo)[SOI_BYTES:]]


class Site:
    """The photographs, and a record of requests.

    Attributes:
        photos: contents of the JPEG files.
        failed: numbers of the URLs that were answered with status 503.
        first: time of the first request for a photo (`time.monotonic`), or 0.
    """

    def __init__(self, photos: list[bytes]) -> None:
        self.photos = photos
        self.reset()

    def reset(self) -> None:
        """Clear the record of requests."""
        self.failed: set[int] = set()
        self.first = 0.0


class Connection(asyncio.Protocol):
    """One persistent connection; clients send a request after they have received the answer to the previous one."""

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
    """Print a free port of 127.0.0.1, and answer requests on it."""
    site = Site([file.read_bytes() for file in sorted(folder.glob("*.jpg"))])
    server = await asyncio.get_running_loop().create_server(lambda: Connection(site), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
