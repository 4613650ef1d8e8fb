"""Text that is shown: no secret of a URL, whatever the URL's grammar allows in it."""

from __future__ import annotations

import pytest
from sqlalchemy import make_url

from expo_search.text import shown


@pytest.mark.parametrize("password", ["hunter2", "hun/ter2", "hun:ter2", "a?b", "/", "pa/ss/"])
@pytest.mark.parametrize("user", ["me", "", "me@server"])
def test_no_password_that_sqlalchemy_takes_is_shown(user: str, password: str) -> None:
    url = f"postgresql+psycopg://{user}:{password}@host:5432/db"
    assert make_url(url).password == password
    assert shown(url) == f"postgresql+psycopg://{user}:***@host:5432/db"
    within = shown(f"API request to {url}/path failed, me@example.org knows")
    assert within == f"API request to {shown(url)}/path failed, me@example.org knows"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mysql://me:p@ss@host/db", "mysql://me:***@host/db"),
        ("postgresql://host/db?user=me&password=x", "postgresql://host/db?user=me&password=***"),
        ("sqlite:////home/a:b@c/x.db", "sqlite:////home/a:b@c/x.db"),
        ("http://localhost:8001/v1", "http://localhost:8001/v1"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
        ("http://localhost:8000/v1/@x", "http://localhost:8000/v1/@x"),
        ("http://me:hun/ter2@host:9/v1", "http://me:***@host:9/v1"),
        ("postgresql://me:p w@host/db", "postgresql://me:***@host/db"),
    ],
)
def test_what_is_no_password_stays(url: str, expected: str) -> None:
    assert shown(url) == expected
