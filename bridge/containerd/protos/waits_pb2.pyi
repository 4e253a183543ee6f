from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WaitsRequest(_message.Message):
    __slots__ = ("waits",)
    WAITS_FIELD_NUMBER: _ClassVar[int]
    waits: _containers.RepeatedCompositeFieldContainer[TaskWait]
    def __init__(self, waits: _Optional[_Iterable[_Union[TaskWait, _Mapping]]] = ...) -> None: ...

class TaskWait(_message.Message):
    __slots__ = ("number", "namespace", "container_id")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    number: int
    namespace: str
    container_id: str
    def __init__(self, number: _Optional[int] = ..., namespace: _Optional[str] = ..., container_id: _Optional[str] = ...) -> None: ...

class WaitsResponse(_message.Message):
    __slots__ = ("ends",)
    ENDS_FIELD_NUMBER: _ClassVar[int]
    ends: _containers.RepeatedCompositeFieldContainer[WaitEnd]
    def __init__(self, ends: _Optional[_Iterable[_Union[WaitEnd, _Mapping]]] = ...) -> None: ...

class WaitEnd(_message.Message):
    __slots__ = ("number", "code", "details", "response")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    number: int
    code: int
    details: str
    response: bytes
    def __init__(self, number: _Optional[int] = ..., code: _Optional[int] = ..., details: _Optional[str] = ..., response: _Optional[bytes] = ...) -> None: ...
