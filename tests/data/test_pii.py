"""What tells of persons is masked and counted; what only looks like it stays as it is."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from nachim.data import pii
from nachim.data.pii import iban, luhn, mask

FOUND = {
    "email": [
        *("jane.doe@example.com", "a+b@mail.co.kr", "x_1%y@sub-domain.example.org", "JANE@EXAMPLE.MUSEUM"),
        "김철수@example.kr",
    ],
    "ip": ["8.8.8.8", "203.0.114.7", "2001:4860:4860::8888", "2606:4700:4700:0:0:0:0:1111"],
    "phone": [
        "+82 10-1234-5678",
        "+1 (415) 555-2671",
        "(415) 555-2671",
        "010-1234-5678",
        "02-123-4567",
        "+442079460958",
    ],
    "iban": ["DE89 3704 0044 0532 0130 00", "GB82WEST12345698765432", "FR1420041010050500013M02606", "NO9386011117947"],
    "card": ["4111 1111 1111 1111", "5500-0055-5555-5559", "378282246310005", "6011000990139424", "3530111333300000"],
    "key": [
        *("AKIAIOSFODNN7EXAMPLE", "ghp_" + "a1B2" * 9, "glpat-" + "x" * 20, "hf_" + "Ab" * 17, "AIza" + "Sy_-5" * 7),
        "xoxb-123456789012-abcdefABCDEF",
        "sk-proj-" + "abcDEF123456" * 4,
        "-----BEGIN RSA PRIVATE KEY-----\n" + "MIIEpAIBAAKCAQEA\n" * 5 + "-----END RSA PRIVATE KEY-----",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTYifQ.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P",
    ],
}
INNOCENT = [
    *("127.0.0.1", "192.168.1.10", "10.0.0.1", "0.0.0.0", "255.255.255.0", "::1", "fe80::1", "1.2.3.4.5", "v1.22.3.4"),
    *("999.1.1.1", "8.8.8.8-rc1", "12:34:56", "00:1a:2b:3c:4d:5e", "a::b", "std::vector::push_back", "1:2:3"),
    *("4111 1111 1111 1112", "1234567890123456", "0000 0000 0000 0000", "3.141592653589793238", "4111-1111 1111-1111"),
    *("20240101123456", "978-3-16-148410-0", "1, 2, 3, 4, 5, 6, 7, 8", "0.4111111111111111", "id_4111111111111111"),
    *("DE00 3704 0044 0532 0130 00", "DE89 3704 0044 0532 0130", "XX89370400440532013000", "AB12 CDEF 3456 7890"),
    *("@decorator", "a @ b", "user@host", "icon@2x.png", "git@github", "x = y@z.T", "foo@@bar.com", "price@1.99"),
    *(
        "2024-01-15",
        "10-20-30",
        "1-800",
        "555-1234",
        "12.5-13.7",
        "+1",
        "1 + 2 - 3",
        "2023-2024",
        "+5.25",
        "x+12345678901y",
    ),
    *("AKIA", "sk-learn", "sk-SK", "hf_hub_download", "ghp_short", "eyJ", "AIzaShort", "xoxb"),
    "the sha256 is 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "uuid 123e4567-e89b-12d3-a456-426614174000, id 5500000000000000004",
    "-----BEGIN PUBLIC KEY-----\nMIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA\n-----END PUBLIC KEY-----",
]


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in FOUND.items() for text in texts])
def test_what_tells_of_persons_is_masked(kind, text):
    for before, after in (("", ""), ("Write to ", "."), ("(", ")"), ("나: ", ", 너"), ('"', '"')):
        assert mask(before + text + after) == (f"{before}<{kind}>{after}", {kind: 1})


@pytest.mark.parametrize("text", INNOCENT)
def test_what_only_looks_like_it_stays(text):
    for whole in (text, f"see {text}.", f"({text})", f"a {text}, b"):
        assert mask(whole) == (whole, {})


def test_all_kinds_are_counted_in_one_text():
    text = "\n".join(one for some in FOUND.values() for one in some)
    masked, counts = mask(text)
    assert counts == {kind: len(texts) for kind, texts in FOUND.items()}
    assert mask(masked) == (masked, {})


def test_luhn_finds_every_wrong_digit_and_swap():
    chance = random.Random(0)
    for _ in range(50):
        digits = [chance.randrange(10) for _ in range(15)]
        check = next(d for d in range(10) if luhn("".join(map(str, [*digits, d]))))
        right = [*digits, check]
        for place in range(16):
            wrong = [*right[:place], (right[place] + chance.randrange(1, 10)) % 10, *right[place + 1 :]]
            assert not luhn("".join(map(str, wrong)))
        for place in range(15):
            a, b = right[place : place + 2]
            if a != b and {a, b} != {0, 9}:
                swapped = [*right[:place], b, a, *right[place + 2 :]]
                assert not luhn("".join(map(str, swapped)))
    assert not luhn("")


def test_accounts_are_checked():
    assert all(map(iban, FOUND["iban"]))
    for account in FOUND["iban"]:
        for place in range(4, len(account)):
            if account[place].isdigit():
                other = account[:place] + str((int(account[place]) + 1) % 10) + account[place + 1 :]
                assert not iban(other)


def test_what_is_passed_over_had_nothing(monkeypatch):
    whole = [replace(kind, forms=tuple(replace(form, hints=(), hint="") for form in kind.forms)) for kind in pii.KINDS]
    chance, pieces = random.Random(0), [*itertools.chain(*FOUND.values()), *INNOCENT]
    texts = ["".join(chance.choice(pieces) + chance.choice(" -_.\na@") for _ in range(6)) for _ in range(400)]
    found = [mask(text) for text in texts]
    monkeypatch.setattr(pii, "KINDS", whole)
    assert found == [mask(text) for text in texts]
    assert sum(counts["key"] for _, counts in found) > 100 < sum(counts["email"] for _, counts in found)
