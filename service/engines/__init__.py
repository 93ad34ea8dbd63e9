"""Engines run a batch on a piece of hardware; each file is one runtime. They know nothing of requests."""

import sys

# When it is imported OpenVINO reports that to a statistics service, from a forked process: not from a server.
# Without this package it uses a stub of its own instead.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
