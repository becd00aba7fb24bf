"""Input that must be refused when it is stored, by the ids of its cases, and good input beside it.

Reads: nothing. Writes: nothing.
Guarantee: each row stands under the id of its case; the rules of the worker and of the database run over the
same rows.
"""

from __future__ import annotations

from outbox_worker.egress import EgressPolicy

PORTS = (80, 443, 8080, 8443)
PRODUCTION = EgressPolicy(frozenset(PORTS), allow_plain_http=False, allow_ip_literals=False)
# A row must not be refused for its scheme alone, so the hostile ones run with plain http allowed.
PLAIN_HTTP = EgressPolicy(frozenset(PORTS), allow_plain_http=True, allow_ip_literals=False)
# With everything open, what is still refused has no meaning at all.
ANYTHING = EgressPolicy(frozenset(range(1, 65536)), allow_plain_http=True, allow_ip_literals=True)

LONG_LABEL = "a" * 64
LONG_HOST = ".".join(["a" * 49] * 5 + ["abc"])  # 253 characters
LONG_PATH = "https://hooks.example.com/"

# Refused whatever the settings.
MALFORMED_URLS = {
    "U01": ["http://2130706433/", "http://2130706433", "http://2130706433:80/x", "http://1.2130706433/"],
    "U02": [
        "http://0x7f000001/", "http://0x7f.1/", "http://0x7f.0x0.0x0.0x1/", "http://127.0.0.0x1/",
        "http://a.0xa9fe/",
    ],
    "U03": ["http://0177.0.0.1/", "http://017700000001/", "http://127.0.0.01/", "http://0000127.0.0.1/"],
    "U04": [
        "http://127.1/", "http://0/", "http://127.0.1/", "http://10.1/", "http://1.2.3.4.5/",
        "http://256.1.1.1/", "http://1.1.1.1.1/", "http://127.0.0/", "http://00000000000000/", "http://4294967295/",
        "http://1.2.3.4.0/",
    ],
    "U05": [
        "http://\uff11\uff12\uff17.0.0.1/", "http://127。0。0。1/", "http://ⓔxample.com/",
        "http://\u0661\u0662\u0667.\u0660.\u0660.\u0661/", "http://\u2460\u2461\u2466.0.0.1/",
        "http://\U0001d7cf\U0001d7d0\U0001d7d5.0.0.1/", "http://127\uff0e0\uff610\uff0e1/",
    ],
    "U06": [
        "http://127.0.0.1./", "http://localhost./", "https://hooks.example.com./", "https://./",
        "https://../",
    ],
    "U08": ["http://[::ffff:127.0.0.1]/", "http://[::127.0.0.1]/", "http://[::FFFF:7f00:1]/"],
    "U09": [
        "http://[fe80::1%25eth0]/", "http://[fe80::1%eth0]/", "http://[]/", "http://[::1", "http://::1/",
        "http://[::1]x/", "http://[fe80::1%25]/", "http://[fe80::1%1]:80/", "http://[::1%]/", "http://fe80::1%eth0/",
        "http://[::1.2.3.4]/", "http://[0x1::]/", "http://[::1]:/", "http://[::1]:80:80/", "http://[::1]@example.com/",
        "http://[1::2::3]/", "http://[:::]/", "http://[1:2:3:4:5:6:7]/", "http://[1:2:3:4:5:6:7:8:9]/",
        "http://[12345::]/",
        "http://[1:2:3:4:5:6:7::8]/", "http://[a.example]/", "http://[v1.a]/", "http://[[::1]]/",
        "http://x[::1]/",
    ],
    "U10": [
        "https://user:pw@example.com/", "https://example.com:443@evil.example/", "https://example.com:443:@evil.example/",
        "https://a@b@example.com/", "https://example.com%3a443@evil.example/", "https://x:y@[::1]/",
        "https://user@example.com/", "https://@example.com/",
        "https://:@example.com/",
    ],
    "U11": [
        "https://example.com@169.254.169.254/", "https://example.com:443@169.254.169.254/",
        "https://example.com%40169.254.169.254/", "https://169.254.169.254@example.com/",
    ],
    "U12": [
        "https://example.com#@169.254.169.254/", "https://example.com/#x", "https://example.com/?a#b",
        "https://#/",
    ],
    "U13": [
        "https://example.com\\@169.254.169.254/", "https:\\\\example.com/", "https://example.com\\",
        "https:/\\example.com/",
        "https://example.com/a\\b",
    ],
    "U14": [
        "http:///etc/passwd", "http:10.0.0.1/", "http://", "http:/example.com/", "https:///", "https://?x",
        "https://:443/",
    ],
    "U15": ["//10.0.0.1/x", "", "/", "example.com", "example.com:443/", "https", "https:", "10.0.0.1"],
    "U16": ["file:///etc/passwd", "file://example.com/etc/passwd"],
    "U17": [
        "gopher://h/_%0d%0a", "ftp://example.com/", "jar:http://example.com!/", "unix:/var/run/docker.sock",
        "javascript:alert(1)", "data:text/plain,x", "ws://example.com/", "httpss://example.com/",
        "http+unix://example.com/",
    ],
    "U18": [
        "https://example.com:0/", "https://example.com:65536/", "https://example.com:-1/",
        "https://example.com:/",
        "https://example.com:0443/", "https://example.com:+443/", "https://example.com:4_43/",
        "https://example.com:\u0664\u0664\u0663/",
        "https://example.com:99999999999999999999/", "https://example.com:443a/",
        "https://example.com:0x1bb/", "https://example.com:/x", "https://example.com:00443/", "https://example.com:443.0/",
        "https://example.com:4 43/", "https://example.com:%34%34%33/", "https://example.com:\uff14\uff14\uff13/",
        "https://example.com:?x", "https://example.com:-443/", "https://example.com:1e2/",
    ],
    "U19": ["https://example.com:80:80/", "https://example.com::80/", "https://example.com:443:/"],
    "U21": [
        "https://ex%61mple.com/", "https://example.com%00/", "https://%31%32%37.0.0.1/",
        "https://example.com%2f/", "https://example%2ecom/", "https://example.com%0d%0a/", "https://%5b::1%5d/",
        "https://example.com%23.evil.example/", "https://example.com%3f/", "https://%00.example.com/",
    ],
    "U22": [
        "https://münchen.example/", "https://ex\u0430mple.com/", "https://example.com/ü",
        "https://example.com/\u202ecba", "https://exa\u00admple.com/", "https://exa\u200bmple.com/",
        "https://exa\u200dmple.com/", "https://example\u3002com/", "https://example.com\uff0f/", "https://example.com\uff1a443/",
        "https://\u2102\U0001d54f.com/", "https://fa\u00df.de/", "https://example.com?\u00e9",
    ],
    "U23": [
        "https://example.com/\r\nX: y", "https://example.com/\n", "https://example.com\n",
        "https://example.com/\t",
        "https://exam\nple.com/", "\nhttps://example.com/", "https://example.com/\x7f",
        "https://example.com/\x01",
        "https://example.com/\u2028", "https://example.com/\x85", "https://example.com\r",
        "https://example.com/\n\n", "https://exam\tple.com/", "ht\ntps://example.com/", "https://example.com:44\t3/",
        "https:/\t/example.com/", "\thttps://example.com/", "https://example.com/\x0b", "https://example.com/\x1f",
        "https://example.com/?a\rb", "\ufeffhttps://example.com/",
    ],
    "U24": [
        "https://xn--/", "https://xn--.com/", "https://xn--a.com/", "https://xn--0.com/",
        "https://xn--zzzzzzzz.com/",
        "https://a.xn--a-/", "https://xn---abc.com/", "https://xn---tda.com/", "https://xn--99999999999999999999999999.com/",
        "https://www.xn--example-.com/", "https://xn--1lq90ic7f1rc.xn--0/", "https://xn--8g7ccp.com/",
        "https://xn--a-qgn.com/", "https://xn--wca.com/", "https://xn--ls8h.com/", "https://a.xn--fvgdf/", "https://xn--dygcp.com/", "https://xn--127-l00a.com/", "https://xn--586c.com/", "https://XN--mnchen-3ya.example/",
        "https://xn--mnchen-3ya.xn--/", "https://xn--xn--a-.com/", "https://xn--\u00fc.com/", "https://xn--a_b-c.com/",
        "https://xn--8rh.com/",
    ],
    "U25": [
        "https://localhost/", "https://metadata/", "https://postgres/", "https://com/",
        "https://localhost:8443/", "http://a/",
    ],
    "U26": [
        "https://a..b.com/", "https://-a.com/", "https://a-.com/", f"https://{LONG_LABEL}.com/",
        f"https://{LONG_HOST}a/",
        "https://.example.com/", "https://a_b.example.com/", "https://*.example.com/", "https://a.-b/",
        "https://a,b.com/",
        "https://example.c-/", "https://exa~mple.com/", "https://a.com;b.com/", "https://$(id).com/",
        "https://'.com/", f"https://{'a' * 1000}.com/", f"https://x.{LONG_LABEL}/", "https://a.b..", "https://-.com/",
        "https://a.com.-/", "https://a!b.com/", "https://a|b.com/", "https://{x}.com/", 'https://a"b.com/', "https://<a>.com/",
    ],
    "U27": ["https://example.123/", "https://a.b.1-2/", "https://example.0xabc/", "https://a.0x/"],
    "U29": [
        f"{LONG_PATH}{'a' * (2049 - len(LONG_PATH))}", f"{LONG_PATH}{'a' * 100_000}",
        f"https://{'a.' * 1100}com/",
    ],
    "U30": [
        "HTTPS://Example.com/", "HTTPS://example.com/", "https://Example.com/", "https://example.COM/",
        "Https://example.com/",
        " https://example.com/", "https://example.com/ ", "https:// example.com/", "https://example.com/a b",
        "https://example.com/\xa0", "hTTps://example.com/", "https://eXample.com:443/", "https://EXAMPLE.COM", "HTTP://127.0.0.1/",
    ],
}  # fmt: skip

