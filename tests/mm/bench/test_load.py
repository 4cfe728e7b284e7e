"""What a closed loop of clients counts, against a server that cuts off, answers twice, or answers something else."""

import asyncio
import os
from typing import Any

import pytest

from mm.bench.load import Ask, Load, closed_loop
from mm.bench.serving_soak import grown, resident

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
ASK = Ask("/embed", b"a", right=lambda answer: answer == b"ok")


def loaded(clients: int, *answers: bytes) -> Load:
    """Clients against a server whose first answers are these, and `OK` then; one that is empty cuts the connection."""
    waiting = list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(1)
                said = waiting.pop(0) if waiting else OK
                if not said:
                    break
                writer.write(said)
                await asyncio.sleep(0.01)
        except asyncio.IncompleteReadError:
            pass
        writer.close()

    async def run() -> Load:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            return await closed_loop(port, clients, 0.1, lambda number: ASK)

    return asyncio.run(run())


def test_what_is_cut_off_is_lost_and_the_client_goes_on() -> None:
    load = loaded(2, b"", b"")
    assert (load.lost, load.twice, load.wrong) == (2, 0, 0)
    assert load.statuses[200] > 4


@pytest.mark.parametrize("first", [OK * 2, OK.replace(b"ok", b"no")])
def test_an_answer_that_comes_twice_or_is_another_s_is_counted(first: bytes) -> None:
    load = loaded(1, first)
    assert load.lost == 0 and load.facts()["lost"] == 0
    assert (load.twice, load.wrong) == ((1, 0) if first == OK * 2 else (0, 1))


def test_memory_is_that_of_the_group_and_grows_by_the_minute() -> None:
    own = list(resident(os.getpgid(0)))
    assert own and all(1 << 20 < each < 1 << 40 for each in own)
    facts: dict[str, Any] = grown([100.0, 130.0, 110.0, 111.0, 112.0, 113.0])
    assert (facts["memory_start"], facts["memory_end"], facts["memory_most"]) == (100.0, 113.0, 130.0)
    assert facts["memory_a_minute"] == pytest.approx(12.0)
