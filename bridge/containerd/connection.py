"""A gRPC channel to containerd.

Invariant: every call has a deadline and fails only with one of our errors.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from bridge.containerd.methods import NAMESPACE_HEADER, Method, channel_options, target
from bridge.containerd.rpc_errors import from_rpc_error, unreadable_response
from bridge.core.errors import TransientError

_Response = TypeVar("_Response", bound=Message)

_BROKEN_STATES = frozenset({grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN})


class Connection:
    """One channel; connects at the first call, and reconnects when containerd is back at the same path."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._channel = grpc.aio.insecure_channel(target(path), options=channel_options())

    @property
    def broken(self) -> bool:
        """Whether the last connection attempt failed, so that gRPC's backoff delays the next one."""
        return self._channel.get_state() in _BROKEN_STATES

    async def close(self) -> None:
        """Close the channel; calls in flight fail with a TransientError."""
        await self._channel.close()

    async def call(self, method: Method[_Response], request: Message, namespace: str, seconds: float) -> _Response:
        """Call a method and return the response.

        Raises:
            RpcError: containerd returned an error or an unreadable response, or did not respond within ``seconds``.
            TransientError: This connection was closed.
        """
        with self._translate_errors(method):
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(method.path)
            raw = await call(request.SerializeToString(), timeout=seconds, metadata=_headers(namespace))
            return method.response_type.FromString(raw)

    async def stream(
        self, method: Method[_Response], request: Message, namespace: str, seconds: float
    ) -> AsyncIterator[_Response]:
        """Yield the responses of a streaming method; ``seconds`` and errors as in ``call``."""
        with self._translate_errors(method):
            call: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(method.path)
            responses = call(request.SerializeToString(), timeout=seconds, metadata=_headers(namespace))
            try:
                async for raw in responses:
                    yield method.response_type.FromString(raw)
            finally:
                responses.cancel()

    @contextmanager
    def _translate_errors(self, method: Method[_Response]) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise from_rpc_error(error, method.purpose, self._path) from error
        except DecodeError as error:
            raise unreadable_response(method.path, self._path) from error
        except grpc.aio.UsageError as error:
            raise self._closed_error(method) from error
        except asyncio.CancelledError as error:
            if _is_cancelled():
                raise
            raise self._closed_error(method) from error  # gRPC cancels the calls of a channel that is closed

    def _closed_error(self, method: Method[_Response]) -> TransientError:
        return TransientError(f"containerd at {self._path}: connection closed; could not {method.purpose}")


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _headers(namespace: str) -> tuple[tuple[str, str], ...]:
    return ((NAMESPACE_HEADER, namespace),) if namespace else ()
