"""deploy/secrets: what it makes lets the right ones in, and nobody else reads it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import yaml
from cryptography import x509

from service.jobs.tokens import Tokens, bearer

ROOT = Path(__file__).resolve().parent.parent.parent


def make(folder: Path, *names: str) -> subprocess.CompletedProcess[str]:
    command = [ROOT / "deploy" / "secrets", folder, *names]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_certificate_is_the_service_s_under_each_of_its_names(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    assert make(folder, "pkm.example.org", "10.1.2.3").returncode == 0
    authority = x509.load_pem_x509_certificate((folder / "client" / "ca.pem").read_bytes())
    certificate = x509.load_pem_x509_certificate((folder / "service-certificate.pem").read_bytes())
    certificate.verify_directly_issued_by(authority)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"localhost", "service", "pkm.example.org"} == set(names.get_values_for_type(x509.DNSName))
    assert {"127.0.0.1", "10.1.2.3"} == {str(name) for name in names.get_values_for_type(x509.IPAddress)}
    assert not list(folder.rglob("ca.key"))
    profile = yaml.safe_load((folder / "client" / "profile.yaml").read_text())
    assert profile["server"] == "pkm.example.org:7070"


def test_the_token_of_who_asks_is_known_to_the_service_and_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    make(folder)
    tokens = Tokens.read(folder / "tokens.txt")
    assert tokens.tenant_of([bearer((folder / "client" / "token").read_text().strip())]) is not None
    assert tokens.tenant_of([bearer((folder / "ray-token").read_text().strip())]) is None


def test_others_can_t_read_them_and_they_are_made_once(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    make(folder)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) == 10
    assert not any(path.stat().st_mode & 0o077 for path in files)
    before = {path: path.read_bytes() for path in files}
    again = make(folder)
    assert again.returncode == 2
    assert "is there already" in again.stderr
    assert before == {path: path.read_bytes() for path in files}
