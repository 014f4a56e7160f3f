from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ElementType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ELEMENT_TYPE_UNSPECIFIED: _ClassVar[ElementType]
    FLOAT32: _ClassVar[ElementType]
    FLOAT64: _ClassVar[ElementType]
    INT32: _ClassVar[ElementType]
    INT64: _ClassVar[ElementType]
    UINT32: _ClassVar[ElementType]
    BFLOAT16: _ClassVar[ElementType]
ELEMENT_TYPE_UNSPECIFIED: ElementType
FLOAT32: ElementType
FLOAT64: ElementType
INT32: ElementType
INT64: ElementType
UINT32: ElementType
BFLOAT16: ElementType

class Nothing(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Frame(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: Header
    chunk: bytes
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class Array(_message.Message):
    __slots__ = ("name", "type", "shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    type: ElementType
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., type: _Optional[_Union[ElementType, str]] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class Header(_message.Message):
    __slots__ = ("arrays", "timeout_ms", "vectors", "describe", "open_group", "initialise", "fetch", "pool", "pool_gradient", "row_gradient", "commit", "apply", "count_accesses", "draw_accesses", "clear_accesses", "count_touched", "write_cut", "load_cut", "entry_gradient", "begin_cut", "replace_rows", "done", "shard_info", "rows", "weight_gradient", "committed", "access_counted", "access_drawn", "touched", "cut_written", "failure")
    ARRAYS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    DESCRIBE_FIELD_NUMBER: _ClassVar[int]
    OPEN_GROUP_FIELD_NUMBER: _ClassVar[int]
    INITIALISE_FIELD_NUMBER: _ClassVar[int]
    FETCH_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    POOL_GRADIENT_FIELD_NUMBER: _ClassVar[int]
    ROW_GRADIENT_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    APPLY_FIELD_NUMBER: _ClassVar[int]
    COUNT_ACCESSES_FIELD_NUMBER: _ClassVar[int]
    DRAW_ACCESSES_FIELD_NUMBER: _ClassVar[int]
    CLEAR_ACCESSES_FIELD_NUMBER: _ClassVar[int]
    COUNT_TOUCHED_FIELD_NUMBER: _ClassVar[int]
    WRITE_CUT_FIELD_NUMBER: _ClassVar[int]
    LOAD_CUT_FIELD_NUMBER: _ClassVar[int]
    ENTRY_GRADIENT_FIELD_NUMBER: _ClassVar[int]
    BEGIN_CUT_FIELD_NUMBER: _ClassVar[int]
    REPLACE_ROWS_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    SHARD_INFO_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_GRADIENT_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    ACCESS_COUNTED_FIELD_NUMBER: _ClassVar[int]
    ACCESS_DRAWN_FIELD_NUMBER: _ClassVar[int]
    TOUCHED_FIELD_NUMBER: _ClassVar[int]
    CUT_WRITTEN_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    arrays: _containers.RepeatedCompositeFieldContainer[Array]
    timeout_ms: int
    vectors: ElementType
    describe: Describe
    open_group: OpenGroup
    initialise: Initialise
    fetch: Fetch
    pool: Pool
    pool_gradient: PoolGradient
    row_gradient: RowGradient
    commit: Commit
    apply: Apply
    count_accesses: CountAccesses
    draw_accesses: DrawAccesses
    clear_accesses: ClearAccesses
    count_touched: CountTouched
    write_cut: WriteCut
    load_cut: LoadCut
    entry_gradient: EntryGradient
    begin_cut: BeginCut
    replace_rows: ReplaceRows
    done: Done
    shard_info: ShardInfo
    rows: Rows
    weight_gradient: WeightGradient
    committed: Committed
    access_counted: AccessCounted
    access_drawn: AccessDrawn
    touched: Touched
    cut_written: CutWritten
    failure: Failure
    def __init__(self, arrays: _Optional[_Iterable[_Union[Array, _Mapping]]] = ..., timeout_ms: _Optional[int] = ..., vectors: _Optional[_Union[ElementType, str]] = ..., describe: _Optional[_Union[Describe, _Mapping]] = ..., open_group: _Optional[_Union[OpenGroup, _Mapping]] = ..., initialise: _Optional[_Union[Initialise, _Mapping]] = ..., fetch: _Optional[_Union[Fetch, _Mapping]] = ..., pool: _Optional[_Union[Pool, _Mapping]] = ..., pool_gradient: _Optional[_Union[PoolGradient, _Mapping]] = ..., row_gradient: _Optional[_Union[RowGradient, _Mapping]] = ..., commit: _Optional[_Union[Commit, _Mapping]] = ..., apply: _Optional[_Union[Apply, _Mapping]] = ..., count_accesses: _Optional[_Union[CountAccesses, _Mapping]] = ..., draw_accesses: _Optional[_Union[DrawAccesses, _Mapping]] = ..., clear_accesses: _Optional[_Union[ClearAccesses, _Mapping]] = ..., count_touched: _Optional[_Union[CountTouched, _Mapping]] = ..., write_cut: _Optional[_Union[WriteCut, _Mapping]] = ..., load_cut: _Optional[_Union[LoadCut, _Mapping]] = ..., entry_gradient: _Optional[_Union[EntryGradient, _Mapping]] = ..., begin_cut: _Optional[_Union[BeginCut, _Mapping]] = ..., replace_rows: _Optional[_Union[ReplaceRows, _Mapping]] = ..., done: _Optional[_Union[Done, _Mapping]] = ..., shard_info: _Optional[_Union[ShardInfo, _Mapping]] = ..., rows: _Optional[_Union[Rows, _Mapping]] = ..., weight_gradient: _Optional[_Union[WeightGradient, _Mapping]] = ..., committed: _Optional[_Union[Committed, _Mapping]] = ..., access_counted: _Optional[_Union[AccessCounted, _Mapping]] = ..., access_drawn: _Optional[_Union[AccessDrawn, _Mapping]] = ..., touched: _Optional[_Union[Touched, _Mapping]] = ..., cut_written: _Optional[_Union[CutWritten, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...

class Sender(_message.Message):
    __slots__ = ("session", "epoch", "writer")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    WRITER_FIELD_NUMBER: _ClassVar[int]
    session: str
    epoch: int
    writer: int
    def __init__(self, session: _Optional[str] = ..., epoch: _Optional[int] = ..., writer: _Optional[int] = ...) -> None: ...

class Describe(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class OpenGroup(_message.Message):
    __slots__ = ("session", "epoch", "writers")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    WRITERS_FIELD_NUMBER: _ClassVar[int]
    session: str
    epoch: int
    writers: int
    def __init__(self, session: _Optional[str] = ..., epoch: _Optional[int] = ..., writers: _Optional[int] = ...) -> None: ...

class Initialise(_message.Message):
    __slots__ = ("sender", "seq")
    SENDER_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    sender: Sender
    seq: int
    def __init__(self, sender: _Optional[_Union[Sender, _Mapping]] = ..., seq: _Optional[int] = ...) -> None: ...

class Fetch(_message.Message):
    __slots__ = ("table", "version", "track")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TRACK_FIELD_NUMBER: _ClassVar[int]
    table: str
    version: int
    track: bool
    def __init__(self, table: _Optional[str] = ..., version: _Optional[int] = ..., track: _Optional[bool] = ...) -> None: ...

class Pool(_message.Message):
    __slots__ = ("sender", "table", "version", "lookup", "keep", "track")
    SENDER_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LOOKUP_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    TRACK_FIELD_NUMBER: _ClassVar[int]
    sender: Sender
    table: str
    version: int
    lookup: int
    keep: bool
    track: bool
    def __init__(self, sender: _Optional[_Union[Sender, _Mapping]] = ..., table: _Optional[str] = ..., version: _Optional[int] = ..., lookup: _Optional[int] = ..., keep: _Optional[bool] = ..., track: _Optional[bool] = ...) -> None: ...

class PoolGradient(_message.Message):
    __slots__ = ("sender", "seq", "step", "lookup")
    SENDER_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    LOOKUP_FIELD_NUMBER: _ClassVar[int]
    sender: Sender
    seq: int
    step: int
    lookup: int
    def __init__(self, sender: _Optional[_Union[Sender, _Mapping]] = ..., seq: _Optional[int] = ..., step: _Optional[int] = ..., lookup: _Optional[int] = ...) -> None: ...

class RowGradient(_message.Message):
    __slots__ = ("sender", "seq", "step", "table")
    SENDER_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    sender: Sender
    seq: int
    step: int
    table: str
    def __init__(self, sender: _Optional[_Union[Sender, _Mapping]] = ..., seq: _Optional[int] = ..., step: _Optional[int] = ..., table: _Optional[str] = ...) -> None: ...

class EntryGradient(_message.Message):
    __slots__ = ("sender", "seq", "step", "table")
    SENDER_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    sender: Sender
    seq: int
    step: int
    table: str
    def __init__(self, sender: _Optional[_Union[Sender, _Mapping]] = ..., seq: _Optional[int] = ..., step: _Optional[int] = ..., table: _Optional[str] = ...) -> None: ...

class ReplaceRows(_message.Message):
    __slots__ = ("sender", "seq", "step", "table")
    SENDER_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    sender: Sender
    seq: int
    step: int
    table: str
    def __init__(self, sender: _Optional[_Union[Sender, _Mapping]] = ..., seq: _Optional[int] = ..., step: _Optional[int] = ..., table: _Optional[str] = ...) -> None: ...

class Commit(_message.Message):
    __slots__ = ("sender", "seq", "step", "contributions", "hold", "scale", "discard")
    SENDER_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    HOLD_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    DISCARD_FIELD_NUMBER: _ClassVar[int]
    sender: Sender
    seq: int
    step: int
    contributions: int
    hold: bool
    scale: float
    discard: bool
    def __init__(self, sender: _Optional[_Union[Sender, _Mapping]] = ..., seq: _Optional[int] = ..., step: _Optional[int] = ..., contributions: _Optional[int] = ..., hold: _Optional[bool] = ..., scale: _Optional[float] = ..., discard: _Optional[bool] = ...) -> None: ...

class Apply(_message.Message):
    __slots__ = ("sender", "step")
    SENDER_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    sender: Sender
    step: int
    def __init__(self, sender: _Optional[_Union[Sender, _Mapping]] = ..., step: _Optional[int] = ...) -> None: ...

class CountAccesses(_message.Message):
    __slots__ = ("table", "histogram_prefix")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    HISTOGRAM_PREFIX_FIELD_NUMBER: _ClassVar[int]
    table: str
    histogram_prefix: int
    def __init__(self, table: _Optional[str] = ..., histogram_prefix: _Optional[int] = ...) -> None: ...

class DrawAccesses(_message.Message):
    __slots__ = ("table", "sub_keys", "side")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    SUB_KEYS_FIELD_NUMBER: _ClassVar[int]
    SIDE_FIELD_NUMBER: _ClassVar[int]
    table: str
    sub_keys: int
    side: int
    def __init__(self, table: _Optional[str] = ..., sub_keys: _Optional[int] = ..., side: _Optional[int] = ...) -> None: ...

class ClearAccesses(_message.Message):
    __slots__ = ("table",)
    TABLE_FIELD_NUMBER: _ClassVar[int]
    table: str
    def __init__(self, table: _Optional[str] = ...) -> None: ...

class CountTouched(_message.Message):
    __slots__ = ("table", "since")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    table: str
    since: int
    def __init__(self, table: _Optional[str] = ..., since: _Optional[int] = ...) -> None: ...

class BeginCut(_message.Message):
    __slots__ = ("sender", "folder", "step", "number")
    SENDER_FIELD_NUMBER: _ClassVar[int]
    FOLDER_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    sender: Sender
    folder: str
    step: int
    number: int
    def __init__(self, sender: _Optional[_Union[Sender, _Mapping]] = ..., folder: _Optional[str] = ..., step: _Optional[int] = ..., number: _Optional[int] = ...) -> None: ...

class WriteCut(_message.Message):
    __slots__ = ("sender", "folder", "step", "number")
    SENDER_FIELD_NUMBER: _ClassVar[int]
    FOLDER_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    sender: Sender
    folder: str
    step: int
    number: int
    def __init__(self, sender: _Optional[_Union[Sender, _Mapping]] = ..., folder: _Optional[str] = ..., step: _Optional[int] = ..., number: _Optional[int] = ...) -> None: ...

class LoadCut(_message.Message):
    __slots__ = ("sender", "folder", "seq")
    SENDER_FIELD_NUMBER: _ClassVar[int]
    FOLDER_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    sender: Sender
    folder: str
    seq: int
    def __init__(self, sender: _Optional[_Union[Sender, _Mapping]] = ..., folder: _Optional[str] = ..., seq: _Optional[int] = ...) -> None: ...

class Done(_message.Message):
    __slots__ = ("duplicate",)
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    duplicate: bool
    def __init__(self, duplicate: _Optional[bool] = ...) -> None: ...

class ShardInfo(_message.Message):
    __slots__ = ("shard", "shards", "placement", "incarnation", "version", "epoch", "writers", "tables", "arena", "logged")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    WRITERS_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    ARENA_FIELD_NUMBER: _ClassVar[int]
    LOGGED_FIELD_NUMBER: _ClassVar[int]
    shard: int
    shards: int
    placement: str
    incarnation: str
    version: int
    epoch: int
    writers: int
    tables: str
    arena: str
    logged: bool
    def __init__(self, shard: _Optional[int] = ..., shards: _Optional[int] = ..., placement: _Optional[str] = ..., incarnation: _Optional[str] = ..., version: _Optional[int] = ..., epoch: _Optional[int] = ..., writers: _Optional[int] = ..., tables: _Optional[str] = ..., arena: _Optional[str] = ..., logged: _Optional[bool] = ...) -> None: ...

class Rows(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WeightGradient(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Committed(_message.Message):
    __slots__ = ("version", "applied")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    version: int
    applied: bool
    def __init__(self, version: _Optional[int] = ..., applied: _Optional[bool] = ...) -> None: ...

class AccessCounted(_message.Message):
    __slots__ = ("rows_used", "accesses", "weight", "weight_log_weight")
    ROWS_USED_FIELD_NUMBER: _ClassVar[int]
    ACCESSES_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_LOG_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    rows_used: int
    accesses: int
    weight: float
    weight_log_weight: float
    def __init__(self, rows_used: _Optional[int] = ..., accesses: _Optional[int] = ..., weight: _Optional[float] = ..., weight_log_weight: _Optional[float] = ...) -> None: ...

class AccessDrawn(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Touched(_message.Message):
    __slots__ = ("rows",)
    ROWS_FIELD_NUMBER: _ClassVar[int]
    rows: int
    def __init__(self, rows: _Optional[int] = ...) -> None: ...

class CutWritten(_message.Message):
    __slots__ = ("files",)
    FILES_FIELD_NUMBER: _ClassVar[int]
    files: str
    def __init__(self, files: _Optional[str] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("kind", "message")
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    kind: str
    message: str
    def __init__(self, kind: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...
