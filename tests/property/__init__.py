# SPDX-License-Identifier: Apache-2.0
"""Laws that hold for whatever comes."""

from hypothesis import settings

# The same examples in every run: a failure in CI is a failure here.
LAWS = settings(max_examples=60, deadline=None, derandomize=True, database=None)
