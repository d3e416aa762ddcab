# SPDX-License-Identifier: Apache-2.0
"""What Prometheus takes in a rule and what it refuses: `check` is to say so in unit tests, Prometheus in integration."""

from __future__ import annotations

# Every function and form that Prometheus 3.15 refuses unless it is told otherwise.
EXPERIMENTAL = (
    "jeeves_db_pool_size + fill(0) jeeves_db_pool_active_connections",
    "jeeves_db_pool_size > end()",
    "jeeves_db_pool_size > range()",
    "jeeves_db_pool_size > start()",
    "start_timestamp(jeeves_db_pool_size)",
    "jeeves_db_pool_size > step()",
    "info(jeeves_db_pool_size)",
    "jeeves_db_pool_size > max_of(1, 2)",
    "jeeves_db_pool_size > min_of(1, 2)",
    "mad_over_time(jeeves_db_pool_size[5m])",
    "limitk(1, jeeves_db_pool_size)",
    "limit_ratio(0.5, jeeves_db_pool_size)",
    "double_exponential_smoothing(jeeves_db_pool_size[5m], 0.5, 0.5)",
    'histogram_quantiles(rate(jeeves_tool_duration_seconds_bucket[5m]), "q", 0.5)',
    'sort_by_label(jeeves_db_pool_size, "job")',
    'sort_by_label_desc(jeeves_db_pool_size, "job")',
    "ts_of_first_over_time(jeeves_db_pool_size[5m])",
    "ts_of_last_over_time(jeeves_db_pool_size[5m])",
    "ts_of_max_over_time(jeeves_db_pool_size[5m])",
    "ts_of_min_over_time(jeeves_db_pool_size[5m])",
)

# What is a length of time for Prometheus, and what is none.
LENGTHS = {
    "15s": True,
    "1h30m": True,
    "1y2w3d4h5m6s7ms": True,
    "292y": True,
    "293y": False,
    "292y100d": True,
    "292y200d": False,
    "9999999y": False,
    "30m1h": False,
    "5m5m": False,
    "\N{ARABIC-INDIC DIGIT FIVE}m": False,
    "5m ": False,
    "m": False,
    "5": False,
    "0s": False,
    "1.5h": False,
}
