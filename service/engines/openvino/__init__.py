"""OpenVINO, the default runtime on a CPU."""
