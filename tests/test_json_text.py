"""JSON that others wrote: read as it stands there, or refused in one line, in every reader of the house."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lathe.json_text import EXACT_DECODER, NotJSON, parse_json, read_json

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    # half surrogates, control characters and such
    | st.text(st.characters(codec=None, exclude_categories=[]), max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
)  # fmt: skip

FAULTY = {
    '{"a": 1} {"b": 2}': "Extra data at column 10",
    "": "Expecting value at column 1",
    '{"a":\n 1,\n x}': "Expecting property name.* at line 3, column 2",
    "\ufeff{}": "it begins with a byte order mark, which only a file may",
    "[" * 100_000: "it is nested too deep",
    '{"a": ' * 100_000 + "1" + "}" * 100_000: "it is nested too deep",
    "1" * 5_000: "a number has thousands of digits",
    '{"a": -' + "1" * 5_000 + "}": "a number has thousands of digits",
    '{"a": "x\0y"}': "Invalid control character at",
    "\0" * 10: "Expecting value at column 1",
    "'a'": "Expecting value",
    '"\\ud8"': "Invalid .*escape",
}


@given(values, st.booleans(), st.sampled_from([None, 1]))
def test_what_python_writes_is_read(value, ascii_only, indent):
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    assert parse_json(text, "here") == value
    assert parse_json(text, "here", EXACT_DECODER) == value


@pytest.mark.parametrize("text", FAULTY, ids=lambda text: f"{text:.12}")
def test_a_fault_is_one_line(text):
    with pytest.raises(NotJSON, match=f"^here is not JSON: {FAULTY[text]}") as error:
        parse_json(text, "here")
    assert "\n" not in str(error.value) and len(str(error.value)) < 100


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": [{"b": 1, "b": 1}]}', "the key 'b' comes twice in an object"),
        ('{"a": NaN}', "NaN is no number there"),
        ('{"a": -Infinity}', "-Infinity is no number there"),
        ('{"a": 1e400}', "1e400 is too large for a number"),
    ],
)
def test_what_would_not_be_the_same_written_again_is_refused_where_that_counts(text, reason):
    with pytest.raises(NotJSON, match=f"^here is not JSON: {reason}"):
        parse_json(text, "here", EXACT_DECODER)
    assert isinstance(parse_json(text, "here"), dict)


def test_files_are_named(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": "\xc3\xbc"}')
    assert read_json(path) == {"a": "\u00fc"}
    for content, fault in [
        (b'{"a": "\xff"}', "is not UTF-8 at byte 7"),
        (b"[1]", "is no JSON object"),
        (b"", "is not JSON: Expecting value"),
        (b"[" * 100_000, "is not JSON: it is nested too deep"),
    ]:
        path.write_bytes(content)
        with pytest.raises(NotJSON, match=f"a.json {fault}"):
            read_json(path)
