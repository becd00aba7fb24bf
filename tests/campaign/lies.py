"""Lies: answers that a correct receiver never gives, each with the status that a careful sender may believe.

Reads: nothing. Writes: nothing.
Guarantee: `status` is what stands in a complete head of the answer, 0 where there is none.
If it is wrong: a worker that believes a lie passes for an honest one.
"""

from __future__ import annotations

from tests.campaign.receiver import Answer

HEAD = b"HTTP/1.1 200 OK\r\n"
SMUGGLED = b"okHTTP/1.1 204 No Content\r\n\r\n"

LIES = (
    Answer(200, body=b"nul \0 in the middle \xff\xfe"),
    Answer(999),
    Answer(200, says_length=5_000),  # breaks off: the status counts
    Answer(200, body=SMUGGLED, says_length=2),  # a second answer, to a request that nobody has sent
    Answer(503, headers=("Retry-After: 1",)),
    Answer(429, headers=("Retry-After: -99999999999999999999",)),
    Answer(302, headers=("Location: http://169.254.169.254/latest",)),
    Answer(500, body=b"x" * 200_000),
    Answer(200, body=b"x" * 200_000),
    Answer(
        200, raw=b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + HEAD + b"Content-Length: 2\r\n\r\nok"
    ),
    Answer(200, raw=HEAD + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\nno chunk\r\n"),
    Answer(0, raw=b"\x16\x03\x01\0\0 this is not HTTP\r\n\r\n"),
    Answer(0, raw=HEAD + b"Content-Length: 3\r\nContent-Length: 5\r\n\r\nabcde"),
)
LIES_OF_A_FAULT = (
    *LIES,
    Answer(0, raw=HEAD + b"Content-Le"),  # breaks off in its head
    Answer(0, raw=HEAD + b"X-Long: " + b"x" * 200_000 + b"\r\n\r\n"),
    Answer(0, again=b"HTTP/1.1 100 Continue\r\n\r\n"),
    Answer(0, raw=HEAD, again=b"X-More: of it\r\n"),
    Answer(200, raw=HEAD + b"\r\n", again=b"x" * 500),  # a body without an end
)
"""The last ones end the connection or last until the sender's own deadline: a circuit opens, so not all the time."""
