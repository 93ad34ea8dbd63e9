"""FastAPI, libjpeg-turbo and OpenVINO, as an expert writes them: one process, a thread per photo, no batching.

Precision and threads are what topfive takes on this machine, so that only the servers differ.
"""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Annotated, Any

import openvino
import simplejpeg
from fastapi import FastAPI, File
from PIL import Image

from benchmarks.peers.common import WORKERS, Answer, cut, top_five

_THREADS = 2 * WORKERS  # while two photos are inferred, two are decoded

compiled = openvino.Core().compile_model(
    os.environ["BENCH_MODEL"],
    "CPU",
    {
        "NUM_STREAMS": WORKERS,
        "INFERENCE_NUM_THREADS": WORKERS,
        "INFERENCE_PRECISION_HINT": os.environ.get("BENCH_PRECISION", "bf16"),
    },
)
free: "SimpleQueue[Any]" = SimpleQueue()
for _ in range(_THREADS):
    free.put(compiled.create_infer_request())
app = FastAPI()
pool = ThreadPoolExecutor(_THREADS)


def classify(image: bytes) -> Answer:
    """The five best classes of a JPEG."""
    sample = cut(Image.fromarray(simplejpeg.decode_jpeg(image)))
    request = free.get()
    try:
        return top_five(request.infer({"image": sample[None]}, share_inputs=True)[0][0])
    finally:
        free.put(request)


@app.post("/predict")
async def predict(image: Annotated[bytes, File()]) -> Answer:
    """The five best classes."""
    return await asyncio.get_running_loop().run_in_executor(pool, classify, image)
