# SPDX-License-Identifier: Apache-2.0
"""An application that logs while it is loaded."""

import logging

from wsgi import app  # noqa: F401 - what is served

logging.getLogger(__name__).warning("loaded")
