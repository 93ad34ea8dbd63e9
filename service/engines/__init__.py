"""Engines run batches on a device; each file is one runtime. They know nothing of requests."""

import sys

# At its import OpenVINO sends usage statistics from a forked process, which a server must not do.
# Without this package it uses a stub instead.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
