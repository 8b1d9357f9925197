"""AWS's published examples come out to the letter."""

from datetime import UTC, datetime

import pytest

from penstock_workers.model.sigv4 import Credentials, sign

SUITE = Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
SUITE_AT = datetime(2015, 8, 30, 12, 36, tzinfo=UTC)
GUIDE = Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
GUIDE_AT = datetime(2013, 5, 24, tzinfo=UTC)
HOST = {"Host": "example.amazonaws.com"}
BUCKET = {"Host": "examplebucket.s3.amazonaws.com"}


def signature(headers: dict[str, str]) -> str:
    return headers["authorization"].rpartition("Signature=")[2]


@pytest.mark.parametrize(
    ("name", "path", "query", "headers", "expected"),
    [
        ("get-vanilla", "/", {}, HOST, "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
        (
            "get-vanilla-query-order-key-case", "/", {"Param2": "value2", "Param1": "value1"}, HOST,
            "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
        ),
        ("get-utf8", "/\u1234", {}, HOST, "8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85"),
        (
            "get-header-value-trim", "/", {}, {**HOST, "My-Header1": " value1", "My-Header2": ' "a   b   c"'},
            "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736",
        ),
    ],
)  # fmt: skip
def test_signatures_are_those_of_the_test_suite(
    name: str, path: str, query: dict[str, str], headers: dict[str, str], expected: str
) -> None:
    assert signature(sign("GET", path, query, headers, SUITE, "us-east-1", SUITE_AT, service="service")) == expected, name


@pytest.mark.parametrize(
    ("path", "query", "headers", "expected"),
    [
        (
            "/test.txt", {}, {**BUCKET, "Range": "bytes=0-9"},
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        ),
        ("/", {"lifecycle": ""}, BUCKET, "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
        ("/", {"max-keys": "2", "prefix": "J"}, BUCKET, "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
    ],
)  # fmt: skip
def test_signatures_are_those_of_the_guide_of_s3(
    path: str, query: dict[str, str], headers: dict[str, str], expected: str
) -> None:
    assert signature(sign("GET", path, query, headers, GUIDE, "us-east-1", GUIDE_AT)) == expected


def test_a_session_token_is_sent_and_signed() -> None:
    made = sign("GET", "/", {}, HOST, Credentials("A", "B", "of the session"), "us-east-1", GUIDE_AT)
    assert made["x-amz-security-token"] == "of the session" and "x-amz-security-token" in made["authorization"]


def test_credentials_do_not_show_their_secrets() -> None:
    assert "hidden" not in repr(Credentials("A", "hidden one", "hidden two"))
