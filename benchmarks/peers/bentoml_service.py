"""BentoML: a batchable endpoint; one process for each core."""

import bentoml
from PIL import Image

from benchmarks.peers.common import MAX_BATCH, Answer, Network, cut


@bentoml.service(workers=1, metrics={"enabled": False}, logging={"access": {"enabled": False}})
class BentoClassifier:
    """Opens its model once in each process."""

    def __init__(self) -> None:
        self.network = Network()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH)
    def predict(self, image: list[Image.Image]) -> list[Answer]:
        return self.network.answers([cut(photo) for photo in image])
