# SPDX-License-Identifier: Apache-2.0
"""An authority of an afternoon, with a server and a client that it vouches for."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from typing import TYPE_CHECKING

import grpc
import pytest

if TYPE_CHECKING:
    from pathlib import Path


class Certificates:
    """PEM files in *folder*: ``ca.pem``, ``server.pem`` with ``server.key``, ``client.pem`` with ``client.key``."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("no openssl on the path")
        self.folder = folder
        self._openssl("req", "-x509", "-days", "1", "-subj", "/CN=authority", *self._key("ca"), "-out", "ca.pem")
        for name in ("server", "client"):
            self._openssl("req", "-subj", f"/CN={name}", *self._key(name), "-out", f"{name}.csr")
            (folder / "extensions").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n", encoding="utf-8")
            by = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "extensions")
            self._openssl("x509", "-req", "-days", "1", "-in", f"{name}.csr", *by, "-out", f"{name}.pem")

    @staticmethod
    def _key(name: str) -> tuple[str, ...]:
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
        return (*curve, "-nodes", "-keyout", f"{name}.key")

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True, timeout=30)

    def path(self, name: str) -> str:
        """Return the path of one of the files."""
        return str(self.folder / name)

    def of_a_server(self) -> ssl.SSLContext:
        """Return what a server needs that asks its clients for a certificate."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self.path("ca.pem"))
        context.load_cert_chain(self.path("server.pem"), self.path("server.key"))
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def of_a_grpc_server(self) -> grpc.ServerCredentials:
        """Return the same for a server of gRPC."""
        key, chain, authority = ((self.folder / name).read_bytes() for name in ("server.key", "server.pem", "ca.pem"))
        return grpc.ssl_server_credentials([(key, chain)], authority, require_client_auth=True)
