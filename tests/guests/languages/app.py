"""A function in Python that asks for all that may differ from run to run: clocks, random numbers, answers in the order in which they come;
and that makes garbage, so that the collector runs. (The seed of its hashes is drawn when the component is built.)"""

import asyncio
import gc
import json
import random
import secrets
import time
import uuid
from urllib import parse

import poll_loop
from componentize_py_types import Ok
from poll_loop import PollLoop, Sink, Stream
from wit_world import exports
from wit_world.imports.types import (
    Fields,
    IncomingRequest,
    Method_Get,
    OutgoingBody,
    OutgoingRequest,
    OutgoingResponse,
    ResponseOutparam,
    Scheme_Http,
)


class IncomingHandler(exports.IncomingHandler):
    def handle(self, request: IncomingRequest, response_out: ResponseOutparam) -> None:
        loop = PollLoop()
        asyncio.set_event_loop(loop)
        loop.run_until_complete(answer(request, response_out))


async def answer(request, response_out):
    body = bytearray()
    stream = Stream(request.consume())
    while (chunk := await stream.next()) is not None:
        body += chunk
    urls = json.loads(body or b"{}").get("urls", [])
    did = {
        "now": time.time(),
        "since": time.monotonic(),
        "random": random.random(),
        "secret": secrets.token_hex(8),
        "uuid": str(uuid.uuid4()),
    }
    made = []
    for i in range(20000):
        cycle = {"i": i}
        cycle["self"] = cycle
        made = [cycle] if i % 100 == 0 else made + [cycle]
    did["collected"] = [stat["collections"] for stat in gc.get_stats()]
    order = []
    did["came"] = await asyncio.gather(*(fetch(url, at, order) for at, url in enumerate(urls)))
    did["order"] = order
    did["later"] = time.time()
    print("answers came in the order", order)

    response = OutgoingResponse(Fields.from_list([("content-type", b"application/json")]))
    outgoing = response.body()
    ResponseOutparam.set(response_out, Ok(response))
    sink = Sink(outgoing)
    await sink.send(json.dumps(did).encode())
    sink.close()


async def fetch(url, at, order):
    parsed = parse.urlparse(url)
    request = OutgoingRequest(Fields.from_list([]))
    request.set_method(Method_Get())
    request.set_scheme(Scheme_Http())
    request.set_authority(parsed.netloc)
    request.set_path_with_query(parsed.path)
    try:
        response = await poll_loop.send(request)
        stream = Stream(response.consume())
        length = 0
        while (chunk := await stream.next()) is not None:
            length += len(chunk)
        token = response.headers().get("x-token")
        return [response.status(), [value.decode() for value in token], length]
    except Exception as error:
        return repr(error)
    finally:
        order.append(at)
