"""The networks topfive knows, and the artifact that carries an exported one. Importing this package loads no torch."""

import os

# ONNX Runtime reads this at its import. Without it ONNX Runtime sends usage data to its maker, and keeps a device id in
# the user's cache. Every command imports this package before; processes that it starts inherit the variable.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