# Well-formed, and refused unless a setting says otherwise.
UNSETTLED_URLS = {
    "U07": [
        "http://127.0.0.1/", "http://[::1]/", "http://8.8.8.8/", "https://[2606:4700::1111]:8443/x",
        "http://0.0.0.0/",
    ],
    "N24": ["https://169.254.169.254/latest/meta-data/", "https://10.0.0.1/", "https://[fd00:ec2::254]/"],
    "U20": [f"https://example.com:{port}/" for port in (22, 25, 5432, 6379, 1, 65535, 81, 4430)],
}  # fmt: skip

BAD_URLS = [
    (f"{case}-{number}", url)
    for cases in (MALFORMED_URLS, UNSETTLED_URLS)
    for case, urls in cases.items()
    for number, url in enumerate(urls)
]

# Each with the origin and the request target that it means.
GOOD_URLS = {
    "https://example.com": ("https://example.com:443", "/"),
    "https://example.com/": ("https://example.com:443", "/"),
    "https://hooks.example.com:8443/a/b?c=d&e=%20": ("https://hooks.example.com:8443", "/a/b?c=d&e=%20"),
    "https://example.com?x=/y": ("https://example.com:443", "/?x=/y"),
    "https://example.com:443/": ("https://example.com:443", "/"),
    "https://example.com/@user:8443/x@y": ("https://example.com:443", "/@user:8443/x@y"),
    "https://example.com//double//": ("https://example.com:443", "//double//"),
    "https://example.com/a:b;c,d!$&'()*+=[]{}|^`\"<>~": (
        "https://example.com:443", "/a:b;c,d!$&'()*+=[]{}|^`\"<>~",
    ),
    "https://example.com/../../etc": ("https://example.com:443", "/../../etc"),
    "https://xn--mnchen-3ya.example/": ("https://xn--mnchen-3ya.example:443", "/"),
    "https://xn--80ak6aa92e.xn--p1ai/": ("https://xn--80ak6aa92e.xn--p1ai:443", "/"),
    "https://xn--fa-hia.de/": ("https://xn--fa-hia.de:443", "/"),
    "https://a.xn--fiqs8s/": ("https://a.xn--fiqs8s:443", "/"),
    "https://xn--5ksx69xiuh.example/": ("https://xn--5ksx69xiuh.example:443", "/"),
    "https://r3---sn-4g5e.example.com/": ("https://r3---sn-4g5e.example.com:443", "/"),
    "https://127.0.0.1.nip.io/": ("https://127.0.0.1.nip.io:443", "/"),
    "https://1.2.3.4a/": ("https://1.2.3.4a:443", "/"),
    "https://0x7f.example/": ("https://0x7f.example:443", "/"),
    "https://metadata.google.internal/": ("https://metadata.google.internal:443", "/"),
    "https://a.b/": ("https://a.b:443", "/"),
    f"https://{'a' * 63}.com/": (f"https://{'a' * 63}.com:443", "/"),
    f"https://{LONG_HOST}/": (f"https://{LONG_HOST}:443", "/"),
    f"{LONG_PATH}{'a' * (2048 - len(LONG_PATH))}": (
        "https://hooks.example.com:443", f"/{'a' * (2048 - len(LONG_PATH))}",
    ),
}  # fmt: skip

