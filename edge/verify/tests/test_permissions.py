"""The permission query language: precedence, positions of syntax errors, messages of refusals."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.verify.permissions import Both, Either, Leaf, parse
from unkey.errors import PermissionsQuerySyntaxError

A, B, C, D = Leaf("a"), Leaf("b"), Leaf("c"), Leaf("d")


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("a", A),
        ("(a)", A),
        ("a and b", Both((A, B))),
        ("a OR b And c", Either((A, Both((B, C))))),
        ("a AND b OR c", Either((Both((A, B)), C))),
        ("(a or b) and c", Both((Either((A, B)), C))),
        ("a and (b or (c and d))", Both((A, Either((B, Both((C, D))))))),
        ("and_x", Leaf("and_x")),
        ("docs.*:read-1/x_Y", Leaf("docs.*:read-1/x_Y")),
        ("\ta\n or\r\nb ", Either((A, B))),
    ],
)
def test_and_binds_tighter_than_or_and_parentheses_tighter_than_both(text, tree):
    assert parse(text) == tree


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a $ b", "invalid character '$' at position 2"),
        ("a AND é", "invalid character 'é' at position 6"),
        ("a AND ()", "empty parentheses at position 6"),
        ("(a OR b", "missing ')' for '(' at position 0"),
        ("x AND (a OR (b)", "missing ')' for '(' at position 6"),
        ("a AND", "unexpected end after 'AND' at position 5"),
        ("(", "unexpected end after '(' at position 1"),
        ("AND a", "unexpected 'AND', a permission or '(' must stand here at position 0"),
        ("a OR OR b", "unexpected 'OR', a permission or '(' must stand here at position 5"),
        ("(a AND )", "unexpected ')', a permission or '(' must stand here at position 7"),
        ("a b", "unexpected 'b', AND or OR must stand here at position 2"),
        ("a) b", "unexpected ')', AND or OR must stand here at position 1"),
        ("a (b)", "unexpected '(', AND or OR must stand here at position 2"),
    ],
)
def test_a_syntax_error_names_the_token_and_its_byte_position(text, what):
    with pytest.raises(PermissionsQuerySyntaxError) as refused:
        parse(text)
    assert refused.value.detail == f"Syntax error in the permission query: {what}."


@pytest.mark.parametrize("text", ["", " ", "\n\t "])
def test_an_empty_query_is_refused(text):
    with pytest.raises(PermissionsQuerySyntaxError) as refused:
        parse(text)
    assert refused.value.detail == "The permission query is empty."


def test_a_star_is_a_character_like_any_other():
    assert parse("documents.*").lacks({"documents.read"}) == "Missing permission: 'documents.*'"
    assert parse("documents.*").lacks({"documents.*"}) == ""


def test_and_tells_the_first_that_fails_and_or_tells_all():
    assert parse("a and b and c").lacks({"a"}) == "Missing permission: 'b'"
    assert parse("a or b or (c and d)").lacks({"c"}) == "Missing one of these permissions: a or b or c and d"
    assert parse("a and (b or c)").lacks({"a"}) == "Missing one of these permissions: b or c"


def test_a_thousand_parentheses_are_read():
    assert parse("(" * 499 + "a" + ")" * 499) == A


def trees():
    names = st.sampled_from("abcd").map(Leaf)
    return st.recursive(
        names,
        lambda inner: st.lists(inner, min_size=2, max_size=3).flatmap(
            lambda parts: st.sampled_from((Both(tuple(parts)), Either(tuple(parts))))
        ),
        max_leaves=12,
    )


def text_of(tree):
    if isinstance(tree, Leaf):
        return tree.slug
    word = " AND " if isinstance(tree, Both) else " OR "
    return word.join(f"({text_of(part)})" for part in tree.parts)


def holds(tree, granted):
    if isinstance(tree, Leaf):
        return tree.slug in granted
    results = [holds(part, granted) for part in tree.parts]
    return all(results) if isinstance(tree, Both) else any(results)


@given(trees(), st.sets(st.sampled_from("abcd")))
def test_what_is_parsed_means_what_was_written(tree, granted):
    assert (parse(text_of(tree)).lacks(granted) == "") is holds(tree, granted)


@given(st.text(alphabet="aAnNdDoOrR_ ()*é$", max_size=30))
def test_any_text_parses_or_is_refused_at_a_position_inside_it(text):
    try:
        parse(text)
    except PermissionsQuerySyntaxError as refused:
        if "empty." not in refused.detail:
            position = int(refused.detail.rstrip(".").rsplit(" ", 1)[1])
            assert 0 <= position <= len(text)
