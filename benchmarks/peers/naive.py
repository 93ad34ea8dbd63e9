"""FastAPI with a plain function, as in most tutorials; one process of uvicorn for each core."""

from typing import Annotated

from fastapi import FastAPI, File

from benchmarks.peers.common import Answer, Network, sample

network = Network()
app = FastAPI()


@app.post("/predict")
def predict(image: Annotated[bytes, File()]) -> Answer:
    """The five best classes; Starlette runs it in a thread."""
    return network.answers([sample(image)])[0]
