"""A response that reads a stored file in parts, so that slow clients do not keep whole files in memory."""

from __future__ import annotations

import logging

from llava_wire.errors import QueueUnavailable
from llava_wire.stores.files import FileStore, StoredFile
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llava_server.generation.disconnect import ClientDisconnected, cancel_on_disconnect
from llava_server.request_context import context_of

__all__ = ["PART_BYTES", "FileDownload"]

logger = logging.getLogger(__name__)

PART_BYTES = 1 << 18


class FileDownload(Response):
    """The content of a file. ``first_part`` was read before, so that a missing file has the right status.

    If the file is deleted or expires during the download, the connection is closed.
    """

    media_type = "application/octet-stream"

    def __init__(self, files: FileStore, file: StoredFile, first_part: bytes, *, tenant: str) -> None:
        super().__init__(
            headers={
                "content-length": str(file.size),
                "content-disposition": "attachment",
                "x-content-type-options": "nosniff",
            }
        )
        self._files = files
        self._file = file
        self._part: bytes | None = first_part
        self._tenant = tenant

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if context_of(scope).is_head:
            return
        try:
            await cancel_on_disconnect(receive, self._send_parts(send))
        except ClientDisconnected:
            logger.info("client of file %s disconnected", self._file.file_id)

    async def _send_parts(self, send: Send) -> None:
        num_sent = 0
        while self._part is not None:
            part, self._part = self._part, None
            num_sent += len(part)
            has_more = num_sent < self._file.size
            await send({"type": "http.response.body", "body": part, "more_body": has_more})
            del part  # it may be waiting to be sent while the next part is read
            if not has_more:
                return
            self._part = await self._next_part(num_sent)
        logger.warning("file %s was no longer available during a download", self._file.file_id)

    async def _next_part(self, first: int) -> bytes | None:
        try:
            return await self._files.read_part(self._file, first, PART_BYTES, tenant=self._tenant) or None
        except QueueUnavailable:
            return None
