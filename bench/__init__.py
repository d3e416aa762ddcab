# SPDX-License-Identifier: Apache-2.0
"""Compare what recording and scraping cost with what they cost elsewhere; run it with ``make bench``."""
