# Makes every image: FLAVOUR is cpu (server, gateway), gpu (server on NVIDIA cards) or export (makes artifacts).
ARG PYTHON_IMAGE=python:3.13-slim
ARG FLAVOUR=cpu

FROM ${PYTHON_IMAGE} AS build
ARG FLAVOUR
# What the export image builds engines with; tensorrt only builds on the card that runs them.
ARG ENGINES=tensorrt-rtx
# Where pip gets packages from, if not from its default index. The last stage keeps nothing of it.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
WORKDIR /src
RUN python3 -m venv --without-pip /opt/topfive
COPY pyproject.toml constraints.txt README.md LICENSE ./
# The dependencies come first and alone, so that a change of the code does not install them again.
RUN set -eu; \
    case "${FLAVOUR}" in \
      cpu) extras=cpu,simd,import ;; \
      gpu) extras=gpu,simd,import,tensorrt,tensorrt-rtx ;; \
      export) extras=cpu,export,${ENGINES} ;; \
      *) echo "FLAVOUR is ${FLAVOUR}; it is cpu, gpu or export" >&2; exit 2 ;; \
    esac; \
    python3 -m pip --python /opt/topfive/bin/python install \
      --no-cache-dir --no-compile --disable-pip-version-check -c constraints.txt ".[${extras}]"
COPY . .
# Compiled here, because with a read-only root each start would compile again. `|| true`: some packages have files for
# other versions of Python.
RUN python3 -m pip --python /opt/topfive/bin/python install \
      --no-cache-dir --no-compile --disable-pip-version-check --no-deps --force-reinstall . \
    && { /opt/topfive/bin/python -m compileall -qq -j 0 --invalidation-mode unchecked-hash /opt/topfive/lib || true; }

FROM ${PYTHON_IMAGE} AS cpu
LABEL org.opencontainers.image.title="topfive" \
      org.opencontainers.image.description="Inference microservice for ImageNet classifiers" \
      org.opencontainers.image.licenses="MIT"
# A fixed number, so that folders of the host can belong to this user. Group 0 may write what the user may, because a
# container that runs as any other user id (`--user 1234`, OpenShift) is in that group.
RUN echo "topfive:x:10001:0::/nonexistent:/usr/sbin/nologin" >> /etc/passwd \
    && install -d -o 10001 -g 0 -m 0775 /artifacts /cache
COPY --from=build /opt/topfive /opt/topfive
# The root file system may be read-only: topfive writes to /tmp and /cache, and an export to /artifacts.
ENV PATH=/opt/topfive/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    TORCH_HOME=/cache/torch \
    TOPFIVE_ARTIFACTS=/artifacts \
    TOPFIVE_CACHE=/cache \
    TOPFIVE_HOST=0.0.0.0
WORKDIR /tmp
USER 10001:0
EXPOSE 8000 8001
STOPSIGNAL SIGTERM
ENTRYPOINT ["topfive"]
CMD ["serve"]

# The NVIDIA runtime of the host reads these.
FROM cpu AS gpu
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM gpu AS export
CMD ["export", "--help"]

FROM ${FLAVOUR}
