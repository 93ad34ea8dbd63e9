"""The probabilities of all classes for a batch of images that one client sends."""

from contextlib import ExitStack

import numpy as np

from models.catalog import InputSpec
from service.common.errors import BadRequest
from service.common.tasks import together
from service.common.types import DEFAULT_CROPS, Samples, Timing, check_size
from service.inference.dataplane import Images, Inference
from service.inference.ensemble import ServedModel
from service.preprocessing.preprocessor import Preprocessor, RequestImage
from service.repository.loaded_model import LoadedModel


async def infer(preprocessor: Preprocessor, model: ServedModel, images: Images, deadline: float) -> Inference:
    """The probabilities for each image, whose inputs run in batches with those of other requests.

    Raises BadRequest if there is no image or they have another shape than the input of the model, and the errors of the
    images and of the batcher.
    """
    assert isinstance(model, LoadedModel), "the data plane refuses ensembles"
    if not len(images):
        raise BadRequest("the request has no image; send one or more")
    clock = preprocessor.clock
    started = clock.now()
    with model.batcher.admit(len(images)) as admission:
        samples = await _samples(preprocessor, images, model.input)
        decoded = clock.now()
        ran = await model.batcher.submit(samples, deadline=deadline, admission=admission)
    queue_s = min(one.queue_s for one in ran)
    inference_s = max(one.queue_s + one.run_s for one in ran) - queue_s
    total_ms = (clock.now() - started) * 1000
    model.latency.record(total_ms)
    return Inference(
        probabilities=np.stack([one.value for one in ran]),
        labels=model.labels,
        model=model.name,
        version=model.artifact.version,
        timing_ms=Timing((decoded - started) * 1000, queue_s * 1000, inference_s * 1000, total_ms),
    )


async def _samples(preprocessor: Preprocessor, images: Images, spec: InputSpec) -> Samples:
    """The inputs of the network, [N, S, S, 3]. Raises BadRequest, BadImage or TooLarge."""
    if isinstance(images, np.ndarray):
        expected = (spec.crop, spec.crop, 3)
        if images.shape[1:] != expected:
            raise BadRequest(f"the images have the shape {list(images.shape)}; send {[-1, *expected]}")
        return images
    for image in images:
        check_size(len(image), preprocessor.limits)
    with ExitStack() as stack:
        opened = [RequestImage(preprocessor, image, DEFAULT_CROPS) for image in images]
        for one in opened:
            stack.callback(one.close)
        prepared = await together([one.samples([spec]) for one in opened])
    return np.concatenate([one.samples for (one,) in prepared])
