# The gateway of the demo with its instrumentation; with other commands, its kernel and the model server.
FROM python:3.11.13-slim-bookworm AS build

RUN pip install --no-cache-dir uv==0.13.8
# Copies instead of links, because the cache stays behind in this stage; bytecode now, because the service cannot write it.
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PROJECT_ENVIRONMENT=/opt/jeeves UV_PYTHON_DOWNLOADS=never

WORKDIR /src
# Dependencies first: they change less often than the code, and their layer is kept.
COPY pyproject.toml uv.lock ./
RUN uv sync --locked --no-dev --extra demo --no-install-project
COPY README.md LICENSE ./
COPY jeeves_otel ./jeeves_otel
RUN uv sync --locked --no-dev --extra demo --no-editable


FROM python:3.11.13-slim-bookworm

RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin jeeves \
    && install --directory --owner jeeves --group jeeves /var/lib/jeeves
COPY --from=build /opt/jeeves /opt/jeeves

# METRICS_HOST: whoever scrapes stands outside of the container.
ENV PATH=/opt/jeeves/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    METRICS_HOST=0.0.0.0 \
    OTEL_SERVICE_NAME=jeeves-demo \
    DATABASE_URL=sqlite:////var/lib/jeeves/demo.db

USER 10001:10001
WORKDIR /var/lib/jeeves
# Service, its page, and that of the kernel beside it.
EXPOSE 8000 9090 9091

HEALTHCHECK --interval=15s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]

CMD ["opentelemetry-instrument", "python", "-m", "uvicorn", "jeeves_otel.demo.service:app", "--host", "0.0.0.0", "--port", "8000"]
