import lxml.html
import pytest

from data_pipelines.build.html import BrokenPage, decode, read_page
from data_pipelines.build.pages import text_of


def text(body: str, **options) -> str:
  return text_of(read_page(f"<html><body>{body}</body></html>".encode(), **options).content)


@pytest.mark.parametrize(
  "around",
  [
    '<nav>{}</nav>',
    '<header>{}</header>',
    '<footer>{}</footer>',
    '<aside>{}</aside>',
    '<script>{}</script>',
    '<style>{}</style>',
    '<noscript>{}</noscript>',
    '<template>{}</template>',
    '<form><button>{}</button></form>',
    '<select><option>{}</option></select>',
    '<div role="navigation">{}</div>',
    '<div role="banner">{}</div>',
    '<div class="navfooter">{}</div>',
    '<div class="site-sidebar">{}</div>',
    '<div id="cookie_consent">{}</div>',
    '<ul class="breadcrumbs">{}</ul>',
    '<div hidden>{}</div>',
    '<div aria-hidden="true">{}</div>',
    '<p style="color: red; display : none">{}</p>',
    '<!-- {} -->',
  ],
)  # fmt: skip
def test_boilerplate_goes_and_what_follows_it_stays(around):
  assert text(f"<p>before</p>{around.format('noise')}behind") == "before\nbehind"


@pytest.mark.parametrize(
  "around",
  [
    '<div class="content-with-sidebar">{}</div>',
    '<div class="main-menu-page">{}</div>',
    '<div class="social"><h1>Title</h1>{}</div>',
    '<article><header>{}</header></article>',
    '<form><p>{}</p></form>',
    '<div class="loading shadow">{}</div>',
    '<div style="display: block">{}</div>',
  ],
)  # fmt: skip
def test_what_only_sounds_like_boilerplate_stays(around):
  assert "content" in text(around.format("content"))


def test_the_main_element_or_the_only_article_is_the_content():
  assert text("<p>around</p><main><p>in it</p></main>") == "in it"
  assert text('<p>around</p><div role="main">in it</div>') == "in it"
  assert text("<p>around</p><article>in it</article>") == "in it"
  assert text("<article>one</article><article>two</article>") == "one\ntwo"


def test_blocks_of_links_go_and_links_in_text_stay():
  links = "<ul>" + '<li><a href="x">somewhere else</a></li>' * 3 + "</ul>"
  few = "<ul>" + '<li><a href="x">somewhere else</a></li>' * 2 + "</ul>"
  prose = '<p>A long sentence around <a href="x">one</a>, <a href="x">two</a> and <a href="x">three</a> links.</p>'
  assert text(links + "<p>text</p>", most_linked=0.5) == "text"
  assert text(links + "<p>text</p>") == "somewhere else\n" * 3 + "text"
  assert text(few, most_linked=0.5) == "somewhere else\nsomewhere else"
  assert text(prose, most_linked=0.5) == "A long sentence around one, two and three links."


def test_base_and_licence_are_read():
  head = '<head><base href="https://a.org/b/"><link rel="license" href="https://c.org/by/4.0/"></head>'
  page = read_page(f"<html>{head}<body>x</body></html>".encode())
  assert (page.base, page.license) == ("https://a.org/b/", "https://c.org/by/4.0/")
  assert (read_page(b"x").base, read_page(b"x").license) == ("", "")


@pytest.mark.parametrize(
  ("rel", "found"),
  [
    ("license", True),
    ("License", True),
    ("license noopener", True),
    (" external\nLICENSE ", True),
    ("license-text", False),
    ("", False),
  ],
)
def test_a_licence_is_a_word_of_what_a_link_says_of_itself(rel, found):
  page = read_page(
    f'<p>x</p><a rel="next" href="/2">2</a><a rel="{rel}" href=" https://c.org/by/4.0/ ">CC</a>'.encode()
  )
  assert page.license == ("https://c.org/by/4.0/" if found else "")


@pytest.mark.parametrize(
  ("data", "charset"),
  [
    ("é".encode(), None),
    (b"\xef\xbb\xbf" + "é".encode(), "latin-1"),  # a byte order mark goes before all else
    (b"\xff\xfe" + "é".encode("utf-16-le"), None),
    ("é".encode("latin-1"), "latin-1"),
    (b'<meta charset="latin-1">' + "é".encode("latin-1"), None),
    (b'<?xml version="1.0" encoding="latin-1"?>' + "é".encode("latin-1"), None),
    (b'<meta charset="latin-1">' + "é".encode(), "utf-8"),  # the server knows better than the page
  ],
)
def test_a_page_is_decoded_as_it_says(data, charset):
  assert decode(data, charset).endswith("é")


@pytest.mark.parametrize(
  ("label", "data", "expected"),
  [
    ("iso-8859-1", b"\x93It\x92s\x94 \x96 5 \x80 \x85 caf\xe9", "“It\u2019s” \u2013 5 € … café"),
    ("latin1", b"\x93caf\xe9\x94", "“café”"),
    ("us-ascii", b"\x93caf\xe9\x94", "“café”"),
    ("ISO-8859-9", b"\x93\xfd\x94", "“\u0131”"),
    ("windows-1252", b"a \x81 b", "a \x81 b"),  # WHATWG: the control character, which no text keeps
    ("gb2312", b"\xd6\xec\xe9F\xbb\xf9", "朱镕基"),  # its second letter is in GBK alone
    ("shift_jis", b"\x87@ \x8a\x94\x8e\xae\x89\xef\x8e\xd0\x87\x8a", "① 株式会社㈱"),
    ("x-sjis", b"\x93\xfa\x96{", "日本"),
    ("ks_c_5601-1987", b"\x8cc\xb9\xe6", "똠방"),
  ],
)
def test_labels_mean_what_browsers_take_them_for(label, data, expected):
  assert decode(data, label) == expected
  assert decode(f'<meta charset="{label}">'.encode() + data).endswith(f">{expected}")


def test_a_page_that_says_in_ascii_to_be_utf_16_is_utf_8():
  assert decode('<meta charset="utf-16">é'.encode()).endswith("é")
  assert decode('<meta http-equiv="Content-Type" content="text/html; charset=UTF-16LE">é'.encode()).endswith("é")
  assert decode("é".encode("utf-16-le"), "utf-16") == "é"


@pytest.mark.parametrize(
  ("data", "charset"),
  [
    (b"\xff\xff", None),
    (b"a\0b", None),
    (b"a", "no-such"),
    (b"6162", "hex"),
    (b"\xe9", "utf-8"),
    (b"a", "idna"),
    (b"a", "hz-gb-2312"),
    (b"\xd2", "windows-1253"),
  ],
)
def test_what_is_no_text_is_a_broken_page(data, charset):
  with pytest.raises(BrokenPage):
    decode(data, charset)


@pytest.mark.parametrize("data", [b"", b" \n", b"<!-- nothing -->"])
def test_nothing_is_an_empty_page(data):
  assert text_of(read_page(data).content) == ""


def test_a_declared_encoding_does_not_disturb_the_parser():
  page = read_page('<?xml version="1.0" encoding="iso-8859-1"?><html><body>é</body></html>'.encode("latin-1"))
  assert isinstance(page.content, lxml.html.HtmlElement) and text_of(page.content) == "é"
