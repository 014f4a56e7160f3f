"""The certificates of one start of a job: an authority whose key is forgotten at once, and what it has signed.

A shard's certificate is good for answering alone and a trainer's for asking alone, so that neither can play the other. They
are kept in memory only.
"""

from __future__ import annotations

import datetime
import secrets
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from memory_store.carriers.grpc_credentials import SHARD_NAME, Credentials

TRAINER_NAME = "trainer.pkm"
METRICS_NAME = "metrics.pkm"
_VALID = datetime.timedelta(days=3650)  # longer than any job: its end ends them
_CLOCKS_DIFFER = datetime.timedelta(days=1)


@dataclass(frozen=True)
class JobCertificates:
    """For the shards, for those who ask them, and for the ports at which all processes serve their metrics."""

    shards: Credentials
    trainers: Credentials
    metrics: Credentials


def make_certificates() -> JobCertificates:
    """New ones, which no other job trusts."""
    key = ec.generate_private_key(ec.SECP256R1())
    # Each has a name of its own: who trusts several (a Prometheus) looks for the one that has signed by its name.
    own_name = f"a job of pkm, {secrets.token_hex(8)}"
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, own_name)])
    authority = (
        _unsigned(name, name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )

    def issue(host: str, usage: x509.ObjectIdentifier) -> Credentials:
        own = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        signed = (
            _unsigned(subject, name, own.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
            .sign(key, hashes.SHA256())
        )
        return Credentials(_pem(authority), _pem(signed), _pem_of_key(own))

    return JobCertificates(
        issue(SHARD_NAME, ExtendedKeyUsageOID.SERVER_AUTH),
        issue(TRAINER_NAME, ExtendedKeyUsageOID.CLIENT_AUTH),
        issue(METRICS_NAME, ExtendedKeyUsageOID.SERVER_AUTH),
    )


def _unsigned(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS_DIFFER)
        .not_valid_after(now + _VALID)
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _pem_of_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
