# SPDX-License-Identifier: Apache-2.0
"""A small agent service, instrumented as a user would do it, and a driver that shows what comes out.

Read `service` first (the gateway), then `agents` (the pipeline) and `language_model` (the calls); everything else is
the stage: `store`, `llm_server`, and `driver` with its traffic, its OTLP receiver and its report.
"""
