"""A chat endpoint on the loopback that answers, fails, stalls and talks rubbish as a test tells it to."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager, suppress


def says(text, tokens=10, **headers):
    """An answer of `text`."""
    body = {"choices": [{"message": {"role": "assistant", "content": text}}], "usage": {"total_tokens": tokens}}
    return 200, json.dumps(body), headers


def fails(status, body="{}", **headers):
    """An answer with another status."""
    return status, body, headers


STALL, HANG_UP = "stall", "hang up"


class Endpoint:
    """`answer(body, number)` says what comes back: `says`, `fails`, STALL or HANG_UP. Keeps what was asked."""

    def __init__(self, answer):
        self.answer, self.asked, self.headers, self.open, self.most_open = answer, [], [], 0, 0
        self.url = ""

    async def serve(self, reader, writer):
        try:
            while line := await reader.readline():
                assert line.startswith(b"POST /v1/chat/completions "), line
                headers = {}
                while (line := await reader.readline()).strip():
                    name, _, value = line.decode().partition(":")
                    headers[name.lower()] = value.strip()
                body = json.loads(await reader.readexactly(int(headers["content-length"])))
                self.asked.append(body)
                self.headers.append(headers)
                number = len(self.asked)
                self.open += 1
                self.most_open = max(self.most_open, self.open)
                try:
                    await asyncio.sleep(0.005)
                    answer = self.answer(body, number)
                    if answer == STALL:
                        await asyncio.sleep(3600)
                    if answer == HANG_UP:
                        return
                    status, text, more = answer
                    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(text.encode())}"]
                    lines += [f"{name.replace('_', '-')}: {value}" for name, value in more.items()]
                    writer.write(("\r\n".join(lines) + "\r\n\r\n" + text).encode())
                    await writer.drain()
                finally:
                    self.open -= 1
        except ConnectionError:
            return
        finally:
            writer.close()


@asynccontextmanager
async def endpoint(answer):
    """A running Endpoint; `url` is what a client is given."""
    it = Endpoint(answer)
    tasks = set()

    async def serve(reader, writer):
        tasks.add(asyncio.current_task())
        with suppress(asyncio.CancelledError):
            await it.serve(reader, writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    it.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield it
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
