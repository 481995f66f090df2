"""Certificates, FURLs, and the options of Tubs."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.testing import MemoryReactorClock

from ipython1.kernel.error import BadFURL
from ipython1.kernel.wire.pulse import DEAD_LINK_AFTER
from ipython1.kernel.wire.tubs import (
    make_certificate,
    make_tub,
    split_furl,
)

ID = "asqfzluqrtrz7n5vwetuphbm7hvhenqx"
NAME = "gmj5lesq3qitnuxgj4fk3klc7ss3pwc3"


def test_a_certificate_is_ecdsa_and_lasts() -> None:
    pem = make_certificate()
    certificate = x509.load_pem_x509_certificate(pem)
    key = load_pem_private_key(pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.curve.name == "secp256r1"
    assert certificate.public_key() == key.public_key()
    now = datetime.datetime.now(datetime.timezone.utc)
    assert certificate.not_valid_before_utc < now - datetime.timedelta(hours=1)
    assert certificate.not_valid_after_utc > now + datetime.timedelta(days=30 * 365)


def test_every_certificate_is_new() -> None:
    assert make_tub().getTubID() != make_tub().getTubID()


def test_the_certificate_is_the_identity() -> None:
    pem = make_certificate()
    assert make_tub(pem).getTubID() == make_tub(pem).getTubID()


@pytest.mark.parametrize(
    "pem", [b"nonsense", make_certificate()[:200], make_certificate().split(b"-----BEGIN P")[0]]
)
def test_what_is_no_certificate(pem: bytes) -> None:
    with pytest.raises(ValueError, match="not a certificate"):
        make_tub(pem)


def test_options() -> None:
    tub = make_tub()
    assert tub._expose_remote_exception_types is False
    assert tub.accept_gifts is False
    assert tub.unsafeTracebacks is False
    assert (tub.logLocalFailures, tub.logRemoteFailures) == (False, False)
    assert (tub.keepaliveTimeout, tub.disconnectTimeout) == (None, None)
    assert tub.dead_after == DEAD_LINK_AFTER
    assert not tub.running


@pytest.mark.parametrize(
    ("hint", "endpoint", "host"),
    [
        ("tcp:127.0.0.1:80", TCP4ClientEndpoint, "127.0.0.1"),
        ("tcp:[::1]:80", TCP6ClientEndpoint, "::1"),
        ("tcp:example.org:80", HostnameEndpoint, "example.org"),
    ],
)
def test_only_names_are_resolved(hint: str, endpoint: type, host: str) -> None:
    handler: Any = make_tub()._connectionHandlers["tcp"]
    made, shown = handler.hint_to_endpoint(hint, MemoryReactorClock(), None)
    assert type(made.endpoint) is endpoint
    assert shown == host


@pytest.mark.parametrize(
    ("locations", "expected"),
    [
        ("127.0.0.1:10105", ["127.0.0.1:10105"]),
        ("tcp:127.0.0.1:10105", ["127.0.0.1:10105"]),
        ("tcp:node-1.example.org:1,10.0.0.1:65535", ["node-1.example.org:1", "10.0.0.1:65535"]),
        ("tcp:[::1]:10105", ["[::1]:10105"]),
        ("tcp:[fe80::1%eth0]:10105", ["[fe80::1%eth0]:10105"]),
    ],
)
def test_split_furl(locations: str, expected: list[str]) -> None:
    assert split_furl(f"  pb://{ID}@{locations}/{NAME}\n") == (ID, expected, NAME)


@pytest.mark.parametrize(
    "furl",
    [
        "",
        "hello",
        "/home/me/ipcontroller-mec.furl",
        f"pb://{ID}@127.0.0.1:10105/",
        f"pb://{ID}@127.0.0.1:10105",
        f"pb://{ID}@/{NAME}",
        f"pb://{ID}@127.0.0.1/{NAME}",
        f"pb://{ID}@127.0.0.1:0/{NAME}",
        f"pb://{ID}@127.0.0.1:65536/{NAME}",
        f"pb://{ID}@127.0.0.1:1,/{NAME}",
        f"pb://{ID}@unix:/tmp/x/{NAME}",
        f"pb://{ID[:-1]}@127.0.0.1:1/{NAME}",
        f"pb://{ID.upper()}@127.0.0.1:1/{NAME}",
        f"pb://{ID}@127.0.0.1:1/{NAME}/more",
        f"pb://{ID}@127.0.0.1:1/two words",
        f"pbu://127.0.0.1:1/{NAME}",
        f"pb://{ID}@127.0.0.1:1/{NAME}\npb://{ID}@127.0.0.1:1/{NAME}",
        f"pb://{ID}@127.0.0.1:1/" + "a" * 300,
    ],
)
def test_bad_furls(furl: str) -> None:
    with pytest.raises(BadFURL) as caught:
        split_furl(furl)
    assert NAME not in str(caught.value)
    assert len(str(caught.value)) < 250


@given(st.text())
def test_any_text_is_a_furl_or_bad(text: str) -> None:
    with pytest.raises(BadFURL):
        split_furl(text)


@given(
    st.text("abcdefghijklmnopqrstuvwxyz234567", min_size=32, max_size=32),
    st.lists(
        st.builds(
            "{}:{}".format,
            st.from_regex(
                r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?(\.[a-z]{2,4})?|[0-9]{1,3}(\.[0-9]{1,3}){3}", fullmatch=True
            ),
            st.integers(1, 65535),
        ),
        min_size=1,
        max_size=3,
    ),
    st.from_regex(r"[a-z2-7]{1,32}", fullmatch=True),
)
def test_what_is_put_together_comes_apart(tub_id: str, locations: list[str], name: str) -> None:
    hints = ",".join(f"tcp:{location}" for location in locations)
    assert split_furl(f"pb://{tub_id}@{hints}/{name}") == (tub_id, locations, name)
