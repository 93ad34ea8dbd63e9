"""FastAPI with a plain function, as in most tutorials; one process of uvicorn for each core."""

from typing import Annotated

from fastapi import FastAPI, File

from benchmarks.peers.common import Answer, Network, sample

network = Network()
app = FastAPI()


@app.get("/ready")
def ready() -> str:
    """Answers as soon as the model is loaded."""
    return "ready"


@app.post("/predict")
def predict(image: Annotated[bytes, File()]) -> Answer:
    """Runs in the thread pool of Starlette."""
    return network.answers([sample(image)])[0]
