from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ClassifyRequest(_message.Message):
    __slots__ = ("image", "model", "top_k", "request_id", "crops", "version")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CROPS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    image: bytes
    model: str
    top_k: int
    request_id: str
    crops: int
    version: int
    def __init__(self, image: _Optional[bytes] = ..., model: _Optional[str] = ..., top_k: _Optional[int] = ..., request_id: _Optional[str] = ..., crops: _Optional[int] = ..., version: _Optional[int] = ...) -> None: ...

class ClassifyReply(_message.Message):
    __slots__ = ("request_id", "predictions", "model", "engine", "timing_ms", "batch_size", "warnings", "members", "preprocessing")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    TIMING_MS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    PREPROCESSING_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    predictions: _containers.RepeatedCompositeFieldContainer[Prediction]
    model: Model
    engine: Engine
    timing_ms: Timing
    batch_size: int
    warnings: _containers.RepeatedScalarFieldContainer[str]
    members: _containers.RepeatedCompositeFieldContainer[Model]
    preprocessing: Preprocessing
    def __init__(self, request_id: _Optional[str] = ..., predictions: _Optional[_Iterable[_Union[Prediction, _Mapping]]] = ..., model: _Optional[_Union[Model, _Mapping]] = ..., engine: _Optional[_Union[Engine, _Mapping]] = ..., timing_ms: _Optional[_Union[Timing, _Mapping]] = ..., batch_size: _Optional[int] = ..., warnings: _Optional[_Iterable[str]] = ..., members: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., preprocessing: _Optional[_Union[Preprocessing, _Mapping]] = ...) -> None: ...

class CompareRequest(_message.Message):
    __slots__ = ("image", "models", "top_k", "request_id", "crops")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CROPS_FIELD_NUMBER: _ClassVar[int]
    image: bytes
    models: _containers.RepeatedScalarFieldContainer[str]
    top_k: int
    request_id: str
    crops: int
    def __init__(self, image: _Optional[bytes] = ..., models: _Optional[_Iterable[str]] = ..., top_k: _Optional[int] = ..., request_id: _Optional[str] = ..., crops: _Optional[int] = ...) -> None: ...

