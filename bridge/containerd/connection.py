"""A gRPC channel to containerd, on which every call has a deadline and fails with one of our errors only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from bridge.containerd.failures import RefusedError, refusal
from bridge.containerd.rpc import NAMESPACE_HEADER, Method, channel_options, target
from bridge.core.errors import TransientError

_Answer = TypeVar("_Answer", bound=Message)

_BROKEN = frozenset({grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN})


class Connection:
    """One channel, connected at the first call, and again whenever containerd is back at the same path."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._channel = grpc.aio.insecure_channel(target(path), options=channel_options())

    @property
    def broken(self) -> bool:
        """Whether the last attempt to connect failed: the next one would have to wait its turn."""
        return self._channel.get_state() in _BROKEN

    async def close(self) -> None:
        """Let go; calls under way fail with a TransientError."""
        await self._channel.close()

    async def call(self, method: Method[_Answer], request: Message, namespace: str, seconds: float) -> _Answer:
        """Return the answer.

        Raises:
            RefusedError: containerd says no, or nothing within ``seconds``.
            TransientError: The answer cannot be read, or the connection was closed by us.
        """
        with self._translating(method):
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(method.path)
            raw = await call(request.SerializeToString(), timeout=seconds, metadata=_headers(namespace))
            return method.answer.FromString(raw)

    async def stream(
        self, method: Method[_Answer], request: Message, namespace: str, seconds: float
    ) -> AsyncIterator[_Answer]:
        """Return the answers of a method that gives many; ``seconds`` and the errors as above."""
        with self._translating(method):
            call: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(method.path)
            answers = call(request.SerializeToString(), timeout=seconds, metadata=_headers(namespace))
            try:
                async for raw in answers:
                    yield method.answer.FromString(raw)
            finally:
                answers.cancel()

    @contextmanager
    def _translating(self, method: Method[_Answer]) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise refusal(error, method.doing, self._path) from error
        except DecodeError as error:
            text = f"containerd at {self._path} gave an unreadable answer: {method.path}"
            raise RefusedError(text, grpc.StatusCode.DATA_LOSS) from error
        except grpc.aio.UsageError as error:
            raise self._closed(method) from error
        except asyncio.CancelledError as error:
            if _cancelled():
                raise
            raise self._closed(method) from error  # gRPC cancels what waits on a channel that is closed

    def _closed(self, method: Method[_Answer]) -> TransientError:
        return TransientError(f"the connection to containerd at {self._path} was closed: could not {method.doing}")


def _cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _headers(namespace: str) -> tuple[tuple[str, str], ...]:
    return ((NAMESPACE_HEADER, namespace),) if namespace else ()
