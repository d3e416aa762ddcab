# SPDX-License-Identifier: Apache-2.0
"""An application that formats its lines as docs/howto/context.md says, and writes one inside a pipeline and one outside."""

import logging
import sys

from jeeves_otel import pipeline

logging.basicConfig(stream=sys.stdout, format="%(otelTraceID)s %(otelSpanID)s %(message)s")
log = logging.getLogger("app")
log.warning("outside")
with pipeline("chat"):
    log.warning("inside")
print("ready", flush=True)
sys.stdin.read()
