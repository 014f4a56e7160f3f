"""`pkm eval`, `generate`, `inspect` and `export` of a job whose files can't be reached, beside the same commands on its
folder; and who asks for other files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from typer.testing import CliRunner

from protos import jobs_pb2 as pb
from service.cli import app
from service.client import Client
from service.jobs.cut_files import CutFiles
from service.jobs.errors import JobConflictError
from service.jobs.folder import ServiceFolder
from service.jobs.views import Views
from service.remote_run import cache_folder, fetch_run
from tests.cutting_proxy import CuttingProxy
from tests.service.jobs.running_service import TENANTS, Service, running_service
from tests.service.jobs.test_api import refused
from tests.small_job import small_job
from workers.run_folder import RunFolder
from workers.trainer_group import train

STEPS = {"train__steps": 6, "train__cut_every": 3, "train__warmup_steps": 2, "train__evaluate_every": 3}

pytestmark = pytest.mark.timeout(600)  # kernels are compiled, where none of them has run before


@dataclass(frozen=True)
class Trained:
    """A job of a service, which it has trained in `run`."""

    service: Service
    job: str
    run: RunFolder

    def client(self) -> Client:
        return Client(f"127.0.0.1:{self.service.port}", TENANTS["ann"])


@dataclass
class Spy:
    """At the service: which files were asked for, and from where on; and whether it says that its jobs are elsewhere."""

    reads: list[tuple[str, int]] = field(default_factory=list)
    elsewhere: bool = False


@pytest.fixture(scope="module")
def spy() -> Iterator[Spy]:
    found, get, read = Spy(), Views.get, CutFiles.read

    async def spied_get(self: Views, request: pb.JobRequest, tenant: str) -> pb.JobDetails:
        details = await get(self, request, tenant)
        if found.elsewhere:
            details.run = "/on/another/host"
        return details

    async def spied_read(
        self: CutFiles, request: pb.ReadCutFileRequest, tenant: str
    ) -> AsyncIterator[pb.CutFilePart]:
        found.reads.append((request.name, request.offset))
        async for part in read(self, request, tenant):
            yield part

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Views, "get", spied_get)
        patch.setattr(CutFiles, "read", spied_read)
        yield found


@pytest.fixture(scope="module")
def trained(spy: Spy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    folder = tmp_path_factory.mktemp("served") / "service"
    with running_service(folder) as service:
        spec = small_job(service.data / "shared" / "corpus", **STEPS)
        with Client(f"127.0.0.1:{service.port}", TENANTS["ann"]) as client:
            job = client.submit(spec).id
        run = ServiceFolder(folder).run("ann", job)
        run.create(spec)
        train(spec, run, on_progress=lambda _: None)
        yield Trained(service, job, run)


@pytest.fixture
def reads(spy: Spy) -> list[tuple[str, int]]:
    spy.reads.clear()
    return spy.reads


# ---- the commands ------------------------------------------------------------------------------------------------


def test_a_job_in_another_place_is_evaluated_as_in_its_folder(
    trained: Trained, spy: Spy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text(TENANTS["ann"])
    for name, value in {
        "PKM_SERVER": f"127.0.0.1:{trained.service.port}",
        "PKM_TOKEN_FILE": str(tmp_path / "token"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "COLUMNS": "200",
    }.items():
        monkeypatch.setenv(name, value)

    def printed(run: str, command: str, *arguments: str) -> str:
        result = CliRunner().invoke(app, [command, run, *arguments])
        assert result.exit_code == 0, result.stderr
        told.append(result.stderr)
        return result.stdout

    told: list[str] = []
    commands = [
        ("eval", "-o", "json"),
        ("eval", "--split", "validation", "--json"),
        ("inspect", "-o", "json"),
        ("generate", "--prompt", "Fellow", "--tokens", "8"),
    ]
    near = [printed(str(trained.run.path), *command) for command in commands]
    assert near == [printed(trained.job, *command) for command in commands]  # its folder is reached
    assert not (tmp_path / "cache").exists()

    monkeypatch.setattr(spy, "elsewhere", True)
    assert near == [printed(trained.job[:8], *command) for command in commands]
    assert f"Fetching the last cut of {trained.job}" in told[-4]
    cache = cache_folder(f"127.0.0.1:{trained.service.port}", trained.job)
    assert cache.is_relative_to(tmp_path / "cache")
    assert cache.stat().st_mode & 0o077 == 0
    assert not (cache / "corpus" / "train.arrow").exists()
    for run, target in ((str(trained.run.path), "near"), ("small", "far")):  # by its name, too
        figures = json.loads(printed(run, "export", str(tmp_path / target), "-o", "json"))
        assert figures["step"] == 6
    for path in (tmp_path / "near").iterdir():
        assert path.read_bytes() == (tmp_path / "far" / path.name).read_bytes(), path.name


# ---- fetching ----------------------------------------------------------------------------------------------------


def test_what_is_there_and_equal_is_not_fetched_again(
    trained: Trained, tmp_path: Path, reads: list[tuple[str, int]]
) -> None:
    with trained.client() as client:
        run = fetch_run(client, trained.job, tmp_path / "run")
        assert len(reads) == len(client.cut_files(trained.job)) == len(set(reads))
        reads.clear()
        fetch_run(client, trained.job, tmp_path / "run")
        assert reads == []
        damaged = next(run.cuts_path.rglob("dense.safetensors"))
        content = damaged.read_bytes()
        damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        fetch_run(client, trained.job, tmp_path / "run")
        assert [name for name, _ in reads] == [str(damaged.relative_to(run.path))]
        assert damaged.read_bytes() == content


def test_a_fetch_that_was_ended_goes_on_and_a_partial_file_of_something_else_is_thrown_away(
    trained: Trained, tmp_path: Path, reads: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.jobs.cut_files.PART_BYTES", 1000)

    def ended(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with trained.client() as client:
        with pytest.raises(KeyboardInterrupt):
            fetch_run(client, trained.job, tmp_path / "run", ended)
        (interrupted,) = (tmp_path / "run").rglob("*.partial")
        had = interrupted.stat().st_size
        fetched_before = {name for name, _ in reads}
        reads.clear()
        whole = str(interrupted.relative_to(tmp_path / "run")).removesuffix(".partial")
        fetch_run(client, trained.job, tmp_path / "run")
        assert reads[0] == (whole, had)
        assert had > 0
        assert fetched_before.isdisjoint(name for name, _ in reads[1:])

        (tmp_path / "run" / whole).unlink()
        interrupted.write_bytes(b"x" * 500)
        reads.clear()
        fetch_run(client, trained.job, tmp_path / "run")
        assert reads == [(whole, 500), (whole, 0)]
    assert_same_files(tmp_path / "run" / "cuts" / "step-00000006", trained.run.cuts_path / "step-00000006")


def assert_same_files(one: Path, other: Path) -> None:
    for path in one.iterdir():
        assert path.read_bytes() == (other / path.name).read_bytes()


def test_a_newer_cut_takes_the_place_of_the_one_before(trained: Trained, tmp_path: Path) -> None:
    newest = trained.run.cuts_path / "step-00000006"
    aside = trained.run.path / "aside"
    with trained.client() as client:
        newest.rename(aside)
        try:
            run = fetch_run(client, trained.job, tmp_path / "run")
            assert [cut.name for cut in run.cuts_path.iterdir()] == ["step-00000003"]
        finally:
            aside.rename(newest)
        fetch_run(client, trained.job, tmp_path / "run")
    assert [cut.name for cut in run.cuts_path.iterdir()] == ["step-00000006"]


def test_a_cut_that_is_removed_meanwhile_is_left_for_the_newest(trained: Trained, tmp_path: Path) -> None:
    newest, aside = trained.run.cuts_path / "step-00000006", trained.run.path / "aside"
    newest.rename(aside)

    def returned(done: int, total: int) -> None:
        if aside.exists():  # the older cut was listed, and is gone now
            aside.rename(newest)
            (trained.run.cuts_path / "step-00000003").rename(tmp_path / "older")

    try:
        with trained.client() as client:
            run = fetch_run(client, trained.job, tmp_path / "run", returned)
        assert [cut.name for cut in run.cuts_path.iterdir()] == ["step-00000006"]
    finally:
        shutil.move(tmp_path / "older", trained.run.cuts_path / "step-00000003")


def test_a_job_without_a_cut_says_so(trained: Trained, tmp_path: Path) -> None:
    with trained.client() as client:
        other = client.submit(small_job(trained.service.data / "shared" / "corpus", name="other", **STEPS))
        with pytest.raises(JobConflictError, match="has not started yet"):
            fetch_run(client, other.id, tmp_path / "run")
        run = RunFolder(trained.run.path.parent / other.id)
        run.create(client.get(other.id).spec)
        with pytest.raises(JobConflictError, match="no complete cut yet"):
            fetch_run(client, other.id, tmp_path / "run")


@pytest.fixture
def big(trained: Trained) -> Iterator[bytes]:
    """A file of 24 MiB in the cut."""
    path, content = trained.run.cuts_path / "step-00000006" / "big", os.urandom(24 << 20)
    path.write_bytes(content)
    yield content
    path.unlink()


def test_a_connection_that_is_cut_in_the_middle_goes_on_where_it_was(
    trained: Trained, big: bytes, reads: list[tuple[str, int]]
) -> None:
    proxy = CuttingProxy(f"127.0.0.1:{trained.service.port}")
    read = b""
    with Client(proxy.address, TENANTS["ann"]) as client:
        for part in client.read_cut_file(trained.job, "cuts/step-00000006/big"):
            if len(read) < 2 << 20 <= len(read) + len(part):
                proxy.cut()
            read += part
    proxy.close()
    assert read == big
    assert reads[0][1] == 0
    assert len(reads) == 2
    assert 0 < reads[1][1] < len(big)


# ---- other files -------------------------------------------------------------------------------------------------

SECRET = "ssh, a secret"


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "/", "/etc/passwd", "../../../token", "corpus/../../../token", "corpus/train.arrow", "job.yaml", "job.log",
        "cuts", "cuts/", "cuts/step-00000006", "cuts/step-00000006/", "cuts/step-00000006/..", "cuts/../job.yaml",
        "cuts/step-00000006/../../job.yaml", "cuts//job.yaml", "cuts/step-00000006/manifest.json/x", "corpus/corpus.json\0",
        "corpus/corpus.json\n", "CORPUS/corpus.json", "corpus\\corpus.json", "cuts/step-00000006/.hidden",
        "cuts/step-00000007/manifest.json", "cuts/step-00000006/" + "x" * 5000, "corpus/%2e%2e/token",
    ],
)  # fmt: skip
def test_a_name_that_leads_elsewhere_is_refused(trained: Trained, name: str) -> None:
    with trained.client() as client, pytest.raises(Exception, match=r"is no file|has no file"):
        b"".join(client.read_cut_file(trained.job, name))


def test_links_pipes_and_folders_in_the_place_of_files_are_refused(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "manifest.json").write_text(SECRET)
    cuts = trained.run.cuts_path
    planted = {
        cuts / "step-00000006" / "link": lambda path: path.symlink_to(tmp_path / "secret"),
        cuts / "step-00000099": lambda path: path.symlink_to(tmp_path / "cut"),
        cuts / "step-00000006" / "pipe": os.mkfifo,
        cuts / "step-00000006" / "folder": Path.mkdir,
    }
    ann = trained.service.caller(TENANTS["ann"])
    try:
        for path, plant in planted.items():
            plant(path)
        for path in planted:
            inside = str(path.relative_to(trained.run.path))
            name = f"{inside}/manifest.json" if path.name == "step-00000099" else inside
            request = pb.ReadCutFileRequest(id=trained.job, name=name)
            assert refused(ann, "ReadCutFile", request)[0] == grpc.StatusCode.FAILED_PRECONDITION, name
        code, said = refused(ann, "CutFiles", pb.JobRequest(id=trained.job))  # the newest cut is a link
        assert code == grpc.StatusCode.FAILED_PRECONDITION
        assert SECRET not in said
    finally:
        for path in planted:
            path.rmdir() if path.name == "folder" else path.unlink(missing_ok=True)


def test_a_corpus_that_leads_elsewhere_by_now_is_refused(trained: Trained, tmp_path: Path) -> None:
    corpus = trained.service.data / "shared" / "corpus"
    ann = trained.service.caller(TENANTS["ann"])
    shutil.move(corpus, tmp_path / "elsewhere")
    corpus.symlink_to(tmp_path / "elsewhere")
    try:
        for method, request in (
            ("CutFiles", pb.JobRequest(id=trained.job)),
            ("ReadCutFile", pb.ReadCutFileRequest(id=trained.job, name="corpus/corpus.json")),
        ):
            assert refused(ann, method, request)[0] == grpc.StatusCode.INVALID_ARGUMENT
    finally:
        corpus.unlink()
        shutil.move(tmp_path / "elsewhere", corpus)
    for name in ("corpus.json", "tokenizer.json"):
        aside = tmp_path / name
        shutil.move(corpus / name, aside)
        (corpus / name).symlink_to(aside)
        try:
            request = pb.ReadCutFileRequest(id=trained.job, name=f"corpus/{name}")
            assert refused(ann, "ReadCutFile", request)[0] == grpc.StatusCode.FAILED_PRECONDITION
        finally:
            (corpus / name).unlink()
            shutil.move(aside, corpus / name)


def test_another_tenant_gets_nothing(trained: Trained) -> None:
    bob = trained.service.caller(TENANTS["bob"])
    for method, request in (
        ("CutFiles", pb.JobRequest(id=trained.job)),
        ("ReadCutFile", pb.ReadCutFileRequest(id=trained.job, name="corpus/corpus.json")),
    ):
        assert refused(bob, method, request)[0] == grpc.StatusCode.NOT_FOUND


def test_a_service_that_names_files_elsewhere_is_not_believed(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def names(self: CutFiles, request: pb.JobRequest, tenant: str) -> pb.CutFileList:
        return pb.CutFileList(files=[pb.CutFile(name="../../planted", bytes=1, sha256="")])

    monkeypatch.setattr(CutFiles, "names", names)
    # The calls are bound when a service starts.
    with (
        running_service(tmp_path / "false") as false,
        Client(f"127.0.0.1:{false.port}", TENANTS["ann"]) as client,
    ):
        job = client.submit(small_job(false.data / "shared" / "corpus", **STEPS))
        with pytest.raises(Exception, match="is no file"):
            fetch_run(client, job.id, tmp_path / "run")
    assert json.dumps(sorted(path.name for path in (tmp_path / "run").iterdir())) == '[".lock"]'
