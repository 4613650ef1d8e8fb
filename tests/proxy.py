"""A TCP port before that of a server: what is sent arrives late, and connections can be cut off."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field


@dataclass
class _Pair:
    """The two ends of one connection."""

    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    is_doomed: bool = False
    is_clients_turn: bool = True
    transaction: bytes = b""  # what the client said in it

    def cut(self) -> None:
        for writer in self.writers:
            writer.transport.abort()


class Proxy:
    """Hands on to `server_port` of this machine, each way `delay_s` later; the delay takes no bandwidth.

    Attributes:
        n_round_trips: how often a client sent something after the server had said something, or at first.
        lost_commits: so many commits to come are carried out, and their connections cut before the client hears of it.
        lost_words: only commits of transactions that had these words.
        is_silent: nothing more is handed on, over connections that stay open and new ones that are accepted.
    """

    def __init__(self, server_port: int, delay_s: float = 0.0, *, port: int = 0) -> None:
        self.n_round_trips = self.lost_commits = 0
        self.lost_words = b""
        self.is_silent = False
        self._server_port, self._delay_s = server_port, delay_s
        self._pairs: list[_Pair] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        listening = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._accept, "127.0.0.1", port), self._loop)
        self._listening = listening.result()
        self.port: int = self._listening.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Cut every connection off."""
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            self._loop.call_soon_threadsafe(pair.cut)

    def close(self) -> None:
        """End it: connections break, and new ones are refused."""
        if not self._thread.is_alive():
            return

        async def end() -> None:
            self._listening.close()
            for pair in self._pairs:
                pair.cut()
            await asyncio.sleep(0.05)  # in which the sockets are closed
            self._loop.stop()

        asyncio.run_coroutine_threadsafe(end(), self._loop)
        self._thread.join()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self._server_port)
        except OSError:
            writer.transport.abort()
            return
        pair = _Pair([writer, to_server])
        self._pairs.append(pair)
        await asyncio.gather(
            self._hand_on(pair, reader, to_server, from_client=True),
            self._hand_on(pair, from_server, writer, from_client=False),
        )

    async def _hand_on(
        self, pair: _Pair, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, from_client: bool
    ) -> None:
        """Read as it comes and write each piece when its time has come."""
        due: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def deliver() -> None:
            while True:
                at, piece = await due.get()
                await asyncio.sleep(max(0.0, at - self._loop.time()))
                if not piece:
                    writer.close()
                    return
                writer.write(piece)

        delivering = asyncio.create_task(deliver())
        piece = b"?"
        while piece:
            try:
                piece = await reader.read(1 << 16)
            except OSError:
                piece = b""
            if from_client and piece:
                self.n_round_trips += pair.is_clients_turn
                pair.is_clients_turn = False
                pair.transaction += piece
                if b"COMMIT\0" in piece:
                    if self.lost_commits and self.lost_words in pair.transaction:
                        self.lost_commits -= 1
                        pair.is_doomed = True
                    pair.transaction = b""
            elif not from_client:
                pair.is_clients_turn = True
                if pair.is_doomed:
                    pair.cut()
            if piece and self.is_silent:
                continue
            due.put_nowait((self._loop.time() + self._delay_s, piece))
        await delivering
