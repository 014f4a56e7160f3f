from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JobState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_STATE_UNSPECIFIED: _ClassVar[JobState]
    QUEUED: _ClassVar[JobState]
    STARTING: _ClassVar[JobState]
    RUNNING: _ClassVar[JobState]
    RECOVERING: _ClassVar[JobState]
    PAUSING: _ClassVar[JobState]
    PAUSED: _ClassVar[JobState]
    SUCCEEDED: _ClassVar[JobState]
    FAILED: _ClassVar[JobState]
    CANCELLED: _ClassVar[JobState]

class Wanted(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WANTED_UNSPECIFIED: _ClassVar[Wanted]
    RUN: _ClassVar[Wanted]
    PAUSE: _ClassVar[Wanted]
    CANCEL: _ClassVar[Wanted]
JOB_STATE_UNSPECIFIED: JobState
QUEUED: JobState
STARTING: JobState
RUNNING: JobState
RECOVERING: JobState
PAUSING: JobState
PAUSED: JobState
SUCCEEDED: JobState
FAILED: JobState
CANCELLED: JobState
WANTED_UNSPECIFIED: Wanted
RUN: Wanted
PAUSE: Wanted
CANCEL: Wanted

class Resources(_message.Message):
    __slots__ = ("cpus", "gpus", "memory_bytes")
    CPUS_FIELD_NUMBER: _ClassVar[int]
    GPUS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    cpus: float
    gpus: float
    memory_bytes: int
    def __init__(self, cpus: _Optional[float] = ..., gpus: _Optional[float] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class Demand(_message.Message):
    __slots__ = ("shards", "shard", "trainers", "trainer")
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    TRAINERS_FIELD_NUMBER: _ClassVar[int]
    TRAINER_FIELD_NUMBER: _ClassVar[int]
    shards: int
    shard: Resources
    trainers: int
    trainer: Resources
    def __init__(self, shards: _Optional[int] = ..., shard: _Optional[_Union[Resources, _Mapping]] = ..., trainers: _Optional[int] = ..., trainer: _Optional[_Union[Resources, _Mapping]] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("id", "tenant", "name", "priority", "demand", "state", "reason", "wanted", "attempt", "submitted_at", "changed_at", "started_at", "ended_at")
    ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    DEMAND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_AT_FIELD_NUMBER: _ClassVar[int]
    CHANGED_AT_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_FIELD_NUMBER: _ClassVar[int]
    id: str
    tenant: str
    name: str
    priority: int
    demand: Demand
    state: JobState
    reason: str
    wanted: Wanted
    attempt: int
    submitted_at: float
    changed_at: float
    started_at: float
    ended_at: float
    def __init__(self, id: _Optional[str] = ..., tenant: _Optional[str] = ..., name: _Optional[str] = ..., priority: _Optional[int] = ..., demand: _Optional[_Union[Demand, _Mapping]] = ..., state: _Optional[_Union[JobState, str]] = ..., reason: _Optional[str] = ..., wanted: _Optional[_Union[Wanted, str]] = ..., attempt: _Optional[int] = ..., submitted_at: _Optional[float] = ..., changed_at: _Optional[float] = ..., started_at: _Optional[float] = ..., ended_at: _Optional[float] = ...) -> None: ...

class Change(_message.Message):
    __slots__ = ("time", "state", "reason")
    TIME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    time: float
    state: JobState
    reason: str
    def __init__(self, time: _Optional[float] = ..., state: _Optional[_Union[JobState, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class SubmitRequest(_message.Message):
    __slots__ = ("request_id", "spec", "priority")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    spec: str
    priority: int
    def __init__(self, request_id: _Optional[str] = ..., spec: _Optional[str] = ..., priority: _Optional[int] = ...) -> None: ...

class JobRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class JobDetails(_message.Message):
    __slots__ = ("job", "spec", "changes", "run")
    JOB_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    job: Job
    spec: str
    changes: _containers.RepeatedCompositeFieldContainer[Change]
    run: str
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ..., spec: _Optional[str] = ..., changes: _Optional[_Iterable[_Union[Change, _Mapping]]] = ..., run: _Optional[str] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ("states", "name", "page_size", "page_token")
    STATES_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    states: _containers.RepeatedScalarFieldContainer[JobState]
    name: str
    page_size: int
    page_token: str
    def __init__(self, states: _Optional[_Iterable[_Union[JobState, str]]] = ..., name: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class JobPage(_message.Message):
    __slots__ = ("jobs", "next_page_token")
    JOBS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[Job]
    next_page_token: str
    def __init__(self, jobs: _Optional[_Iterable[_Union[Job, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class AskRequest(_message.Message):
    __slots__ = ("id", "reason")
    ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    id: str
    reason: str
    def __init__(self, id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("id", "changes_seen")
    ID_FIELD_NUMBER: _ClassVar[int]
    CHANGES_SEEN_FIELD_NUMBER: _ClassVar[int]
    id: str
    changes_seen: int
    def __init__(self, id: _Optional[str] = ..., changes_seen: _Optional[int] = ...) -> None: ...

class WatchUpdate(_message.Message):
    __slots__ = ("job", "changes", "changes_seen", "progress", "shards")
    JOB_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    CHANGES_SEEN_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    job: Job
    changes: _containers.RepeatedCompositeFieldContainer[Change]
    changes_seen: int
    progress: Progress
    shards: _containers.RepeatedCompositeFieldContainer[ShardLoad]
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ..., changes: _Optional[_Iterable[_Union[Change, _Mapping]]] = ..., changes_seen: _Optional[int] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., shards: _Optional[_Iterable[_Union[ShardLoad, _Mapping]]] = ...) -> None: ...

class ShardLoad(_message.Message):
    __slots__ = ("shard", "address", "busy_cores", "calls_per_second", "memory_bytes")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    BUSY_CORES_FIELD_NUMBER: _ClassVar[int]
    CALLS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    shard: int
    address: str
    busy_cores: float
    calls_per_second: float
    memory_bytes: int
    def __init__(self, shard: _Optional[int] = ..., address: _Optional[str] = ..., busy_cores: _Optional[float] = ..., calls_per_second: _Optional[float] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("phase", "step", "steps", "loss", "tokens_per_second", "memory_usage", "seconds_left")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USAGE_FIELD_NUMBER: _ClassVar[int]
    SECONDS_LEFT_FIELD_NUMBER: _ClassVar[int]
    phase: str
    step: int
    steps: int
    loss: float
    tokens_per_second: float
    memory_usage: float
    seconds_left: float
    def __init__(self, phase: _Optional[str] = ..., step: _Optional[int] = ..., steps: _Optional[int] = ..., loss: _Optional[float] = ..., tokens_per_second: _Optional[float] = ..., memory_usage: _Optional[float] = ..., seconds_left: _Optional[float] = ...) -> None: ...

class LogsRequest(_message.Message):
    __slots__ = ("id", "offset", "tail", "follow")
    ID_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    TAIL_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    id: str
    offset: int
    tail: int
    follow: bool
    def __init__(self, id: _Optional[str] = ..., offset: _Optional[int] = ..., tail: _Optional[int] = ..., follow: _Optional[bool] = ...) -> None: ...

class LogPart(_message.Message):
    __slots__ = ("text", "next_offset")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    NEXT_OFFSET_FIELD_NUMBER: _ClassVar[int]
    text: bytes
    next_offset: int
    def __init__(self, text: _Optional[bytes] = ..., next_offset: _Optional[int] = ...) -> None: ...

class MetricsRequest(_message.Message):
    __slots__ = ("id", "after_step", "limit")
    ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_STEP_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    id: str
    after_step: int
    limit: int
    def __init__(self, id: _Optional[str] = ..., after_step: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class MetricsPage(_message.Message):
    __slots__ = ("records", "more")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedScalarFieldContainer[str]
    more: bool
    def __init__(self, records: _Optional[_Iterable[str]] = ..., more: _Optional[bool] = ...) -> None: ...

class Cut(_message.Message):
    __slots__ = ("step", "written_at", "bytes")
    STEP_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_AT_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    step: int
    written_at: float
    bytes: int
    def __init__(self, step: _Optional[int] = ..., written_at: _Optional[float] = ..., bytes: _Optional[int] = ...) -> None: ...

class CutList(_message.Message):
    __slots__ = ("cuts",)
    CUTS_FIELD_NUMBER: _ClassVar[int]
    cuts: _containers.RepeatedCompositeFieldContainer[Cut]
    def __init__(self, cuts: _Optional[_Iterable[_Union[Cut, _Mapping]]] = ...) -> None: ...

class CutFile(_message.Message):
    __slots__ = ("name", "bytes", "sha256")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    name: str
    bytes: int
    sha256: str
    def __init__(self, name: _Optional[str] = ..., bytes: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class CutFileList(_message.Message):
    __slots__ = ("files",)
    FILES_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedCompositeFieldContainer[CutFile]
    def __init__(self, files: _Optional[_Iterable[_Union[CutFile, _Mapping]]] = ...) -> None: ...

class ReadCutFileRequest(_message.Message):
    __slots__ = ("id", "name", "offset")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    offset: int
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class CutFilePart(_message.Message):
    __slots__ = ("content",)
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    content: bytes
    def __init__(self, content: _Optional[bytes] = ...) -> None: ...

class ReshardRequest(_message.Message):
    __slots__ = ("id", "shards", "trainers")
    ID_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    TRAINERS_FIELD_NUMBER: _ClassVar[int]
    id: str
    shards: int
    trainers: int
    def __init__(self, id: _Optional[str] = ..., shards: _Optional[int] = ..., trainers: _Optional[int] = ...) -> None: ...

class ReshardAnswer(_message.Message):
    __slots__ = ("shards", "trainers", "pause_seconds")
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    TRAINERS_FIELD_NUMBER: _ClassVar[int]
    PAUSE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    shards: int
    trainers: int
    pause_seconds: float
    def __init__(self, shards: _Optional[int] = ..., trainers: _Optional[int] = ..., pause_seconds: _Optional[float] = ...) -> None: ...

class ClusterRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ClusterAnswer(_message.Message):
    __slots__ = ("hosts", "taken", "jobs_waiting", "jobs_active")
    HOSTS_FIELD_NUMBER: _ClassVar[int]
    TAKEN_FIELD_NUMBER: _ClassVar[int]
    JOBS_WAITING_FIELD_NUMBER: _ClassVar[int]
    JOBS_ACTIVE_FIELD_NUMBER: _ClassVar[int]
    hosts: _containers.RepeatedCompositeFieldContainer[Resources]
    taken: Resources
    jobs_waiting: int
    jobs_active: int
    def __init__(self, hosts: _Optional[_Iterable[_Union[Resources, _Mapping]]] = ..., taken: _Optional[_Union[Resources, _Mapping]] = ..., jobs_waiting: _Optional[int] = ..., jobs_active: _Optional[int] = ...) -> None: ...
