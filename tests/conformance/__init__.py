# SPDX-License-Identifier: Apache-2.0
"""The product beside references that were not written here: prometheus_client, the stock reader, promtool."""