class CompareReply(_message.Message):
    __slots__ = ("request_id", "rows", "agreement", "common", "timing_ms", "warnings")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    COMMON_FIELD_NUMBER: _ClassVar[int]
    TIMING_MS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    rows: _containers.RepeatedCompositeFieldContainer[CompareRow]
    agreement: _containers.RepeatedCompositeFieldContainer[Agreement]
    common: _containers.RepeatedCompositeFieldContainer[ClassName]
    timing_ms: CompareTiming
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, request_id: _Optional[str] = ..., rows: _Optional[_Iterable[_Union[CompareRow, _Mapping]]] = ..., agreement: _Optional[_Iterable[_Union[Agreement, _Mapping]]] = ..., common: _Optional[_Iterable[_Union[ClassName, _Mapping]]] = ..., timing_ms: _Optional[_Union[CompareTiming, _Mapping]] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class CompareRow(_message.Message):
    __slots__ = ("model", "answer", "error")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    model: str
    answer: ClassifyReply
    error: Error
    def __init__(self, model: _Optional[str] = ..., answer: _Optional[_Union[ClassifyReply, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class Agreement(_message.Message):
    __slots__ = ("wnid", "label", "models")
    WNID_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    wnid: str
    label: str
    models: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, wnid: _Optional[str] = ..., label: _Optional[str] = ..., models: _Optional[_Iterable[str]] = ...) -> None: ...

class ClassName(_message.Message):
    __slots__ = ("wnid", "label")
    WNID_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    wnid: str
    label: str
    def __init__(self, wnid: _Optional[str] = ..., label: _Optional[str] = ...) -> None: ...

class CompareTiming(_message.Message):
    __slots__ = ("decode", "total")
    DECODE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    decode: float
    total: float
    def __init__(self, decode: _Optional[float] = ..., total: _Optional[float] = ...) -> None: ...

class ClassifyStreamReply(_message.Message):
    __slots__ = ("request_id", "reply", "error")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    reply: ClassifyReply
    error: Error
    def __init__(self, request_id: _Optional[str] = ..., reply: _Optional[_Union[ClassifyReply, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("code", "detail", "status", "retryable")
    CODE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    code: str
    detail: str
    status: int
    retryable: bool
    def __init__(self, code: _Optional[str] = ..., detail: _Optional[str] = ..., status: _Optional[int] = ..., retryable: bool = ...) -> None: ...

class Prediction(_message.Message):
    __slots__ = ("rank", "class_id", "wnid", "label", "probability")
    RANK_FIELD_NUMBER: _ClassVar[int]
    CLASS_ID_FIELD_NUMBER: _ClassVar[int]
    WNID_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    rank: int
    class_id: int
    wnid: str
    label: str
    probability: float
    def __init__(self, rank: _Optional[int] = ..., class_id: _Optional[int] = ..., wnid: _Optional[str] = ..., label: _Optional[str] = ..., probability: _Optional[float] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "version", "family", "parameters", "macs", "input_size", "weights", "acc1", "acc5", "latency_ms", "acc_dataset")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    MACS_FIELD_NUMBER: _ClassVar[int]
    INPUT_SIZE_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    ACC1_FIELD_NUMBER: _ClassVar[int]
    ACC5_FIELD_NUMBER: _ClassVar[int]
    LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    ACC_DATASET_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    family: str
    parameters: int
    macs: int
    input_size: int
    weights: str
    acc1: float
    acc5: float
    latency_ms: Latency
    acc_dataset: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., family: _Optional[str] = ..., parameters: _Optional[int] = ..., macs: _Optional[int] = ..., input_size: _Optional[int] = ..., weights: _Optional[str] = ..., acc1: _Optional[float] = ..., acc5: _Optional[float] = ..., latency_ms: _Optional[_Union[Latency, _Mapping]] = ..., acc_dataset: _Optional[str] = ...) -> None: ...

class Latency(_message.Message):
    __slots__ = ("count", "p50", "p90", "p99")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    P50_FIELD_NUMBER: _ClassVar[int]
    P90_FIELD_NUMBER: _ClassVar[int]
    P99_FIELD_NUMBER: _ClassVar[int]
    count: int
    p50: float
    p90: float
    p99: float
    def __init__(self, count: _Optional[int] = ..., p50: _Optional[float] = ..., p90: _Optional[float] = ..., p99: _Optional[float] = ...) -> None: ...

class Engine(_message.Message):
    __slots__ = ("runtime", "version", "device", "precision")
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    runtime: str
    version: str
    device: str
    precision: str
    def __init__(self, runtime: _Optional[str] = ..., version: _Optional[str] = ..., device: _Optional[str] = ..., precision: _Optional[str] = ...) -> None: ...

class Preprocessing(_message.Message):
    __slots__ = ("decoder", "scale", "recipe")
    DECODER_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    decoder: str
    scale: str
    recipe: str
    def __init__(self, decoder: _Optional[str] = ..., scale: _Optional[str] = ..., recipe: _Optional[str] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("decode", "queue", "inference", "total")
    DECODE_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    INFERENCE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    decode: float
    queue: float
    inference: float
    total: float
    def __init__(self, decode: _Optional[float] = ..., queue: _Optional[float] = ..., inference: _Optional[float] = ..., total: _Optional[float] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsReply(_message.Message):
    __slots__ = ("default_model", "models")
    DEFAULT_MODEL_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    default_model: str
    models: _containers.RepeatedCompositeFieldContainer[ModelInfo]
    def __init__(self, default_model: _Optional[str] = ..., models: _Optional[_Iterable[_Union[ModelInfo, _Mapping]]] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class GetModelReply(_message.Message):
    __slots__ = ("info", "input", "weights", "parity", "published", "published_errors", "published_macs", "depth", "configuration", "ilsvrc", "note", "engines", "versions", "quantized")
    INFO_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    PARITY_FIELD_NUMBER: _ClassVar[int]
    PUBLISHED_FIELD_NUMBER: _ClassVar[int]
    PUBLISHED_ERRORS_FIELD_NUMBER: _ClassVar[int]
    PUBLISHED_MACS_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    CONFIGURATION_FIELD_NUMBER: _ClassVar[int]
    ILSVRC_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    ENGINES_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    QUANTIZED_FIELD_NUMBER: _ClassVar[int]
    info: ModelInfo
    input: InputSpec
    weights: Weights
    parity: _containers.RepeatedCompositeFieldContainer[Parity]
    published: _containers.RepeatedCompositeFieldContainer[WeightSet]
    published_errors: _containers.RepeatedCompositeFieldContainer[PublishedErrors]
    published_macs: int
    depth: int
    configuration: str
    ilsvrc: str
    note: str
    engines: _containers.RepeatedCompositeFieldContainer[BuiltEngine]
    versions: _containers.RepeatedScalarFieldContainer[int]
    quantized: QuantizedGraph
    def __init__(self, info: _Optional[_Union[ModelInfo, _Mapping]] = ..., input: _Optional[_Union[InputSpec, _Mapping]] = ..., weights: _Optional[_Union[Weights, _Mapping]] = ..., parity: _Optional[_Iterable[_Union[Parity, _Mapping]]] = ..., published: _Optional[_Iterable[_Union[WeightSet, _Mapping]]] = ..., published_errors: _Optional[_Iterable[_Union[PublishedErrors, _Mapping]]] = ..., published_macs: _Optional[int] = ..., depth: _Optional[int] = ..., configuration: _Optional[str] = ..., ilsvrc: _Optional[str] = ..., note: _Optional[str] = ..., engines: _Optional[_Iterable[_Union[BuiltEngine, _Mapping]]] = ..., versions: _Optional[_Iterable[int]] = ..., quantized: _Optional[_Union[QuantizedGraph, _Mapping]] = ...) -> None: ...

class QuantizedGraph(_message.Message):
    __slots__ = ("nncf_version", "openvino_version", "preset", "floating_point", "accuracy_control", "photos", "photos_sha256", "parity", "conditions", "speeds", "date", "source_sha256", "xml_sha256", "bin_sha256")
    NNCF_VERSION_FIELD_NUMBER: _ClassVar[int]
    OPENVINO_VERSION_FIELD_NUMBER: _ClassVar[int]
    PRESET_FIELD_NUMBER: _ClassVar[int]
    FLOATING_POINT_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_CONTROL_FIELD_NUMBER: _ClassVar[int]
    PHOTOS_FIELD_NUMBER: _ClassVar[int]
    PHOTOS_SHA256_FIELD_NUMBER: _ClassVar[int]
    PARITY_FIELD_NUMBER: _ClassVar[int]
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    SPEEDS_FIELD_NUMBER: _ClassVar[int]
    DATE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_SHA256_FIELD_NUMBER: _ClassVar[int]
    XML_SHA256_FIELD_NUMBER: _ClassVar[int]
    BIN_SHA256_FIELD_NUMBER: _ClassVar[int]
    nncf_version: str
    openvino_version: str
    preset: str
    floating_point: _containers.RepeatedScalarFieldContainer[str]
    accuracy_control: bool
    photos: int
    photos_sha256: str
    parity: Parity
    conditions: Conditions
    speeds: _containers.RepeatedCompositeFieldContainer[PrecisionSpeed]
    date: str
    source_sha256: str
    xml_sha256: str
    bin_sha256: str
    def __init__(self, nncf_version: _Optional[str] = ..., openvino_version: _Optional[str] = ..., preset: _Optional[str] = ..., floating_point: _Optional[_Iterable[str]] = ..., accuracy_control: bool = ..., photos: _Optional[int] = ..., photos_sha256: _Optional[str] = ..., parity: _Optional[_Union[Parity, _Mapping]] = ..., conditions: _Optional[_Union[Conditions, _Mapping]] = ..., speeds: _Optional[_Iterable[_Union[PrecisionSpeed, _Mapping]]] = ..., date: _Optional[str] = ..., source_sha256: _Optional[str] = ..., xml_sha256: _Optional[str] = ..., bin_sha256: _Optional[str] = ...) -> None: ...

class Conditions(_message.Message):
    __slots__ = ("cpu", "instruction_sets", "cpus")
    CPU_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_SETS_FIELD_NUMBER: _ClassVar[int]
    CPUS_FIELD_NUMBER: _ClassVar[int]
    cpu: str
    instruction_sets: _containers.RepeatedScalarFieldContainer[str]
    cpus: int
    def __init__(self, cpu: _Optional[str] = ..., instruction_sets: _Optional[_Iterable[str]] = ..., cpus: _Optional[int] = ...) -> None: ...

class PrecisionSpeed(_message.Message):
    __slots__ = ("precision", "images_per_s")
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    IMAGES_PER_S_FIELD_NUMBER: _ClassVar[int]
    precision: str
    images_per_s: float
    def __init__(self, precision: _Optional[str] = ..., images_per_s: _Optional[float] = ...) -> None: ...

class ModelInfo(_message.Message):
    __slots__ = ("model", "state", "year", "paper", "classes", "engine", "warnings", "parameters_train", "measured", "passed_over", "layout", "packaged")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    YEAR_FIELD_NUMBER: _ClassVar[int]
    PAPER_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_TRAIN_FIELD_NUMBER: _ClassVar[int]
    MEASURED_FIELD_NUMBER: _ClassVar[int]
    PASSED_OVER_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    PACKAGED_FIELD_NUMBER: _ClassVar[int]
    model: Model
    state: str
    year: int
    paper: str
    classes: int
    engine: Engine
    warnings: _containers.RepeatedScalarFieldContainer[str]
    parameters_train: int
    measured: _containers.RepeatedCompositeFieldContainer[Measurement]
    passed_over: _containers.RepeatedScalarFieldContainer[str]
    layout: Layout
    packaged: bool
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ..., state: _Optional[str] = ..., year: _Optional[int] = ..., paper: _Optional[str] = ..., classes: _Optional[int] = ..., engine: _Optional[_Union[Engine, _Mapping]] = ..., warnings: _Optional[_Iterable[str]] = ..., parameters_train: _Optional[int] = ..., measured: _Optional[_Iterable[_Union[Measurement, _Mapping]]] = ..., passed_over: _Optional[_Iterable[str]] = ..., layout: _Optional[_Union[Layout, _Mapping]] = ..., packaged: bool = ...) -> None: ...

class Layout(_message.Message):
    __slots__ = ("slots", "threads", "max_batch", "origin")
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    slots: int
    threads: int
    max_batch: int
    origin: str
    def __init__(self, slots: _Optional[int] = ..., threads: _Optional[int] = ..., max_batch: _Optional[int] = ..., origin: _Optional[str] = ...) -> None: ...

class BuiltEngine(_message.Message):
    __slots__ = ("name", "runtime", "version", "targets", "precision", "card", "smallest", "largest", "size_bytes", "fits", "reason", "remedy")
    NAME_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    CARD_FIELD_NUMBER: _ClassVar[int]
    SMALLEST_FIELD_NUMBER: _ClassVar[int]
    LARGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    FITS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    REMEDY_FIELD_NUMBER: _ClassVar[int]
    name: str
    runtime: str
    version: str
    targets: _containers.RepeatedScalarFieldContainer[str]
    precision: str
    card: str
    smallest: int
    largest: int
    size_bytes: int
    fits: bool
    reason: str
    remedy: str
    def __init__(self, name: _Optional[str] = ..., runtime: _Optional[str] = ..., version: _Optional[str] = ..., targets: _Optional[_Iterable[str]] = ..., precision: _Optional[str] = ..., card: _Optional[str] = ..., smallest: _Optional[int] = ..., largest: _Optional[int] = ..., size_bytes: _Optional[int] = ..., fits: bool = ..., reason: _Optional[str] = ..., remedy: _Optional[str] = ...) -> None: ...

class Measurement(_message.Message):
    __slots__ = ("dataset", "dataset_sha256", "images", "acc1", "acc1_low", "acc1_high", "acc5", "acc5_low", "acc5_high", "crops", "runtime", "precision", "date", "decode")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    DATASET_SHA256_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    ACC1_FIELD_NUMBER: _ClassVar[int]
    ACC1_LOW_FIELD_NUMBER: _ClassVar[int]
    ACC1_HIGH_FIELD_NUMBER: _ClassVar[int]
    ACC5_FIELD_NUMBER: _ClassVar[int]
    ACC5_LOW_FIELD_NUMBER: _ClassVar[int]
    ACC5_HIGH_FIELD_NUMBER: _ClassVar[int]
    CROPS_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    DATE_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    dataset_sha256: str
    images: int
    acc1: float
    acc1_low: float
    acc1_high: float
    acc5: float
    acc5_low: float
    acc5_high: float
    crops: int
    runtime: str
    precision: str
    date: str
    decode: str
    def __init__(self, dataset: _Optional[str] = ..., dataset_sha256: _Optional[str] = ..., images: _Optional[int] = ..., acc1: _Optional[float] = ..., acc1_low: _Optional[float] = ..., acc1_high: _Optional[float] = ..., acc5: _Optional[float] = ..., acc5_low: _Optional[float] = ..., acc5_high: _Optional[float] = ..., crops: _Optional[int] = ..., runtime: _Optional[str] = ..., precision: _Optional[str] = ..., date: _Optional[str] = ..., decode: _Optional[str] = ...) -> None: ...

class InputSpec(_message.Message):
    __slots__ = ("resize", "crop", "interpolation", "mean", "std", "channels", "fit")
    RESIZE_FIELD_NUMBER: _ClassVar[int]
    CROP_FIELD_NUMBER: _ClassVar[int]
    INTERPOLATION_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    STD_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    FIT_FIELD_NUMBER: _ClassVar[int]
    resize: int
    crop: int
    interpolation: str
    mean: _containers.RepeatedScalarFieldContainer[float]
    std: _containers.RepeatedScalarFieldContainer[float]
    channels: str
    fit: str
    def __init__(self, resize: _Optional[int] = ..., crop: _Optional[int] = ..., interpolation: _Optional[str] = ..., mean: _Optional[_Iterable[float]] = ..., std: _Optional[_Iterable[float]] = ..., channels: _Optional[str] = ..., fit: _Optional[str] = ...) -> None: ...

class PublishedErrors(_message.Message):
    __slots__ = ("protocol", "top1", "top5")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    TOP1_FIELD_NUMBER: _ClassVar[int]
    TOP5_FIELD_NUMBER: _ClassVar[int]
    protocol: str
    top1: float
    top5: float
    def __init__(self, protocol: _Optional[str] = ..., top1: _Optional[float] = ..., top5: _Optional[float] = ...) -> None: ...

class Weights(_message.Message):
    __slots__ = ("source", "name", "sha256")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    source: str
    name: str
    sha256: str
    def __init__(self, source: _Optional[str] = ..., name: _Optional[str] = ..., sha256: _Optional[str] = ...) -> None: ...

class WeightSet(_message.Message):
    __slots__ = ("tag", "acc1", "acc5", "input", "dataset")
    TAG_FIELD_NUMBER: _ClassVar[int]
    ACC1_FIELD_NUMBER: _ClassVar[int]
    ACC5_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    tag: str
    acc1: float
    acc5: float
    input: InputSpec
    dataset: str
    def __init__(self, tag: _Optional[str] = ..., acc1: _Optional[float] = ..., acc5: _Optional[float] = ..., input: _Optional[_Union[InputSpec, _Mapping]] = ..., dataset: _Optional[str] = ...) -> None: ...

class Parity(_message.Message):
    __slots__ = ("runtime", "runtime_version", "precision", "device", "images", "max_abs_diff", "logit_cosine", "top1_agreement", "top5_agreement", "passed", "batch_sizes", "thresholds")
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_VERSION_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    MAX_ABS_DIFF_FIELD_NUMBER: _ClassVar[int]
    LOGIT_COSINE_FIELD_NUMBER: _ClassVar[int]
    TOP1_AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    TOP5_AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    PASSED_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZES_FIELD_NUMBER: _ClassVar[int]
    THRESHOLDS_FIELD_NUMBER: _ClassVar[int]
    runtime: str
    runtime_version: str
    precision: str
    device: str
    images: int
    max_abs_diff: float
    logit_cosine: float
    top1_agreement: float
    top5_agreement: float
    passed: bool
    batch_sizes: _containers.RepeatedScalarFieldContainer[int]
    thresholds: Thresholds
    def __init__(self, runtime: _Optional[str] = ..., runtime_version: _Optional[str] = ..., precision: _Optional[str] = ..., device: _Optional[str] = ..., images: _Optional[int] = ..., max_abs_diff: _Optional[float] = ..., logit_cosine: _Optional[float] = ..., top1_agreement: _Optional[float] = ..., top5_agreement: _Optional[float] = ..., passed: bool = ..., batch_sizes: _Optional[_Iterable[int]] = ..., thresholds: _Optional[_Union[Thresholds, _Mapping]] = ...) -> None: ...

class Thresholds(_message.Message):
    __slots__ = ("max_abs_diff", "logit_cosine", "top1_agreement", "top5_agreement")
    MAX_ABS_DIFF_FIELD_NUMBER: _ClassVar[int]
    LOGIT_COSINE_FIELD_NUMBER: _ClassVar[int]
    TOP1_AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    TOP5_AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    max_abs_diff: float
    logit_cosine: float
    top1_agreement: float
    top5_agreement: float
    def __init__(self, max_abs_diff: _Optional[float] = ..., logit_cosine: _Optional[float] = ..., top1_agreement: _Optional[float] = ..., top5_agreement: _Optional[float] = ...) -> None: ...

class GetLayersRequest(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class GetLayersReply(_message.Message):
    __slots__ = ("model", "version", "input_shape", "layers", "stages", "parameters", "macs")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INPUT_SHAPE_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    MACS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    input_shape: _containers.RepeatedScalarFieldContainer[int]
    layers: _containers.RepeatedCompositeFieldContainer[Layer]
    stages: _containers.RepeatedCompositeFieldContainer[Stage]
    parameters: int
    macs: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., input_shape: _Optional[_Iterable[int]] = ..., layers: _Optional[_Iterable[_Union[Layer, _Mapping]]] = ..., stages: _Optional[_Iterable[_Union[Stage, _Mapping]]] = ..., parameters: _Optional[int] = ..., macs: _Optional[int] = ...) -> None: ...

class Layer(_message.Message):
    __slots__ = ("name", "kind", "stage", "kernel", "stride", "padding", "groups", "input", "output", "parameters", "macs", "share", "receptive_field")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    KERNEL_FIELD_NUMBER: _ClassVar[int]
    STRIDE_FIELD_NUMBER: _ClassVar[int]
    PADDING_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    MACS_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    RECEPTIVE_FIELD_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    stage: str
    kernel: _containers.RepeatedScalarFieldContainer[int]
    stride: _containers.RepeatedScalarFieldContainer[int]
    padding: _containers.RepeatedScalarFieldContainer[int]
    groups: int
    input: _containers.RepeatedScalarFieldContainer[int]
    output: _containers.RepeatedScalarFieldContainer[int]
    parameters: int
    macs: int
    share: float
    receptive_field: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., stage: _Optional[str] = ..., kernel: _Optional[_Iterable[int]] = ..., stride: _Optional[_Iterable[int]] = ..., padding: _Optional[_Iterable[int]] = ..., groups: _Optional[int] = ..., input: _Optional[_Iterable[int]] = ..., output: _Optional[_Iterable[int]] = ..., parameters: _Optional[int] = ..., macs: _Optional[int] = ..., share: _Optional[float] = ..., receptive_field: _Optional[_Iterable[int]] = ...) -> None: ...

class Stage(_message.Message):
    __slots__ = ("name", "layers", "output", "parameters", "macs", "share", "receptive_field")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    MACS_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    RECEPTIVE_FIELD_FIELD_NUMBER: _ClassVar[int]
    name: str
    layers: int
    output: _containers.RepeatedScalarFieldContainer[int]
    parameters: int
    macs: int
    share: float
    receptive_field: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., layers: _Optional[int] = ..., output: _Optional[_Iterable[int]] = ..., parameters: _Optional[int] = ..., macs: _Optional[int] = ..., share: _Optional[float] = ..., receptive_field: _Optional[_Iterable[int]] = ...) -> None: ...
