# The base is an argument: any image that has Python 3.11 or newer under /usr/local, pinned by digest where it matters.
ARG BASE=python:3.13-slim-bookworm

FROM ${BASE} AS build
WORKDIR /src
RUN python -m venv /opt/dispatcher
COPY requirements.lock requirements-build.lock ./
RUN /opt/dispatcher/bin/python -m pip install --no-cache-dir --disable-pip-version-check --no-compile \
        --require-hashes --only-binary :all: --requirement requirements.lock \
 && python -m venv /opt/build \
 && /opt/build/bin/python -m pip install --no-cache-dir --disable-pip-version-check \
        --require-hashes --only-binary :all: --requirement requirements-build.lock
COPY pyproject.toml README.md LICENSE ./
COPY dispatcher ./dispatcher
RUN /opt/build/bin/python -m pip wheel --no-cache-dir --disable-pip-version-check \
        --no-deps --no-build-isolation --wheel-dir /wheels . \
 && /opt/dispatcher/bin/python -m pip install --no-cache-dir --disable-pip-version-check \
        --no-deps --no-index --no-compile /wheels/*.whl \
 && /opt/dispatcher/bin/python -m pip uninstall --yes pip \
 && python -m compileall -q /opt/dispatcher/lib

FROM ${BASE}
# 10001 is nobody's uid elsewhere; its folder must belong to it before the volume is declared.
RUN groupadd --gid 10001 dispatcher \
 && useradd --uid 10001 --gid dispatcher --no-create-home --home-dir /var/lib/dispatcher --shell /usr/sbin/nologin dispatcher \
 && install --directory --owner dispatcher --group dispatcher --mode 0700 /var/lib/dispatcher
COPY --from=build /opt/dispatcher /opt/dispatcher
ENV PATH=/opt/dispatcher/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MALLOC_ARENA_MAX=2 \
    DISPATCHER_LISTEN=0.0.0.0:9464 \
    DISPATCHER_SPOOL=/var/lib/dispatcher
USER 10001:10001
WORKDIR /var/lib/dispatcher
VOLUME /var/lib/dispatcher
EXPOSE 9464
STOPSIGNAL SIGTERM
ENTRYPOINT ["dispatcher"]
CMD ["serve"]
