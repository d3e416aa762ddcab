# SPDX-License-Identifier: Apache-2.0
"""Libraries that emit no metrics of their own, measured."""
