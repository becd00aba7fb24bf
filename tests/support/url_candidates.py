"""URLs near the edge of the rule: built ones, mutated ones, and plain noise.

Reads: the corpus. Writes: nothing.
Guarantee: PostgreSQL can hold every text given.
"""

from __future__ import annotations

from hypothesis import strategies as st

from tests.support.hostile_corpus import BAD_URLS, GOOD_URLS, GOOD_WITH_SETTINGS


def candidate_urls() -> st.SearchStrategy[str]:
    return st.one_of(_built(), _built(), _mutated(), st.text(max_size=60).filter(_storable))


def _storable(text: str) -> bool:
    """No NUL, no half of a surrogate pair."""
    return "\x00" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


_ALPHABET = "azAZ09-._~:/?#[]@!$&'()*+,;=%\\ \t\n\x7f\"<>^`{|}é\uff21\uff11\u3002"
_SEEDS = [*GOOD_URLS, *GOOD_WITH_SETTINGS, *(url for _, url in BAD_URLS if len(url) < 200)]


def _label() -> st.SearchStrategy[str]:
    plain = st.text("abcxz019-", max_size=8)
    encoded = st.text("abcdexyz0189-", max_size=10).map(lambda rest: f"xn--{rest}")
    named = st.text(max_size=8).filter(_storable).map(lambda text: f"xn--{text.encode('punycode').decode()}")
    odd = st.sampled_from(
        ["0x7f", "0177", "127", "com", "a" * 63, "a" * 64, "xn--p1ai", "", "-", "A", "a_b", "0", "255"]
    )
    return st.one_of(plain, plain, encoded, named, odd)


def _host() -> st.SearchStrategy[str]:
    names = st.lists(_label(), max_size=5).map(".".join)
    octets = st.lists(st.integers(0, 260).map(str), min_size=3, max_size=5).map(".".join)
    groups = st.lists(st.text("0129aFf", max_size=5), max_size=9).map(":".join).map(lambda text: f"[{text}]")
    addresses = st.ip_addresses(v=6).map(lambda address: f"[{address}]")
    return st.one_of(names, names, octets, groups, addresses)


@st.composite
def _built(draw: st.DrawFn) -> str:
    scheme = draw(st.sampled_from(["https://"] * 6 + ["http://", "https:/", "HTTPS://", "ftp://", ""]))
    port = draw(
        st.one_of(
            st.just(""),
            st.integers(0, 70000).map(lambda n: f":{n}"),
            st.sampled_from([":", ":443", ":0443", ":x"]),
        )
    )
    path = draw(
        st.one_of(
            st.just(""),
            st.text(_ALPHABET, max_size=12).map(lambda rest: f"/{rest}"),
            st.sampled_from(["?x", "/?/@", "#"]),
        )
    )
    return f"{scheme}{draw(_host())}{port}{path}"


@st.composite
def _mutated(draw: st.DrawFn) -> str:
    url = draw(st.sampled_from(_SEEDS))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(url)))
        put = draw(st.one_of(st.just(""), st.sampled_from(_ALPHABET), st.characters().filter(_storable)))
        url = url[:at] + put + url[at + draw(st.integers(0, 2)) :]
    return url
