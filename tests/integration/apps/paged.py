# SPDX-License-Identifier: Apache-2.0
"""An application that serves the metrics page on a route of its own."""

from serve import app as served

from jeeves_otel.prometheus import MetricsMiddleware

app = MetricsMiddleware(served)
