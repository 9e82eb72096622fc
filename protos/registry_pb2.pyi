from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class RecordRequest(_message.Message):
    __slots__ = ("note",)
    NOTE_FIELD_NUMBER: _ClassVar[int]
    note: bytes
    def __init__(self, note: _Optional[bytes] = ...) -> None: ...

class RecordReply(_message.Message):
    __slots__ = ("receipt",)
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    receipt: bytes
    def __init__(self, receipt: _Optional[bytes] = ...) -> None: ...

class GetCheckpointRequest(_message.Message):
    __slots__ = ("with_cosigned",)
    WITH_COSIGNED_FIELD_NUMBER: _ClassVar[int]
    with_cosigned: bool
    def __init__(self, with_cosigned: _Optional[bool] = ...) -> None: ...

class GetCheckpointReply(_message.Message):
    __slots__ = ("checkpoint", "cosigned")
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    COSIGNED_FIELD_NUMBER: _ClassVar[int]
    checkpoint: bytes
    cosigned: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, checkpoint: _Optional[bytes] = ..., cosigned: _Optional[_Iterable[bytes]] = ...) -> None: ...

class CosignRequest(_message.Message):
    __slots__ = ("checkpoint",)
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    checkpoint: bytes
    def __init__(self, checkpoint: _Optional[bytes] = ...) -> None: ...

class CosignReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetConsistencyRequest(_message.Message):
    __slots__ = ("old_size", "new_size")
    OLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    NEW_SIZE_FIELD_NUMBER: _ClassVar[int]
    old_size: int
    new_size: int
    def __init__(self, old_size: _Optional[int] = ..., new_size: _Optional[int] = ...) -> None: ...

class GetConsistencyReply(_message.Message):
    __slots__ = ("hashes",)
    HASHES_FIELD_NUMBER: _ClassVar[int]
    hashes: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, hashes: _Optional[_Iterable[bytes]] = ...) -> None: ...

class GetChainRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetChainReply(_message.Message):
    __slots__ = ("next_seq", "head")
    NEXT_SEQ_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    next_seq: int
    head: str
    def __init__(self, next_seq: _Optional[int] = ..., head: _Optional[str] = ...) -> None: ...

class GetBaseRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetBaseReply(_message.Message):
    __slots__ = ("note", "receipt", "manifest")
    NOTE_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    note: bytes
    receipt: bytes
    manifest: bytes
    def __init__(self, note: _Optional[bytes] = ..., receipt: _Optional[bytes] = ..., manifest: _Optional[bytes] = ...) -> None: ...

class GetReleaseRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetReleaseReply(_message.Message):
    __slots__ = ("note", "receipt", "manifest")
    NOTE_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    note: bytes
    receipt: bytes
    manifest: bytes
    def __init__(self, note: _Optional[bytes] = ..., receipt: _Optional[bytes] = ..., manifest: _Optional[bytes] = ...) -> None: ...