GOOD_WITH_SETTINGS = {
    "http://example.com/": ("http://example.com:80", "/"),
    "http://127.0.0.1:8080/x": ("http://127.0.0.1:8080", "/x"),
    "http://[::1]:9/": ("http://[::1]:9", "/"),
    "https://[2606:4700::1111]": ("https://[2606:4700::1111]:443", "/"),
    "https://[1:2:3:4:5:6:7:8]?q": ("https://[1:2:3:4:5:6:7:8]:443", "/?q"),
    "https://[::]/": ("https://[::]:443", "/"),
    "https://example.com:65535/": ("https://example.com:65535", "/"),
    "https://255.255.255.255:1/": ("https://255.255.255.255:1", "/"),
}

BAD_HEADERS = {
    "H01": [
        [("X-A", "a\r\nX-B: b")], [("X-A", "a\nb")], [("X-A", "a\n")], [("X-A", "\n")], [("X-A", "a\x00")],
        [("X-A", "a\tb")],
        [("X-A", "a\r\n b")], [("X-A", "a\n\tb")], [("X-A", "\ra")], [("X-A", "a\x0bb")], [("X-A", "a\x85b")], [("X-A", "\ufeffa")],
        [("X-A", "a\u0130")], [("X-A", "\U0001f600")],
        [("X-A", " a")], [("X-A", "a ")], [("X-A", " ")], [("X-A", "\x7f")], [("X-A", "é")],
        [("X-A", "\u2028")],
    ],
    "H02": [
        [("X A", "a")], [("X:A", "a")], [("X-A\r", "a")], [("", "a")], [(":authority", "a")],
        [("X-A\n", "a")],
        [("X-É", "a")], [("X(A)", "a")], [("X/A", "a")], [("X@A", "a")], [("X-A ", "a")], [("X-A\t", "a")],
        [("X\\A", "a")],
        [("Authorization: Bearer abc", "a")], [("\u212aeep-alive", "a")], [("X" * 257, "a")],
        [('X"A', "a")], [("X,A", "a")],
    ],
    "H03": [[("Transfer-Encoding", "chunked"), ("Content-Length", "3")], [("TRANSFER-ENCODING", "chunked")]],
    "H04": [[("Content-Length", "3")], [("content-length", "0")], [("Content_Length", "3")]],
    "H05": [
        [("Host", "169.254.169.254")], [("host", "a")], [("HOST", "a")], [("Connection",
        "close")], [("connection", "X-A")],
    ],
    "H06": [[("X-A", "1"), ("x-a", "2")], [("X-A", "1"), ("X_A", "2")]],
    "H07": [
        [(name, "a")] for name in (
            "Expect", "Upgrade", "TE", "Trailer", "Proxy-Authorization", "Proxy-Connection",
            "proxy-anything", "Keep-Alive", "Trailers", "Proxy_Connection", "PROXY-AUTHENTICATE", "eXpect", "http2_settings",
            "HTTP2-Settings", "te", "Transfer_Encoding",
        )
    ],
    "H08": [
        [(name, "a")] for name in (
            "webhook-id", "webhook-signature", "webhook-timestamp", "webhook-attempt", "Webhook_Signature",
            "user-agent",
            "User-Agent", "content-type", "Content-Encoding", "accept-encoding", "cookie", "Set-Cookie",
            "traceparent", "tracestate", "Cookie2", "Set-Cookie2", "Webhook-Foo", "WEBHOOK-", "EDESY-SIGNATURE", "Content-Language",
            "Edesy-Signature", "edesy_signature",
        )
    ],
    "H09": [
        [(name, "a")] for name in (
            "X-Amz-Target", "x-amz-security-token", "X-Goog-User-Project", "Metadata-Flavor", "Metadata",
            "metadata",
            "X-aws-ec2-metadata-token", "X-aws-ec2-metadata-token-ttl-seconds", "X-Google-Metadata-Request",
            "Metadata-Token",
            "X-Metadata-Token", "X-aliyun-ecs-metadata-token", "X-Identity-Header", "x-ms-version",
            "Metadata_Flavor", "metadata-", "X-Amz-", "X_Goog_Api_Client", "X-aliyun-ecs-metadata-token-ttl-seconds",
            "X-volc-ecs-metadata-token", "X-Own-Metadata-Flavor", "X-MS-Agent-Name", "X-Google-",
        )
    ] + [[("Authorization", "Bearer Oracle")], [("authorization", "bearer oracle")], [("AUTHORIZATION", "BEARER  Oracle")]],
    "H12": [
        [(f"X-{n}", "a") for n in range(100)], [(f"X-{n}", "a") for n in range(33)], [("X-A", "a" * 200_000)],
        [("X-A", "a" * 4097)], [(f"X-{n}", "a" * 4096) for n in range(4)],
    ],
}  # fmt: skip

BAD_HEADER_ROWS = [
    (f"{case}-{number}", headers) for case, rows in BAD_HEADERS.items() for number, headers in enumerate(rows)
]

GOOD_HEADERS = [
    [],
    [("Authorization", "Bearer abc.def==")],
    [("X-Api-Key", "k"), ("X-Tenant", "ws 42"), ("Accept", "*/*")],
    [("X-Empty", "")],
    [("X-Punctuation!#$%&'*+.^_`|~", '!"#$%&()*,/:;<=>?@[\\]^{|}')],
    [(f"X-{n}", "a") for n in range(32)],
    [("X-A", "a" * 4096)],
    [("X-A", "a" * 4093), ("X-B", "a" * 4093), ("X-C", "a" * 4093), ("X-D", "a" * 4093)],
    [("X-Metadata", "a"), ("X-Forwarded-For", "1.2.3.4"), ("Accept-Language", "en"), ("Webhooks", "a"), ("Cookies", "a")],
    [("Test", "a"), ("Hostname", "a"), ("X-Host", "a"), ("Contents", "a"), ("X-Webhook-Id", "a")],
    [("X" * 256, "a")],
]  # fmt: skip
