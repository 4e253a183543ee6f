from google.protobuf import empty_pb2 as _empty_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class ServerResponse(_message.Message):
    __slots__ = ("uuid", "pid", "proxied_pid")
    UUID_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    PROXIED_PID_FIELD_NUMBER: _ClassVar[int]
    uuid: str
    pid: int
    proxied_pid: int
    def __init__(self, uuid: _Optional[str] = ..., pid: _Optional[int] = ..., proxied_pid: _Optional[int] = ...) -> None: ...
